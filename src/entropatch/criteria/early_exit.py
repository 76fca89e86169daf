"""DToP: a patch leaves once an auxiliary head is sure of its class; the surest of each class stay as context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from entropatch.criteria.learned import Decision, Entering, LearnedCriterion, Making, Seen, drawn_, weight
from entropatch.schedule import number

EXIT = "exit"  # what states are called, with the block


@dataclass(frozen=True)
class EarlyExit(LearnedCriterion):
    """DToP's early exits of segmentation heads (Tang et al. 2023); a patch stays while its score is above 0.

    Behind exit m, which is before the block that follows, an auxiliary head H_m predicts the class of each of the
    patches x_i still present, each by itself:

        p_i = softmax(W_m LayerNorm(x_i) + b_m),   P_i = max_c p_ic,   c_i = argmax_c p_ic

    A patch with P_i ≥ θ leaves, with that prediction, but for the k of the highest P_i of each class c_i, which stay as
    context for the others; of equals the one of the lower number stays. What stays is predicted by a later head, in the
    end the model's own. How many leave depends on the image alone: images, whose numbers differ, run in groups.

    The map of exit m is made of H_m's logits, and for patches that are gone of those they left with. The maps are
    handed on as states of the images, by which `entropatch.Segmenter` makes the final one. θ above 1: none leaves, and
    the maps are there all the same; so that the model is trained first (`Segmenter.losses`), in training mode as in
    evaluation mode.

    Tokens leave in training as at inference. Where the setting has other exits than those trained the weights are those
    of their blocks.

    What differs from the original: its auxiliary heads are those of the method it is put into (SETR's convolutions,
    SegViT's attention to masks); here each is one linear layer behind a norm, since a patch that has left has no value
    that a convolution could read. Every prefix token is kept.

    Args:
        classes: of the maps; None for the model's.
        threshold: θ, above 0; the paper's 0.95. Above 1, such as ∞: none leaves.
        context: k, at least 0; the paper's 5.
        aux_weight: of the auxiliary cross entropies beside the model's own, each.
        seed: of the weights it starts from.
    """

    decides: ClassVar[bool] = True
    masks: ClassVar[bool] = False
    predicts: ClassVar[bool] = True

    classes: int | None = None
    threshold: float = 0.95
    context: int = 5
    aux_weight: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", number("threshold", self.threshold))
        object.__setattr__(self, "aux_weight", weight("aux_weight", self.aux_weight))
        if not self.threshold > 0:
            raise ValueError(f"threshold must be a probability above 0, but got {self.threshold!r}.")
        for name, least in (("context", 0), ("classes", 2)):
            value: Any = getattr(self, name)
            if value is None and name == "classes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, but got {value!r}.")

    @property
    def label(self) -> str:
        return f"DToP, sure at {self.threshold:g}, {self.context} of each class stay"

    @property
    def weights_key(self) -> str:
        return f"{self.kind}({self.classes})"

    def make(self, making: Making) -> nn.Module:
        classes = self.classes or making.classes
        if classes is None:
            raise ValueError("EarlyExit predicts classes, but the model does not say how many; give classes=….")
        return drawn_(nn.Sequential(nn.LayerNorm(making.width), nn.Linear(making.width, classes)))

    def decide(self, entering: Entering) -> Decision:
        head: Any = entering.weights
        logits = head(entering.patches)
        with torch.no_grad():
            exact = logits.detach()
            exact = exact if exact.dtype == torch.float64 else exact.float()
            confidence, predicted = exact.softmax(-1).max(-1)
            is_context = rank_in_class(confidence, predicted) < self.context
            scores = torch.where(is_context, confidence, min(self.threshold, 2.0) - confidence)
        return Decision(scores, states={f"{EXIT} {entering.block:04d}": _map(entering, logits)})

    def losses(self, seen: Seen) -> dict[str, Tensor]:
        raise ValueError(
            "the auxiliary heads of EarlyExit learn from masks, so their loss is Segmenter.losses(images, masks), not "
            "that of method_loss or finetune."
        )

    def level(self, scores: Tensor) -> Tensor:
        """The score itself: above 0 where the patch stays."""
        return scores.float()


def exit_maps(states: Mapping[str, Tensor]) -> list[Tensor]:
    """The maps of the exits so far, in order: each (images, patches, classes)."""
    return [states[name] for name in sorted(states) if name.startswith(EXIT)]


def rank_in_class(confidence: Tensor, predicted: Tensor) -> Tensor:
    """How many patches of its predicted class come before each, by falling confidence, then number: (batch, n)."""
    order = confidence.argsort(dim=1, descending=True, stable=True)
    classes = predicted.gather(1, order)
    grouping = classes.argsort(dim=1, stable=True)
    grouped = classes.gather(1, grouping)
    place = torch.arange(grouped.shape[1], device=grouped.device)
    rank = place - torch.searchsorted(grouped, grouped)  # less the first place of its class
    return torch.empty_like(rank).scatter(1, order.gather(1, grouping), rank)


def _map(entering: Entering, logits: Tensor) -> Tensor:
    """The map of the exit before, with the logits of the patches present: (images, total, classes)."""
    before = exit_maps(entering.states)
    if entering.positions is None:
        return logits
    images, total, classes = logits.shape[0], entering.total, logits.shape[2]
    canvas = before[-1] if before else logits.new_zeros(images, total, classes)
    # One place more for appended tokens, which stand nowhere.
    canvas = torch.nn.functional.pad(canvas.to(logits.dtype), (0, 0, 0, 1))
    places = torch.where(entering.positions < 0, total, entering.positions)[..., None].expand_as(logits)
    return canvas.scatter(1, places, logits)[:, :total]
