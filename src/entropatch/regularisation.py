"""Attention entropy as a term of the training loss: `entropy_penalty`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.entropy import check_order, without_autocast
from entropatch.surgery import block_count, watch
from entropatch.surgery.heads import fewest_heads
from entropatch.surgery.watching import checked_numbers
from entropatch.tokens import Tokens

SIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "both": torch.square,
    "above": lambda distance: distance.clamp(min=0).square(),
    "below": lambda distance: distance.clamp(max=0).square(),
}


class EntropyPenalty:
    """What `entropy_penalty` gathers while a model runs.

    Attributes:
        blocks: of which entropies were taken so far, ascending.
    """

    def __init__(self, target: float, heads: Sequence[int] | None, order: float, side: str):
        self._target, self._heads, self._order, self._distance = target, heads, order, SIDES[side]
        # By block, for each group of images that went through together: the penalty summed over them, (heads,), their
        # entropies likewise, and how many they are.
        self._seen: dict[int, list[tuple[Tensor, Tensor, int]]] = {}
        self._differentiated = False

    @property
    def blocks(self) -> list[int]:
        return sorted(self._seen)

    @property
    def means(self) -> dict[int, Tensor]:
        """By block, the mean normalised entropy of each head over images and patches, (heads,), without gradients.

        0 where every patch attends to one patch, 1 where all attend evenly; heads that collapse show here.
        """
        return {block: _mean([(entropy, images) for _, entropy, images in self._seen[block]]) for block in self.blocks}

    @property
    def value(self) -> Tensor:
        """The penalty, a scalar in float32 on the model's device, to be added to the loss with a weight.

        Raises:
            RuntimeError: the model has not run inside the `with` block; or it ran without gradients while they were on
                outside, as PyTorch's reentrant checkpointing does, so that the penalty would teach nothing.
        """
        if not self._seen:
            raise RuntimeError(
                "the penalty is of a forward pass inside `with entropy_penalty(...)`, but none ran; call the model "
                "there."
            )
        terms = [_mean([(term, images) for term, _, images in self._seen[block]]) for block in self.blocks]
        value = torch.stack(terms).mean()
        if self._differentiated and torch.is_grad_enabled() and not value.requires_grad:
            raise RuntimeError(
                "the model ran without gradients, so the penalty has none; use checkpointing with use_reentrant=False."
            )
        return value

    def _look(self, attention: BlockAttention, tokens: Tokens) -> None:
        with without_autocast(attention.q):
            entropy = attention.entropy(self._order).float()
        if self._heads is not None:
            entropy = entropy[:, list(self._heads)]
        by_image = _normalised(entropy, tokens.valid)
        term = self._distance(by_image - self._target).sum(0)
        # Checkpointing runs the block again during the backward pass: the same operations, of a term counted already.
        if torch._C._current_graph_task_id() == -1:
            self._seen.setdefault(attention.block, []).append((term, by_image.detach().sum(0), len(by_image)))


def _normalised(entropy: Tensor, valid: Tensor | None) -> Tensor:
    """The mean over patches over log n, (batch, heads), of (batch, heads, n); of the `valid` ones, the rest padding."""
    if entropy.shape[-1] == 0:  # all patches are gone
        return entropy.new_zeros(entropy.shape[:-1])
    if valid is None:
        return entropy.mean(-1) / math.log(max(entropy.shape[-1], 2))
    count = valid.sum(1, keepdim=True).to(entropy.dtype)
    return entropy.masked_fill(~valid[:, None], 0.0).sum(-1) / count.clamp(min=1) / count.clamp(min=2).log()


def _mean(sums: Sequence[tuple[Tensor, int]]) -> Tensor:
    """The mean over images, of sums over some of them and how many those are."""
    return torch.stack([part for part, _ in sums]).sum(0) / max(sum(images for _, images in sums), 1)


@contextmanager
def entropy_penalty(
    model: nn.Module,
    *,
    target: float,
    blocks: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    order: float = 1.0,
    side: str = "both",
) -> Iterator[EntropyPenalty]:
    """A penalty on the attention entropy of a model, for training.

        penalty = mean over blocks, images, heads of  g(e - target),    e = mean over patches of H_α(p_i) / log n

    with H_α the entropy of a patch's attention over the n patches present, as the criterion `Renyi(order)` takes it, so
    that e lies in [0, 1] whatever the number of patches; g(x) = x² ("both"), max(x, 0)² ("above": entropy above the
    target is penalised) or min(x, 0)² ("below"). The target is one of the mean over patches, so that patches may
    differ, which pruning lives by. Its gradient reaches queries and keys, and is computed without the n×n matrix. Zhai
    et al. (2023) describe how training goes with collapsing entropy: watch `means`.

    Args:
        model: as `entropatch.prune_` takes it, stock or pruned; pruned, its remaining patches count.
        target: of the normalised entropy, in [0, 1].
        blocks: 0-based; None means all.
        heads: 0-based; None means all.
        order: α, in (0, ∞].
        side: "both", "above" or "below".

    Yields:
        An `EntropyPenalty`; its `value` is the penalty over all images of the forward passes inside the `with` block.

    Raises:
        ValueError, TypeError: a setting out of range, when the block is entered. UnsupportedModelError: as of `watch`.

    Example:
        >>> with entropatch.entropy_penalty(model, target=0.6, blocks=(3, 6, 9)) as penalty:
        ...     loss = F.cross_entropy(model(images), labels) + 0.1 * penalty.value
        ...     loss.backward()  # inside, which gradient checkpointing asks for
    """
    if isinstance(target, bool) or not isinstance(target, Real) or not 0 <= target <= 1:
        raise ValueError(f"target must be a number in [0, 1], a share of log n, but got {target!r}.")
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}, but got {side!r}.")
    blocks = _chosen("blocks", blocks, block_count(model))
    penalty = EntropyPenalty(float(target), None, check_order(order), side)
    penalty._differentiated = any(parameter.requires_grad for parameter in model.parameters())
    with watch(model, blocks, penalty._look, gradients=True):
        # How many there are is told by a model that is watched.
        penalty._heads = _chosen("heads", heads, fewest_heads(model, blocks))
        yield penalty


def _chosen(name: str, given: Any, count: int | None) -> tuple[int, ...] | None:
    """As `checked_numbers`; None for all, and at least one."""
    numbers = None if given is None else checked_numbers(name, given, count)
    if numbers == ():
        raise ValueError(f"{name} must be numbers such as (0, 2), or None for all, but got none.")
    return numbers
