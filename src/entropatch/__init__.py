"""entropatch: faster Vision Transformers by pruning the patches whose attention says least.

Patch pruning by Shannon and Rényi attention entropy (Aizawa & Igaue 2026, arXiv 2604.03803) on stock models:

    model = timm.create_model("deit_small_patch16_224", pretrained=True)
    entropatch.prune_(model, keep_rate=0.7, order=2.0)
"""

from entropatch.attention import BlockAttention, attention_entropy
from entropatch.config import PruneConfig
from entropatch.criteria import ClassAttention, Criterion, Random, Renyi
from entropatch.entropy import renyi_entropy
from entropatch.surgery import (
    Trace,
    UnsupportedModelError,
    prune_,
    pruning_config,
    restore,
    trace,
    unprune_,
)

__version__ = "0.1.0"

__all__ = [
    "BlockAttention",
    "ClassAttention",
    "Criterion",
    "PruneConfig",
    "Random",
    "Renyi",
    "Trace",
    "UnsupportedModelError",
    "attention_entropy",
    "prune_",
    "pruning_config",
    "renyi_entropy",
    "restore",
    "trace",
    "unprune_",
]
