"""In-place surgery on stock models: `prune_`, `unprune_`, `trace`, `restore`, `watch`."""

from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.placeholders import fit_processor_, tokens_left
from entropatch.surgery.prune import block_count, features, prune_, unprune_
from entropatch.surgery.stage_record import StageRecord
from entropatch.surgery.state import is_pruned, pruned_tower, pruning_config
from entropatch.surgery.tracing import Trace, restore, trace
from entropatch.surgery.watching import watch

__all__ = [
    "StageRecord",
    "Trace",
    "UnsupportedModelError",
    "block_count",
    "features",
    "fit_processor_",
    "is_pruned",
    "prune_",
    "pruned_tower",
    "pruning_config",
    "restore",
    "tokens_left",
    "trace",
    "unprune_",
    "watch",
]
