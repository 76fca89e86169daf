"""In-place surgery on stock models: `prune_`, `unprune_`, `trace`, `restore`."""

from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.prune import block_count, is_pruned, prune_, pruning_config, unprune_
from entropatch.surgery.tracing import StageRecord, Trace, restore, trace

__all__ = [
    "StageRecord",
    "Trace",
    "UnsupportedModelError",
    "block_count",
    "is_pruned",
    "prune_",
    "pruning_config",
    "restore",
    "trace",
    "unprune_",
]
