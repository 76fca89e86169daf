"""Methods of the literature by name, training-free: what stands beside the paper's in comparisons that ask for it.

A method of ours is a line here; `entropatch.methods` offers them with all others. They are compared only when named.
"""

from __future__ import annotations

from entropatch.criteria import (
    AttEntropy,
    ColumnNorm,
    HeadDiversity,
    RunningClassAttention,
    ValueAttention,
    ValueNormAttention,
)
from entropatch.named_method import Method
from entropatch.reductions import SlowFast
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
        "evo-vit",
        "Evo-ViT",
        "Runs each block on the patches the class token attended to most so far; the others wait beside it.",
        RunningClassAttention(),
        SlowFast(),
        FloorRate(),
        rank=77,
        compared=False,
    ),
)
