"""Recording a pruned model at work: `trace`, and `restore` back to the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.surgery.state import Reduced, among, pruning_of, this_thread, unwrap
from entropatch.tokens import Plan, gather_tokens, removed_indices


class StageRecord:
    """What one stage saw and did in one forward pass.

    Where images keep different numbers of tokens, rows are filled up at their end: with -1, or NaN for values.

    Attributes:
        block: 0-based block index.
        backend: which of `entropatch.kernels` was there to compute entropies.
        parts: what it did to images of one size each; one part unless the images differ.
    """

    def __init__(self, parts: Sequence[Reduced]):
        self.parts = tuple(parts)
        self.block, self.backend = parts[0].stage.block, parts[0].backend

    def __repr__(self) -> str:
        before, after = (_short(counts) for counts in (self.counts_before, self.counts_after))
        return f"StageRecord(block={self.block}, {before} -> {after} patch tokens)"

    @property
    def plans(self) -> list[Plan | None]:
        """What was done to the images of each part; None where all their tokens stayed."""
        return [part.plan for part in self.parts]

    @property
    def scores(self) -> Tensor | None:
        """Importance of every patch present, (batch, n); for `Renyi` the negated entropy in nats; None if unscored."""
        scores = [part.scores for part in self.parts if part.scores is not None]
        return self._whole(scores, torch.nan) if len(scores) == len(self.parts) else None

    @property
    def patches(self) -> Tensor:
        """Original patch number of each token present, (batch, n): of the patch whose place it takes; -1 for none."""
        return self._whole([part.before.original_positions(part.tokens) for part in self.parts], -1)

    @property
    def tokens(self) -> Tensor:
        """Values of the tokens present after the attention residual, (batch, n, width)."""
        return self._whole([part.tokens for part in self.parts], torch.nan)

    @property
    def kept_indices(self) -> Tensor:
        """Which of the tokens present stay, (batch, k), in the order they leave."""
        return self._whole([_kept(part) for part in self.parts], -1)

    @property
    def kept(self) -> Tensor:
        """Original numbers of the patches that stay, (batch, k), in the order they leave; -1 for an appended token."""
        return self._whole([gather_tokens(_patches(part), _kept(part)) for part in self.parts], -1)

    @property
    def dropped(self) -> Tensor:
        """Original numbers of the patches that do not stay, (batch, n - k), ascending; -1 for an appended token."""
        return self._whole([gather_tokens(_patches(part), _removed(part)) for part in self.parts], -1)

    @property
    def dropped_tokens(self) -> Tensor:
        """The last values of those, after the attention residual, (batch, n - k, width)."""
        return self._whole([gather_tokens(part.tokens, _removed(part)) for part in self.parts], torch.nan)

    @property
    def fused(self) -> bool:
        """Whether a token made of others was appended."""
        return self.appended > 0

    @property
    def appended(self) -> int:
        """How many tokens were appended."""
        return max(0 if part.plan is None else part.plan.extra for part in self.parts)

    @property
    def tokens_before(self) -> int:
        """Patch tokens that entered the stage, appended ones included; of the image that has most."""
        return max(part.before.n for part in self.parts)

    @property
    def tokens_after(self) -> int:
        """Patch tokens that left the stage, appended ones included; of the image that has most."""
        return max(part.after.n for part in self.parts)

    @property
    def counts_before(self) -> int | list[int]:
        """Patch tokens that entered the stage: one number, or each image's where they differ."""
        return self._counts([part.before.n for part in self.parts])

    @property
    def counts_after(self) -> int | list[int]:
        """Patch tokens that left the stage: one number, or each image's where they differ."""
        return self._counts([part.after.n for part in self.parts])

    def _counts(self, counts: list[int]) -> int | list[int]:
        if len(set(counts)) == 1:
            return counts[0]
        of_image = {row: n for part, n in zip(self.parts, counts, strict=True) for row in _rows(part)}
        return [of_image[row] for row in sorted(of_image)]

    def _whole(self, parts: Sequence[Tensor], fill: float) -> Tensor:
        """One tensor for each part as one for the batch, in its order."""
        if len(parts) == 1:
            return parts[0]
        longest = max(part.shape[1] for part in parts)
        filled = [_filled(part, longest, fill) for part in parts]
        rows = torch.cat([part.rows for part in self.parts if part.rows is not None])
        return torch.cat(filled).index_select(0, rows.argsort())


