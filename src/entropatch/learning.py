"""The loss of a method that has weights of its own, for training: `method_loss`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.criteria.learned import LearnedCriterion, Note, Seen
from entropatch.surgery import UnsupportedModelError, is_pruned, prune_, pruning_config, unprune_
from entropatch.surgery.registry import pools_patches
from entropatch.surgery.state import among, pruned_part, pruning_of, this_thread


class _Pass:
    """What one model's last forward pass left for a loss."""

    def __init__(self, model: nn.Module):
        self.thread, self._model = this_thread(), pruned_part(model)
        self.notes: list[Note] = []
        self.streams: list[Any] | None = None

    def end(self, notes: list[Note], streams: Sequence[Any]) -> None:
        """Used by the model: a forward pass ran."""
        self.notes, self.streams = list(notes), list(streams)

    def seen(self) -> tuple[Any, Tensor]:
        """The tokens that left the last block, and their values, normed. Raises RuntimeError if none did."""
        if self.streams is None:
            raise RuntimeError("the method's loss is of a forward pass inside `with method_loss(...)`, but none ran.")
        if len(self.streams) > 1:
            raise RuntimeError("images kept different numbers of tokens: the model must be in training mode.")
        (stream,) = self.streams
        return stream.tokens, pruning_of(self._model).adapter.norm(self._model)(stream.x)


class MethodLoss:
    """What `method_loss` gathers while a model runs."""

    def __init__(self, model: nn.Module, criterion: LearnedCriterion, teacher: nn.Module | None):
        self._criterion = criterion
        self._depth = len(pruning_of(model).stages)
        self._own, self._taught = _Pass(model), None if teacher is None else _Pass(teacher)

    def terms(self, targets: Tensor | None = None, smoothing: float = 0.0) -> dict[str, Tensor]:
        """The terms of the method's loss by name, each with its weight, of the last forward pass; scalars, float32.

        Args:
            targets: class numbers (batch,), or probabilities (batch, classes), where a method asks for them.
            smoothing: of labels that are numbers.

        Raises:
            RuntimeError: no forward pass ran. ValueError: the method asks for targets or a teacher, and has none.
        """
        tokens, values = self._own.seen()
        mask = tokens.mask
        if mask is not None and tokens.n > tokens.total:  # tokens were appended behind the patches
            there = tokens.num_prefix_tokens + tokens.total
            values, mask = values[:, :there], mask[:, :there]
        taught = None
        if self._taught is not None and self._criterion.teaches:
            with torch.no_grad():
                taught = self._taught.seen()[1].detach()
        seen = Seen(self._own.notes, values, mask, tokens.num_prefix_tokens, self._depth, taught, targets, smoothing)
        return self._criterion.losses(seen)

    def value(self, targets: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """The sum of the `terms`; 0 where all tokens stay."""
        terms = list(self.terms(targets, smoothing).values())
        return torch.stack(terms).sum() if terms else torch.zeros((), device=self._own.seen()[1].device)


def learned_criterion(config: PruneConfig | None) -> LearnedCriterion | None:
    """The criterion of a setting that has a loss of its own; None where it has none."""
    criterion = None if config is None else config.parts[0][0]
    return criterion if isinstance(criterion, LearnedCriterion) else None


@contextmanager
def method_loss(model: nn.Module, teacher: nn.Module | None = None) -> Iterator[MethodLoss]:
    """The loss of the method that a model is pruned by, beside the cross entropy, for training.

    In training mode a model pruned by a method with weights of its own decides as its paper trains it, and what its
    loss reads is gathered here. Which terms there are its criterion says: `KeepPredictor`, `entropatch.criteria`.

    Args:
        model: pruned by such a method, in training mode.
        teacher: a dense model whose tokens are to be learned from, where the method does so; it must be run on the same
            images inside the block, in evaluation mode, without gradients.

    Yields:
        A `MethodLoss`; its `value` is of the last forward pass.

    Raises:
        ValueError: the model is not pruned, or by a method without a loss of its own.
        UnsupportedModelError: its head reads patches, which training only masks. (Heads that a larger model puts around
            it, such as that of transformers' Dinov2ForImageClassification, are not looked at.)

    Example:
        >>> with entropatch.method_loss(model, teacher) as own:
        ...     logits = model(images)
        ...     with torch.no_grad():
        ...         taught = teacher(images).log_softmax(-1)
        ...     distance = F.kl_div(logits.log_softmax(-1), taught, reduction="batchmean", log_target=True)
        ...     loss = F.cross_entropy(logits, labels) + 0.5 * distance + own.value(labels)
        ...     loss.backward()
    """
    criterion = learned_criterion(pruning_config(model))
    if criterion is None:
        raise ValueError(
            f"the method {pruning_config(model).label} has no loss of its own; train it with the cross entropy alone."
        )
    if criterion.masks and pools_patches(pruned_part(model)):
        raise UnsupportedModelError(
            f"the head of this {type(pruned_part(model)).__name__} reads patches, so those that "
            f"{type(criterion).__name__} only masks in training would still be read; use a model that reads its class "
            "token (timm: global_pool='token')."
        )
    with ExitStack() as stack:
        if teacher is not None and not is_pruned(teacher):
            prune_(teacher, PruneConfig(keep_rate=1.0))  # whose outputs are those of the stock model
            stack.callback(unprune_, teacher)
        loss = MethodLoss(model, criterion, teacher)
        for one, passing in ((model, loss._own), (teacher, loss._taught)):
            if one is not None and passing is not None:
                stack.enter_context(among(pruning_of(one).observers.learners, passing))
        yield loss
