"""`StageRecord`: what one stage did in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from entropatch.surgery.reduced import Reduced
from entropatch.tokens import Plan, Tokens, gather_tokens, removed_indices


class StageRecord:
    """What one stage saw and did in one forward pass.

    Where images keep different numbers of tokens, rows are filled up at their end: with -1, or NaN for values.

    Attributes:
        block: 0-based block index.
        backend: which of `entropatch.kernels` was there to compute entropies.
        parts: what it did to images of one size each; one part unless the images differ.
    """

    parts: tuple[Reduced, ...]
    block: int
    backend: str

    def __init__(self, parts: Sequence[Reduced]):
        self.parts = tuple(parts)
        self.block, self.backend = parts[0].stage.block, parts[0].backend

    def __repr__(self) -> str:
        before, after = (short(counts) for counts in (self.counts_before, self.counts_after))
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
        return self._whole([_valid(_patches(part), part.before.valid, -1) for part in self.parts], -1)

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
        parts = self.parts
        return self._whole([_valid(gather_tokens(_patches(p), _kept(p)), p.after.valid, -1) for p in parts], -1)

    @property
    def dropped(self) -> Tensor:
        """Original numbers of the patches that do not stay, (batch, n - k), ascending; -1 for an appended token."""
        return self._whole([_of_removed(_patches(part), part, -1) for part in self.parts], -1)

    @property
    def dropped_tokens(self) -> Tensor:
        """The last values of those, after the attention residual, (batch, n - k, width)."""
        return self._whole([_of_removed(part.tokens, part, torch.nan) for part in self.parts], torch.nan)

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
        return self._counts([part.before for part in self.parts])

    @property
    def counts_after(self) -> int | list[int]:
        """Patch tokens that left the stage: one number, or each image's where they differ."""
        return self._counts([part.after for part in self.parts])

    def _counts(self, parts: list[Tokens]) -> int | list[int]:
        if parts[0].valid is not None:
            each = parts[0].valid.sum(1).tolist()
            return each[0] if len(set(each)) == 1 else each
        counts = [part.n for part in parts]
        if len(set(counts)) == 1:
            return counts[0]
        of_image = {row: n for part, n in zip(self.parts, counts, strict=True) for row in _rows(part)}
        return [of_image[row] for row in sorted(of_image)]

    def _whole(self, parts: Sequence[Tensor], fill: float) -> Tensor:
        """One tensor for each part as one for the batch, in its order."""
        if self.parts[0].rows is None:
            return parts[0]
        longest = max(part.shape[1] for part in parts)
        filled = [_filled(part, longest, fill) for part in parts]
        rows = torch.cat([part.rows for part in self.parts if part.rows is not None])
        return torch.cat(filled).index_select(0, rows.argsort())


def _patches(part: Reduced) -> Tensor:
    return part.before.original_positions(part.tokens)


def _kept(part: Reduced) -> Tensor:
    if part.plan is None:
        return torch.arange(part.before.n, device=part.tokens.device).expand(part.tokens.shape[0], -1)
    return part.plan.kept


def _of_removed(values: Tensor, part: Reduced, fill: float) -> Tensor:
    """What there is of the tokens that do not stay; filled up where images are, to the longest."""
    if part.before.valid is None or part.after.valid is None:
        return gather_tokens(values, removed_indices(_kept(part), part.before.n))
    gone = part.before.valid & ~torch.zeros_like(part.before.valid).scatter(1, _kept(part), part.after.valid)
    first = gone.float().argsort(dim=1, descending=True, stable=True)[:, : int(gone.sum(1).max())]
    return _valid(gather_tokens(values, first), gone.gather(1, first), fill)


def _valid(values: Tensor, valid: Tensor | None, fill: float) -> Tensor:
    if valid is None:
        return values
    return values.masked_fill(~valid.reshape(*valid.shape, *(1,) * (values.ndim - 2)), fill)


def _rows(part: Reduced) -> list[int]:
    return list(range(part.tokens.shape[0])) if part.rows is None else part.rows.tolist()


def _filled(x: Tensor, n: int, fill: float) -> Tensor:
    return nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (0, n - x.shape[1]), value=fill)


def short(counts: int | list[int]) -> str:
    """A count, or the range of the images'."""
    return str(counts) if isinstance(counts, int) else f"{min(counts)}…{max(counts)}"