class Trace:
    """What every stage did in the most recent forward pass under `entropatch.trace`.

    Attributes:
        config: the pruning setting of the last forward pass.
        grid: (H, W), the patch grid of the last input; None before the first forward pass.
        stages: one `StageRecord` per pruning block, in order.
        num_prefix_tokens: class, distillation and register tokens before the patches.
        thread: identifier of the thread that opened the trace, whose forward passes it records.
    """

    def __init__(self, config: PruneConfig, num_prefix_tokens: int, norm: nn.Module):
        self.config = config
        self.num_prefix_tokens = num_prefix_tokens
        self.grid: tuple[int, int] | None = None
        self.thread = this_thread()
        self._norm = norm
        self._reduced: list[Reduced] = []

    def __repr__(self) -> str:
        if self.grid is None:
            return "Trace(no forward pass yet)"
        counts = " -> ".join(_short(counts) for counts in self.counts)
        return f"Trace({self.grid[0]}×{self.grid[1]} patches, {self.config.label}, {counts or 'no stages'})"

    def begin(self, config: PruneConfig, grid: tuple[int, int], num_prefix_tokens: int) -> None:
        """Used by the model: a forward pass begins, and what was recorded before is forgotten."""
        self.config, self.grid, self.num_prefix_tokens = config, grid, num_prefix_tokens
        self._reduced = []

    def end(self, reduced: list[Reduced]) -> None:
        """Used by the model: what the stages did. Of passes inside one another the outermost ends last, and counts."""
        self._reduced = reduced

    @property
    def stages(self) -> list[StageRecord]:
        by_block: dict[int, list[Reduced]] = {}
        for reduced in self._reduced:
            by_block.setdefault(reduced.stage.block, []).append(reduced)
        return [StageRecord(by_block[block]) for block in sorted(by_block)]

    @property
    def kept(self) -> list[Tensor]:
        """Original numbers of the patches kept after each stage: a list of (batch, k)."""
        return [stage.kept for stage in self.stages]

    @property
    def scores(self) -> list[Tensor | None]:
        """Importance of the patches present at each stage: a list of (batch, n)."""
        return [stage.scores for stage in self.stages]

    @property
    def counts(self) -> list[int | list[int]]:
        """Tokens at the input and after each stage, such as [196, 138, 97, 68]; of each image where they differ."""
        stages = self.stages
        return [stages[0].counts_before, *(stage.counts_after for stage in stages)] if stages else []

    def restore(self, tokens: Tensor, fill: Tensor | float | str, normed: bool) -> Tensor:
        """See `entropatch.restore`."""
        if isinstance(fill, str) and fill != "last":
            raise ValueError(f'fill must be "last", a number or a tensor of width C, but got {fill!r}.')
        if self.grid is None or not self._reduced:
            raise ValueError("the trace is empty; run the model inside `with entropatch.trace(model) as trace:` first.")
        stages = self.stages
        height, width = self.grid
        if stages[0].tokens_before != height * width:
            raise ValueError(
                f"the first stage saw {stages[0].tokens_before} patches of a {height}×{width} grid: tokens were lost "
                "before it (timm's patch dropout in training mode), so their places are not known; use model.eval()."
            )
        if tokens.ndim != 3:
            raise ValueError(f"tokens must be (batch, tokens, width), but got shape {tuple(tokens.shape)}.")
        if tokens.shape[1] == stages[-1].tokens_after + self.num_prefix_tokens:
            tokens = tokens[:, self.num_prefix_tokens :]
        if not isinstance(fill, str):
            fill = torch.as_tensor(fill, dtype=tokens.dtype, device=tokens.device)
            if fill.shape not in ((), tokens.shape[2:]):
                raise ValueError(
                    f"fill must be a number or a tensor of width {tokens.shape[2]}, but got shape {tuple(fill.shape)}."
                )
        norm = self._norm if normed else nn.Identity()
        dense = to_grid(tokens, self._reduced, None if isinstance(fill, str) else fill, norm)
        return dense.reshape(dense.shape[0], height, width, dense.shape[2])


