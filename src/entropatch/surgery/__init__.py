"""In-place surgery on stock models: `prune_`, `unprune_`, `trace`, `restore`, `watch`."""

from entropatch.surgery.dense_pass import dense_pass
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.placeholders import fit_processor_, tokens_left
from entropatch.surgery.prune import block_count, prune_, run_images, tower_name, unprune_
from entropatch.surgery.stage_record import StageRecord
from entropatch.surgery.state import is_pruned, pruning_config
from entropatch.surgery.tracing import Trace, restore, trace
from entropatch.surgery.watching import watch
from entropatch.surgery.weights import own_parameters, set_loaded

__all__ = [
    "StageRecord",
    "Trace",
    "UnsupportedModelError",
    "block_count",
    "dense_pass",
    "fit_processor_",
    "is_pruned",
    "own_parameters",
    "prune_",
    "pruning_config",
    "restore",
    "run_images",
    "set_loaded",
    "tokens_left",
    "tower_name",
    "trace",
    "unprune_",
    "watch",
]
