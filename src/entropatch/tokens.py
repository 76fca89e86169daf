"""What becomes of tokens: indices, the `Plan` of one reduction, and what the `Tokens` of one forward pass stand for.

Shapes: x (batch, n, width) without prefix tokens, indices (batch, k) among the n patch tokens present. An index of -1
stands for "none". Pure functions on tensors and frozen values; nothing here is stored on a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


def select(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest scores, ascending so that kept tokens stay in raster order: (batch, n) -> (batch, k).

    Ties go to the lower index, see `highest`.
    """
    return highest(scores, k).sort(dim=1).values


def split(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What `select` keeps and all others, both ascending: (batch, n) -> (batch, k), (batch, n - k)."""
    order = highest(scores, scores.shape[1])
    return order[:, :k].sort(dim=1).values, order[:, k:].sort(dim=1).values


def highest(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest scores, the highest first: (batch, n) -> (batch, k).

    Ties go to the lower index on every device (a stable sort; `topk` breaks ties differently on CPU and GPU), and in
    ONNX files, which have no stable sort, but whose TopK gives ties to the lower index by the standard.
    """
    if torch.onnx.is_in_onnx_export():
        return scores.topk(k, dim=1).indices
    return scores.argsort(dim=1, descending=True, stable=True)[:, :k]


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens at the given indices: (batch, n, …) and (batch, k) -> (batch, k, …)."""
    if tokens.ndim == 2:
        return tokens.gather(1, indices)
    if tokens.device.type != "cpu":
        index = indices.reshape(*indices.shape, *(1,) * (tokens.ndim - 2))
        return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))
    # `gather` picks single numbers, which takes a CPU ten times as long as whole rows; of their numbers it is asked, so
    # that it refuses an index out of range.
    batch, n = tokens.shape[:2]
    rows = torch.arange(batch * n, device=indices.device).view(batch, n).gather(1, indices)
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, indices.shape)


def scatter_tokens(canvas: Tensor, tokens: Tensor, indices: Tensor) -> Tensor:
    """`canvas` (batch, n, …) with `tokens` (batch, k, …) written at `indices` (batch, k); out of place."""
    index = indices.reshape(*indices.shape, *(1,) * (tokens.ndim - 2)).expand_as(tokens)
    return canvas.scatter(1, index, tokens.to(canvas.dtype))


def removed_indices(kept: Tensor, n: int) -> Tensor:
    """The indices that are not kept, ascending: (batch, k) -> (batch, n - k)."""
    gone = torch.ones(kept.shape[0], n, dtype=torch.bool, device=kept.device).scatter(1, kept, 0)
    return select(gone.float(), n - kept.shape[1])


@dataclass(frozen=True)
class Plan:
    """What one reduction does to the n patch tokens of a block; everything downstream reads it and nothing else.

    The tokens that leave are the kept ones, in the order of `kept`, then the appended ones:

        y_j = weights_j · x_kept_j + Σ_{i: targets_i = j} shares_i · x_sources_i        j < k
        y_{k + e} = Σ_i appended_{e, i} · x_i                                           e = 0, 1, …

    Attributes:
        kept: indices of the tokens that stay, (batch, k); ascending unless the reduction has an order of its own.
        sources: indices of the tokens that are merged into kept ones, (batch, m); None if none is.
        targets: which of the kept tokens each source becomes part of, (batch, m), 0 … k - 1.
        weights: share of each kept token in itself, (batch, k), float32; 1 for those nothing is merged into.
        shares: share of each source in its target, (batch, m), float32.
        appended: weights of the tokens appended, (batch, e, n); such a token stands at no place of the grid.
    """

    kept: Tensor
    sources: Tensor | None = None
    targets: Tensor | None = None
    weights: Tensor | None = None
    shares: Tensor | None = None
    appended: Tensor | None = None

    @property
    def extra(self) -> int:
        """How many tokens are appended."""
        return 0 if self.appended is None else self.appended.shape[1]

    @property
    def n(self) -> int:
        """How many tokens leave."""
        return self.kept.shape[1] + self.extra

    def apply(self, x: Tensor) -> Tensor:
        """The tokens that leave: (batch, n, width) -> (batch, k + e, width)."""
        y = gather_tokens(x, self.kept)
        if self.sources is not None and self.targets is not None:
            assert self.weights is not None
            assert self.shares is not None
            moved = gather_tokens(x, self.sources) * self.shares[..., None].to(x.dtype)
            index = self.targets[..., None].expand_as(moved)
            y = (y * self.weights[..., None].to(x.dtype)).scatter_add(1, index, moved)
        if self.appended is not None:
            y = torch.cat((y, torch.einsum("ben,bnc->bec", self.appended.to(x.dtype), x)), dim=1)
        return y

    def target(self, n: int) -> Tensor:
        """Where each of the n tokens present goes: the index of the token that stands for it, or -1: (batch, n).

        A token that went into an appended one stands nowhere any more.
        """
        batch, k = self.kept.shape
        order = torch.arange(k, device=self.kept.device).expand(batch, -1)
        target = torch.full((batch, n), -1, dtype=torch.int64, device=self.kept.device).scatter(1, self.kept, order)
        if self.sources is not None and self.targets is not None:
            target = target.scatter(1, self.sources, self.targets)
        return target


@dataclass(frozen=True)
class Tokens:
    """What the patch tokens of one forward pass stand for; handed from block to block.

    Attributes:
        num_prefix_tokens: class, distillation and register tokens before the patches; never scored, always there.
        n: patch tokens present, appended ones included.
        total: patches that entered the first block.
        positions: the original patch whose position each token takes, (batch, n), -1 for an appended token; None while
            every token stands where it stood.
        places: the index of the token that stands for each original patch, (batch, total), or -1 where none does; None
            while each stands for itself, or if nobody asked for it.
        sizes: how many patches each token stands for, (batch, n), float32; None while it is one.
        carried: what a method hands from block to block, by name; each (batch, n, …), reduced as the tokens are. One
            that others are merged into keeps its own; an appended one has the mean of its tokens by their weights.
        followed: whether `places` is kept up to date.
        valid: which tokens stand for patches, (batch, n) bool; the others fill up images that have fewer. None: all do.
        grid: (H, W), or (T, H, W) of a video, the grid of patches that `positions` number row by row; None where patch
            dropout left some out.
        mask: how much each token, prefix tokens included, counts as a key for the others, (batch, prefix + n), 0 or 1,
            with gradients, while a method learns which tokens to drop; None: all do.
        mask_epsilon: as in `entropatch.attention.masked_softmax`.
        states: what a method hands from block to block of each image, by name; each (batch, …).
        parked: tokens that wait until they are joined again, (batch, m, width), and the original patches at which they
            stand, (batch, m); None where none does.
    """

    num_prefix_tokens: int
    n: int
    total: int
    positions: Tensor | None = None
    places: Tensor | None = None
    sizes: Tensor | None = None
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    followed: bool = False
    valid: Tensor | None = None
    grid: tuple[int, ...] | None = None
    mask: Tensor | None = None
    mask_epsilon: float = 0.0
    states: Mapping[str, Tensor] = field(default_factory=dict)
    parked: tuple[Tensor, Tensor] | None = None

    def after(self, plan: Plan) -> Tokens:
        """What the tokens stand for once the plan was carried out."""
        batch = plan.kept.shape[0]
        positions = plan.kept if self.positions is None else gather_tokens(self.positions, plan.kept)
        if plan.extra:
            positions = torch.cat((positions, positions.new_full((batch, plan.extra), -1)), dim=1)
        valid = self._valid_after(plan)
        return replace(
            self,
            n=plan.n,
            positions=positions if valid is None else torch.where(valid, positions, -1),
            places=self._places_after(plan, valid) if self.followed else None,
            valid=valid,
            sizes=self._sizes_after(plan),
            carried={name: _carried_after(values, plan) for name, values in self.carried.items()},
            mask=self._mask_after(plan),
        )

    def original_positions(self, like: Tensor) -> Tensor:
        """`positions`, written out: (batch, n), int64, on the device of `like` (batch, …)."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.n, device=like.device).expand(like.shape[0], -1)

    def take(self, rows: Tensor) -> Tokens:
        """Those of some images: `rows` (images,) are their numbers in the batch."""

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.index_select(0, rows)

        carried = {name: values.index_select(0, rows) for name, values in self.carried.items()}
        states = {name: values.index_select(0, rows) for name, values in self.states.items()}
        parked = self.parked
        return replace(
            self,
            mask=of(self.mask),
            states=states,
            parked=None if parked is None else (parked[0].index_select(0, rows), parked[1].index_select(0, rows)),
            positions=of(self.positions),
            places=of(self.places),
            sizes=of(self.sizes),
            carried=carried,
            valid=of(self.valid),
        )

    def original_places(self, like: Tensor) -> Tensor:
        """`places`, written out: (batch, total), int64, on the device of `like` (batch, …)."""
        if self.places is not None:
            return self.places
        return torch.arange(self.total, device=like.device).expand(like.shape[0], -1)

    def key_bias(self) -> Tensor | None:
        """log size of every token, (batch, prefix + n), for proportional attention; None where all sizes are 1."""
        if self.sizes is None:
            return None
        return torch.nn.functional.pad(self.sizes.log(), (self.num_prefix_tokens, 0))

    def padding_bias(self) -> Tensor | None:
        """-inf for every token that only fills up, else 0: (batch, prefix + n); None where none does."""
        if self.valid is None:
            return None
        bias = torch.zeros(self.valid.shape, device=self.valid.device).masked_fill(~self.valid, -torch.inf)
        return torch.nn.functional.pad(bias, (self.num_prefix_tokens, 0))

    def mask_bias(self) -> Tensor | None:
        """-inf for every token that the mask leaves out, else 0: (batch, prefix + n); None without a mask."""
        if self.mask is None:
            return None
        return torch.zeros_like(self.mask, dtype=torch.float32).masked_fill(self.mask.detach() == 0, -torch.inf)

    def _valid_after(self, plan: Plan) -> Tensor | None:
        if self.valid is None:
            return None
        valid = gather_tokens(self.valid, plan.kept)
        return torch.nn.functional.pad(valid, (0, plan.extra), value=True)

    def _mask_after(self, plan: Plan) -> Tensor | None:
        """An appended token counts fully."""
        if self.mask is None:
            return None
        prefix = self.num_prefix_tokens
        mask = torch.cat((self.mask[:, :prefix], gather_tokens(self.mask[:, prefix:], plan.kept)), dim=1)
        return torch.nn.functional.pad(mask, (0, plan.extra), value=1.0)

    def _places_after(self, plan: Plan, valid: Tensor | None) -> Tensor:
        target = plan.target(self.n)
        if valid is not None:
            target = torch.where((target >= 0) & gather_tokens(valid, target.clamp_min(0)), target, -1)
        if self.places is None:
            return target
        return torch.where(self.places < 0, -1, target.gather(1, self.places.clamp_min(0)))

    def _sizes_after(self, plan: Plan) -> Tensor | None:
        if self.sizes is None and plan.sources is None:
            return None
        batch = plan.kept.shape[0]
        ones = torch.ones(batch, self.n, dtype=torch.float32, device=plan.kept.device)
        sizes = ones if self.sizes is None else self.sizes
        after = gather_tokens(sizes, plan.kept)
        if plan.sources is not None and plan.targets is not None:
            after = after.scatter_add(1, plan.targets, gather_tokens(sizes, plan.sources))
        if plan.extra:
            after = torch.cat((after, after.new_ones(batch, plan.extra)), dim=1)
        return after


def _carried_after(values: Tensor, plan: Plan) -> Tensor:
    kept = gather_tokens(values, plan.kept)
    if plan.appended is None:
        return kept
    shares = plan.appended / plan.appended.sum(2, keepdim=True)
    mean = torch.einsum("ben,bn...->be...", shares.to(values.dtype), values)
    return torch.cat((kept, mean), dim=1)
