"""Importance of each patch, from one block's attention. Larger means keep.

To add a criterion, subclass `Criterion` as a frozen dataclass and write `importance`; nothing else is needed:

    @dataclass(frozen=True)
    class KeyNorm(Criterion):
        def importance(self, attention):
            keys = attention.k[:, :, attention.num_prefix_tokens :]
            return keys.float().norm(dim=-1).mean(1)  # (batch, patches)

    entropatch.prune_(model, keep_rate=0.7, criterion=KeyNorm())
"""

from entropatch.criteria.att_entropy import AttEntropy
from entropatch.criteria.base import Criterion
from entropatch.criteria.class_attention import ClassAttention
from entropatch.criteria.column_norm import ColumnNorm
from entropatch.criteria.early_exit import EarlyExit
from entropatch.criteria.halting import Halting
from entropatch.criteria.head_diversity import HeadDiversity
from entropatch.criteria.head_selector import HeadSelector
from entropatch.criteria.image_order import PerImageOrder
from entropatch.criteria.keep_predictor import KeepPredictor
from entropatch.criteria.learned import LearnedCriterion
from entropatch.criteria.mixture import Mix, Product
from entropatch.criteria.query_score import QueryScore
from entropatch.criteria.random import Random
from entropatch.criteria.renyi import Renyi
from entropatch.criteria.running_attention import RunningClassAttention
from entropatch.criteria.synergistic import Synergistic
from entropatch.criteria.value_attention import ValueAttention, ValueNormAttention

__all__ = [
    "AttEntropy",
    "ClassAttention",
    "ColumnNorm",
    "Criterion",
    "EarlyExit",
    "Halting",
    "HeadDiversity",
    "HeadSelector",
    "KeepPredictor",
    "LearnedCriterion",
    "Mix",
    "PerImageOrder",
    "Product",
    "QueryScore",
    "Random",
    "Renyi",
    "RunningClassAttention",
    "Synergistic",
    "ValueAttention",
    "ValueNormAttention",
]