def to_grid(
    tokens: Tensor, reduced: Sequence[Reduced], fill: Tensor | None, norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """Patch tokens put back on all patches: (batch, n, C) -> (batch, H·W, C).

    Each patch shows the token that stands for it. Where none does it shows the last value of the one that did, through
    `norm`, or `fill`.

    Args:
        tokens: as they left the last of the stages in `reduced`, without prefix tokens; rows may be filled up.
        reduced: what the stages did, in order.
        fill: a number or (C,); None for the last value.
        norm: what the last values are put through.

    Raises:
        ValueError: the tokens are not those that left the last stage.
    """
    if not reduced:
        return tokens
    total = reduced[0].before.total
    batch = sum(part.tokens.shape[0] for part in reduced if part.stage.block == reduced[0].stage.block)
    places = torch.arange(total, device=tokens.device).expand(batch, -1)
    canvas = tokens.new_zeros(batch, total, tokens.shape[2])
    if fill is not None:
        canvas = canvas + fill
    for part in reduced:
        before, after = part.before.original_places(part.tokens), part.after.original_places(part.tokens)
        places = after if part.rows is None else places.index_copy(0, part.rows, after)
        if fill is None and part.plan is not None:
            last = gather_tokens(norm(part.tokens), before.clamp_min(0)).to(canvas.dtype)
            gone = ((before >= 0) & (after < 0))[..., None]
            if part.rows is None:
                canvas = torch.where(gone, last, canvas)
            else:
                canvas = canvas.index_copy(0, part.rows, torch.where(gone, last, canvas.index_select(0, part.rows)))
    expected = _tokens_after(reduced)
    if tokens.shape[:2] != (batch, expected):
        raise ValueError(
            f"tokens must be the {expected} patch tokens of {batch} images that the trace saw last, but got shape "
            f"{tuple(tokens.shape)}; restore before the next forward pass."
        )
    return torch.where((places >= 0)[..., None], gather_tokens(tokens, places.clamp_min(0)), canvas)


def _tokens_after(reduced: Sequence[Reduced]) -> int:
    """Patch tokens of the image that has most of them after the last stage."""
    last = reduced[-1].stage.block
    return max(part.after.n for part in reduced if part.stage.block == last)


def _patches(part: Reduced) -> Tensor:
    return part.before.original_positions(part.tokens)


def _kept(part: Reduced) -> Tensor:
    if part.plan is None:
        return torch.arange(part.before.n, device=part.tokens.device).expand(part.tokens.shape[0], -1)
    return part.plan.kept


def _removed(part: Reduced) -> Tensor:
    return removed_indices(_kept(part), part.before.n)


def _rows(part: Reduced) -> list[int]:
    return list(range(part.tokens.shape[0])) if part.rows is None else part.rows.tolist()


def _filled(x: Tensor, n: int, fill: float) -> Tensor:
    return nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (0, n - x.shape[1]), value=fill)


def _short(counts: int | list[int]) -> str:
    """A count, or the range of the images'."""
    return str(counts) if isinstance(counts, int) else f"{min(counts)}…{max(counts)}"


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Record the scores, kept patches and counts of every pruning stage while the block runs.

    The trace holds the most recent forward pass and stays readable afterwards; where a hook or a criterion runs the
    model again meanwhile, that of the outer pass. At `keep_rate=1` the scores are recorded too, and the output remains
    the stock model's. Works on a model compiled after pruning. A trace records the forward passes of the thread that
    opened it. It keeps the tokens of every stage, and their graph where gradients are on, until it is dropped.

    Args:
        model: a pruned model, or the `torch.compile` of one.

    Yields:
        A `Trace`.

    Raises:
        ValueError: the model is not pruned.

    Example:
        >>> with entropatch.trace(model) as trace:
        ...     model(images)
        >>> trace.counts
        [196, 138, 97, 68]
    """
    pruning, target = pruning_of(model), unwrap(model)
    recorder = Trace(pruning.config, pruning.adapter.num_prefix_tokens(target), pruning.adapter.norm(target))
    with among(pruning.observers.traces, recorder):
        yield recorder


def restore(tokens: Tensor, trace: Trace, fill: Tensor | float | str = "last", normed: bool = True) -> Tensor:
    """Pruned tokens back on the dense grid.

    A patch shows the token that stands for it: its own, or the one it was merged into.

    Args:
        tokens: (batch, tokens, C) as `forward_features` returned them, with or without the prefix tokens.
        trace: the trace that was open during that forward pass.
        fill: what stands where a patch was pruned: "last", the last value it had (in the block that pruned it, after
            the attention residual); or a number; or a tensor of width C.
        normed: whether `tokens` went through the model's final norm, as those of `forward_features` did; the "last"
            values then go through it too.

    Returns:
        (batch, H, W, C) in raster order.

    Raises:
        ValueError: the trace is empty, or belongs to another forward pass.
    """
    return trace.restore(tokens, fill, normed)
