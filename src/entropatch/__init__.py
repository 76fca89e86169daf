"""entropatch: faster Vision Transformers by pruning the patches whose attention says least.

Patch pruning by Shannon and Rényi attention entropy (Aizawa & Igaue 2026, arXiv 2604.03803) on stock models:

    model = timm.create_model("deit_small_patch16_224", pretrained=True)
    entropatch.prune_(model, keep_rate=0.7, order=2.0)
"""

from entropatch.attention import BlockAttention, attention_entropy
from entropatch.calibration import calibrate, calibrate_threshold
from entropatch.config import PruneConfig
from entropatch.criteria import (
    AttEntropy,
    ClassAttention,
    ColumnNorm,
    Criterion,
    EarlyExit,
    Halting,
    HeadDiversity,
    HeadSelector,
    KeepPredictor,
    Mix,
    PerImageOrder,
    Product,
    QueryScore,
    Random,
    Renyi,
    RunningClassAttention,
    Synergistic,
    ValueAttention,
    ValueNormAttention,
)
from entropatch.deciding import AboveZero, AtExits, RemoveBetweenBlocks, ShareOfTotal, TowardsShare
from entropatch.entropy import renyi_entropy
from entropatch.export import export
from entropatch.image_schedules import SharedBudget, Threshold
from entropatch.learning import method_loss
from entropatch.methods import Method, register_method
from entropatch.reductions import BipartiteMerge, Drop, Fuse, Merge, Package, Park, Reduction, SlowFast
from entropatch.regularisation import entropy_penalty
from entropatch.sampling import InverseTransform
from entropatch.schedule import CumulativeImportance, FloorRate, KeepRate, RemovePerBlock, Schedule
from entropatch.segmenter import Segmenter
from entropatch.surgery import (
    Trace,
    UnsupportedModelError,
    fit_processor_,
    prune_,
    pruning_config,
    restore,
    tower_name,
    trace,
    unprune_,
    watch,
)
from entropatch.tokens import Plan, Tokens
from entropatch.version import __version__

__all__ = [
    "AboveZero",
    "AtExits",
    "AttEntropy",
    "BipartiteMerge",
    "BlockAttention",
    "ClassAttention",
    "ColumnNorm",
    "Criterion",
    "CumulativeImportance",
    "Drop",
    "EarlyExit",
    "FloorRate",
    "Fuse",
    "Halting",
    "HeadDiversity",
    "HeadSelector",
    "InverseTransform",
    "KeepPredictor",
    "KeepRate",
    "Merge",
    "Method",
    "Mix",
    "Package",
    "Park",
    "PerImageOrder",
    "Plan",
    "Product",
    "PruneConfig",
    "QueryScore",
    "Random",
    "Reduction",
    "RemoveBetweenBlocks",
    "RemovePerBlock",
    "Renyi",
    "RunningClassAttention",
    "Schedule",
    "Segmenter",
    "ShareOfTotal",
    "SharedBudget",
    "SlowFast",
    "Synergistic",
    "Threshold",
    "Tokens",
    "TowardsShare",
    "Trace",
    "UnsupportedModelError",
    "ValueAttention",
    "ValueNormAttention",
    "__version__",
    "attention_entropy",
    "calibrate",
    "calibrate_threshold",
    "entropy_penalty",
    "export",
    "fit_processor_",
    "method_loss",
    "prune_",
    "pruning_config",
    "register_method",
    "renyi_entropy",
    "restore",
    "tower_name",
    "trace",
    "unprune_",
    "watch",
]
