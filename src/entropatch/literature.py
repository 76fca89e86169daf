"""Methods of the literature by name, what stands beside the paper's in comparisons that ask for it.

A method of ours is a line here; `entropatch.methods` offers them with all others. They are compared only when named.
"""

from __future__ import annotations

from entropatch.criteria import (
    AttEntropy,
    ColumnNorm,
    EarlyExit,
    Halting,
    HeadDiversity,
    HeadSelector,
    KeepPredictor,
    QueryScore,
    RunningClassAttention,
    ValueAttention,
    ValueNormAttention,
)
from entropatch.deciding import AboveZeroEverywhere, AtExits, RemoveBetweenBlocks, ShareOfTotal, TowardsShare
from entropatch.named_method import Method
from entropatch.reductions import Package, Park, SlowFast
from entropatch.sampling import InverseTransform
from entropatch.schedule import FloorRate

LITERATURE: tuple[Method, ...] = (
    Method(
        "head-variance",
        "Head variance",
        "Keeps the patches on which the class token's attention varies most from head to head.",
        HeadDiversity("variance"),
        rank=70,
        compared=False,
    ),
    Method(
        "head-mad",
        "Head MAD",
        "Keeps the patches of the largest median absolute deviation of class attention over the heads.",
        HeadDiversity("mad"),
        rank=71,
        compared=False,
    ),
    Method(
        "col-ln",
        "Col-Ln",
        "Keeps the patches whose column of the mean attention has the largest ℓ₄ norm.",
        ColumnNorm(4.0),
        rank=72,
        compared=False,
    ),
    Method(
        "att-entropy",
        "AttEntropy",
        "Keeps the patches of the lowest entropy of the mean attention, averaged over the blocks so far.",
        AttEntropy(),
        rank=73,
        compared=False,
    ),
    Method(
        "value-norm",
        "Value-norm attention",
        "Keeps the patches whose projected values, times the class token's attention, are longest.",
        ValueNormAttention(),
        rank=74,
        compared=False,
    ),
    Method(
        "running-class",
        "Running class attention",
        "Keeps the patches the class token attended to most, averaged over the blocks so far as in Evo-ViT.",
        RunningClassAttention(),
        rank=75,
        compared=False,
    ),
    Method(
        "ats",
        "ATS",
        "Samples patches by class attention times the length of their values; easy images keep fewer.",
        ValueAttention(),
        schedule=InverseTransform(),
        rank=76,
        compared=False,
    ),
    Method(
        "dynamicvit",
        "DynamicViT",
        "Keeps the patches that a small network, trained with the model, says to keep.",
        KeepPredictor(),
        schedule=ShareOfTotal(),
        rank=78,
        compared=False,
        trained=True,
    ),
    Method(
        "cropr",
        "Token Cropr",
        "Keeps the patches that a learned query finds; the others wait and are joined again before the last block.",
        QueryScore(),
        Park(),
        RemoveBetweenBlocks(),
        rank=79,
        compared=False,
        trained=True,
    ),
    Method(
        "a-vit",
        "A-ViT",
        "Keeps a patch until its halting scores, which its own first channel says, add up to one.",
        Halting(),
        schedule=AboveZeroEverywhere(),
        rank=80,
        compared=False,
        trained=True,
    ),
    Method(
        "spvit",
        "SPViT",
        "Keeps the patches that the heads, by small networks of their own, say to keep; a package of the others stays.",
        HeadSelector(),
        Package(),
        TowardsShare(),
        rank=81,
        compared=False,
        trained=True,
    ),
    Method(
        "evo-vit",
        "Evo-ViT",
        "Runs the blocks on the patches the class token attended to most so far; the others wait, and come back.",
        RunningClassAttention(),
        SlowFast(),
        FloorRate(),
        rank=77,
        compared=False,
    ),
)

# For models that make maps; any other refuses them.
FOR_MAPS: tuple[Method, ...] = (
    Method(
        "dtop",
        "DToP",
        "Keeps the patches of whose class an auxiliary head is not sure yet, and the surest few of each class.",
        EarlyExit(),
        schedule=AtExits(),
        rank=82,
        compared=False,
        trained=True,
    ),
)
