"""entropatch: faster Vision Transformers by pruning the patches whose attention says least.

Patch pruning by Shannon and Rényi attention entropy (Aizawa & Igaue 2026, arXiv 2604.03803) on stock models:

    model = timm.create_model("deit_small_patch16_224", pretrained=True)
    entropatch.prune_(model, keep_rate=0.7, order=2.0)
"""

from entropatch.attention import BlockAttention, attention_entropy
from entropatch.calibration import calibrate, calibrate_threshold
from entropatch.config import PruneConfig
from entropatch.criteria import ClassAttention, Criterion, Mix, PerImageOrder, Product, Random, Renyi
from entropatch.entropy import renyi_entropy
from entropatch.export import export
from entropatch.image_schedules import SharedBudget, Threshold
from entropatch.methods import Method, register_method
from entropatch.reductions import BipartiteMerge, Drop, Fuse, Merge, Reduction
from entropatch.regularisation import entropy_penalty
from entropatch.schedule import CumulativeImportance, KeepRate, RemovePerBlock, Schedule
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
    "BipartiteMerge",
    "BlockAttention",
    "ClassAttention",
    "Criterion",
    "CumulativeImportance",
    "Drop",
    "Fuse",
    "KeepRate",
    "Merge",
    "Method",
    "Mix",
    "PerImageOrder",
    "Plan",
    "Product",
    "PruneConfig",
    "Random",
    "Reduction",
    "RemovePerBlock",
    "Renyi",
    "Schedule",
    "SharedBudget",
    "Threshold",
    "Tokens",
    "Trace",
    "UnsupportedModelError",
    "__version__",
    "attention_entropy",
    "calibrate",
    "calibrate_threshold",
    "entropy_penalty",
    "export",
    "fit_processor_",
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
