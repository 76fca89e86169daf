"""Token Cropr: a learned query scores the tokens; a head that it feeds in training teaches it what the task needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropatch.criteria.learned import Decision, Entering, LearnedCriterion, Making, Seen, drawn_, weight


@dataclass(frozen=True)
class QueryScore(LearnedCriterion):
    """Token Cropr's scorer (cross-attention pruning, Bergner et al. 2025); large = keep.

    Before a pruning block, which is behind the one before it, with learned queries q_m of that block and the patch
    tokens x_i as they are, neither normed nor projected:

        s_i = Σ_m q_m · x_i

    The n - R patches with the highest s_i stay. At inference that is all: the queries are one, Σ_m q_m. While the model
    trains, the scores also make an auxiliary prediction, of all tokens that enter, prefix tokens too, without gradients
    to them:

        y_m = Σ_i softmax_i(q_m · x_i / √D) x_i,   z = mean over m of (y_m + MLP(LayerNorm(y_m))),   W LayerNorm(z) + b

    with an MLP of width 4D and GELU. Its cross entropy is the only thing that teaches the queries, and teaches nothing
    else; tokens leave in training as at inference. With `Park` the others wait and are joined again before the last
    block (last layer fusion); with "drop" they are gone.

    Loss, beside the model's own: aux_weight · Σ over blocks of the cross entropy of their auxiliary predictions. Every
    prefix token is kept. A query right before the last block, whose pruning the joining undoes, is left out.

    This is the released code at its defaults; that can also norm the tokens, project queries, keys and values, and cut
    them into heads, and it has no mean over the queries, so that a classifier trains with one only. Without last layer
    fusion it prunes before the last block too: blocks=(1, …, 11) of 12. It reads its classes from the mean of all
    tokens, the class token among them (timm: global_pool="avg", pool_include_prefix=True), and its last block has no
    drop path; stock models keep their own.

    Args:
        queries: how many for each block; the paper's one for classification.
        classes: of the auxiliary predictions; None for the model's, and where that tells none, no auxiliary heads, so
            that it cannot be trained here.
        aux_weight: as above.
        seed: of the weights it starts from.
    """

    masks: ClassVar[bool] = False

    queries: int = 1
    classes: int | None = None
    aux_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "aux_weight", weight("aux_weight", self.aux_weight))
        for name in ("queries", "classes"):
            value: Any = getattr(self, name)
            if value is None and name == "classes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, but got {value!r}.")

    @property
    def label(self) -> str:
        return "Cropr"

    @property
    def weights_key(self) -> str:
        return f"{self.kind}({self.queries}, {self.classes})"

    def make(self, making: Making) -> nn.Module:
        return drawn_(Scorer(making.width, self.queries, self.classes or making.classes))

    def decide(self, entering: Entering) -> Decision:
        scorer: Any = entering.weights
        scores = F.linear(entering.patches.detach(), scorer.query.detach().sum(0, keepdim=True))[..., 0]
        note = {}
        if entering.training and torch.is_grad_enabled() and scorer.head is not None:
            note = {"logits": scorer(entering.x.detach())}
        return Decision(scores.float(), note=note)

    def losses(self, seen: Seen) -> dict[str, Tensor]:
        predictions = [note.values["logits"] for note in seen.notes if "logits" in note.values]
        if not predictions:
            raise ValueError(
                "no auxiliary prediction was made, which is what Cropr's queries learn from: train a model in training "
                "mode, below a keep rate of 1, that says how many classes it has, or give QueryScore(classes=…)."
            )
        if seen.targets is None:
            raise ValueError("Cropr's auxiliary predictions learn from the labels; give them: own.value(labels).")
        smoothing = seen.smoothing if seen.targets.ndim == 1 else 0.0
        terms = [F.cross_entropy(logits.float(), seen.targets, label_smoothing=smoothing) for logits in predictions]
        return {"auxiliary": self.aux_weight * torch.stack(terms).sum()}


class Scorer(nn.Module):
    """The queries of one block, and in training the head they feed: tokens (batch, n, width) -> (batch, classes)."""

    norm: nn.Module | None
    mlp: nn.Module | None
    head: nn.Module | None

    def __init__(self, width: int, queries: int, classes: int | None):
        super().__init__()
        # Of spread 1/√D, and none beyond twice that.
        self.query: nn.Parameter = nn.Parameter(nn.init.trunc_normal_(torch.empty(queries, width)) * width**-0.5)
        self.norm = self.mlp = self.head = None
        if classes is not None:
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        assert self.norm is not None
        assert self.mlp is not None
        assert self.head is not None
        weights = (self.query @ x.transpose(1, 2) * x.shape[2] ** -0.5).softmax(-1)
        y = weights @ x
        return self.head((y + self.mlp(self.norm(y))).mean(1))
