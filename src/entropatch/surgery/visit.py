"""One visit of a block: its attention is looked at and scored, then its tokens are reduced. Names no model library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.config import Stage
from entropatch.criteria import Criterion
from entropatch.priorities import preferring
from entropatch.surgery.counting import allowed, asked, least, within
from entropatch.surgery.outcome import Outcome, covered, ranked_within, site_of
from entropatch.surgery.plan_check import checked_counts, checked_plan, checked_scores, checked_state
from entropatch.surgery.state import Watch
from entropatch.tokens import Plan, Tokens

PLAN = tuple(field.name for field in fields(Plan))


class Visit:
    """What one block has to do beside its own computation, in one forward pass.

    Args:
        block: 0-based.
        tokens: what the tokens that enter stand for.
        stage: how the block reduces; None if it only computes.
        proportional: whether its attention counts a token as often as it stands for patches.
        watches: who looks at its attention.
        recorded: whether the scores are wanted even where all tokens stay.
        has_class_token, backend: as in `BlockAttention`.
        rows: numbers of these images in the batch, (images,); None for the whole batch.
        followers: criteria that are shown every block, by their `state_key`.
        projection: the attention's output projection, if somebody may ask for it; see `Adapter.output_projection`.

    Attributes:
        tokens: as given; once the attention was seen, with what the followers hand on.
        scores: importance of the patches, (batch, n), once scored; None where no criterion is asked.
        outcomes: what became of the tokens, once reduced; one entry, or one for each size that images keep.
        patches: values of the patch tokens before the reduction, (batch, n, width), if `recorded`.
        backend: which of `entropatch.kernels` was there to compute entropies.
        opened: whether tokens left, or came back, right before the block.
    """

    block: int
    stage: Stage | None
    rows: Tensor | None
    followers: Mapping[str, Criterion]
    projection: Tensor | None
    watches: Sequence[Watch]
    recorded: bool
    has_class_token: bool
    backend: str

    def __init__(
        self,
        block: int,
        tokens: Tokens,
        stage: Stage | None,
        *,
        proportional: bool = False,
        watches: Sequence[Watch] = (),
        recorded: bool = False,
        has_class_token: bool = False,
        backend: str = "auto",
        rows: Tensor | None = None,
        followers: Mapping[str, Criterion] | None = None,
        projection: Tensor | None = None,
    ):
        self.block, self.tokens, self.stage, self.rows = block, tokens, stage, rows
        self.followers, self.projection, self._entered = followers or {}, projection, tokens
        self.watches, self.recorded, self.has_class_token, self.backend = watches, recorded, has_class_token, backend
        self.key_bias: Tensor | None = tokens.key_bias() if proportional else None
        # Known before the scores, unless it depends on them.
        self.k: int | None = tokens.n if stage is None else None
        self._valid_counts: Tensor | None = None  # of each image, where some are filled up
        if stage is not None and not stage.schedule.per_image:
            self.k = self._most() if tokens.valid is None else self._most_valid(tokens.valid)
        elif stage is not None and stage.schedule.uses_keep_rate and stage.keep_rate == 1 and tokens.valid is None:
            self.k = tokens.n  # whatever the scores: the stock model
        self.scores: Tensor | None = None
        self.outcomes: list[Outcome] = [Outcome(None, None, tokens.n)]
        self.patches: Tensor | None = None
        self._counts: Tensor | None = None
        self._chosen: Tensor | None = None
        self._attention: BlockAttention | None = None
        self._seen = self.opened = False

    @property
    def keeps_all(self) -> bool:
        """Whether the block computes as in the stock model, to the last bit; it may be looked at all the same."""
        plain = self.key_bias is None and not self._trimmed and self.tokens.mask is None
        return plain and self.k is not None and self.k == self.tokens.n

    @property
    def _trimmed(self) -> bool:
        return self._valid_counts is not None

    @property
    def is_idle(self) -> bool:
        """Whether the block has nothing to do beside its own computation."""
        looked_at = self.watches or self.followers
        return self.keeps_all and not looked_at and (self.stage is None or not self.recorded)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout: float, fused: bool
    ) -> BlockAttention:
        """The block's attention from its queries, keys and values (batch, heads, tokens, head width)."""
        key_bias = self.key_bias
        for bias in (self.tokens.padding_bias(), self.tokens.mask_bias()):
            if bias is not None:
                key_bias = bias if key_bias is None else key_bias + bias
        return BlockAttention(
            q,
            k,
            v,
            scale=scale,
            num_prefix_tokens=self.tokens.num_prefix_tokens,
            has_class_token=self.has_class_token,
            dropout=dropout,
            block=self.block,
            backend=self.backend,
            output_wanted=fused and not self.keeps_all,
            key_bias=key_bias,
            positions=self._entered.positions,
            total=self._entered.total,
            carried={key: self._entered.carried[key] for key in self.followers if key in self._entered.carried},
            projection=self.projection,
            mask=self.tokens.mask,
            mask_epsilon=self.tokens.mask_epsilon,
        )

    def see(self, attention: BlockAttention) -> None:
        """Look at the attention, and score the patches.

        A block that runs again for its gradients keeps what it kept, and is looked at only for gradients' sake.
        """
        again, self._seen = self._seen, True
        if self.followers:
            self._follow(attention, again)
        for watch in self.watches:
            if again and not watch.gradients:
                continue
            with torch.set_grad_enabled(watch.gradients and torch.is_grad_enabled()):
                watch.look(attention, self.tokens)
        self._attention, self.backend = attention, attention.backend
        stage = self.stage
        if stage is None or (self.keeps_all and not self.recorded):
            return
        with torch.no_grad():
            if stage.reduction.needs_scores:
                # Asked again all the same: it may draw random numbers, and dropout those that follow.
                shape = attention.q.shape[0], self.tokens.n
                scores = checked_scores(stage.criterion, stage.criterion.importance(attention), shape)
                if self.tokens.valid is not None:
                    scores = scores.masked_fill(~self.tokens.valid, -torch.inf)
                self.scores = self.scores if again else scores
            if stage.schedule.per_image:
                self._count(stage, attention, again)

    def reduce(self, x: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
        """What `then` makes of the tokens that stay, of those after the attention residual (batch, prefix + n, width).

        Images that keep different numbers go through it in groups of one size; their results are padded to the largest.
        """
        if self._attention is None:
            raise RuntimeError(f"block {self.block} reduced its tokens before its attention was seen.")
        stage, attention, prefix = self.stage, self._attention, self.tokens.num_prefix_tokens
        self._attention = None
        if stage is None:
            return then(x)
        patches = x[:, prefix:]
        if self.recorded:
            self.patches = patches
        if self._counts is not None:
            return self._reduce_groups(x, stage, attention, self._counts, then)
        assert self.k is not None
        if self.k == self.tokens.n and not self._trimmed:
            return then(x)
        priorities = self._priorities(stage)
        plan = checked_plan(stage.reduction, attention, self.tokens, priorities, self.k)
        self.outcomes = [Outcome(None, plan, plan.n, ranked_within(priorities, self._valid_counts))]
        return then(torch.cat((x[:, :prefix], plan.apply(patches)), dim=1))

    def again(self) -> Visit:
        """A visit of the same block by the same tokens, with nothing done yet."""
        return Visit(
            self.block,
            self._entered,
            self.stage,
            proportional=self.key_bias is not None,
            watches=self.watches,
            recorded=self.recorded,
            has_class_token=self.has_class_token,
            backend=self.backend,
            rows=self.rows,
            followers=self.followers,
            projection=self.projection,
        )

    def pack(self) -> tuple[Tensor | None, ...]:
        """What was found out, as tensors, where all images keep equally many tokens."""
        (outcome,) = self.outcomes
        plan = outcome.plan
        parts = (None,) * len(PLAN) if plan is None else tuple(getattr(plan, name) for name in PLAN)
        return self.scores, self.patches, *parts, *(self.tokens.carried[key] for key in self.followers)

    def unpack(self, packed: Sequence[Tensor | None]) -> None:
        """Take over what another visit packed."""
        self.scores, self.patches, *others = packed
        parts, carried = others[: len(PLAN)], others[len(PLAN) :]
        if (kept := parts[0]) is not None:
            plan = Plan(kept, *parts[1:])
            self.outcomes = [Outcome(None, plan, plan.n)]
        handed = {key: values for key, values in zip(self.followers, carried, strict=True) if values is not None}
        self.tokens: Tokens = replace(self._entered, carried={**self._entered.carried, **handed})

    def _follow(self, attention: BlockAttention, again: bool) -> None:
        """Let the followers look, and hand on what they say; what they said first where the block runs again."""
        with torch.no_grad():
            for key, criterion in self.followers.items():
                values = checked_state(criterion, criterion.follow(attention), (attention.q.shape[0], self.tokens.n))
                attention.carried = {**attention.carried, key: values}
        if not again:
            self.tokens = replace(self._entered, carried=attention.carried)

    def _count(self, stage: Stage, attention: BlockAttention, again: bool) -> None:
        """Ask a schedule that reads the scores how many patches of each image stay, and which if it says."""
        assert self.scores is not None
        schedule, site, shape = stage.schedule, site_of(stage, self.tokens), (attention.q.shape[0], self.tokens.n)
        if schedule.reads == "level" and self.tokens.valid is not None:
            raise ValueError(
                f"{type(schedule).__name__} compares images by levels, which padding would move; give images of one "
                "size, or another schedule."
            )
        read = getattr(stage.criterion, schedule.reads)(self.scores)
        read = checked_scores(stage.criterion, read, shape, schedule.reads)
        chosen = schedule.chosen(site, read)
        counts = schedule.count(site, read) if chosen is None else chosen.sum(1)
        if not again:
            counts = schedule.rounded(checked_counts(schedule, counts, shape[0]), site)
            self._counts, self._chosen = within(counts, least(stage, self.tokens.n), self.tokens.n), chosen

    def _reduce_groups(
        self, x: Tensor, stage: Stage, attention: BlockAttention, counts: Tensor, then: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """As `reduce`, images of one size at a time."""
        n, prefix, priorities = self.tokens.n, self.tokens.num_prefix_tokens, self._priorities(stage)
        sizes = counts.unique().tolist()
        outcomes, parts = [], []
        for k in sizes:
            rows = (counts == k).nonzero()[:, 0]
            group = x.index_select(0, rows)
            plan = None
            if k < n:
                scores = None if priorities is None else priorities.index_select(0, rows)
                plan = checked_plan(stage.reduction, attention.take(rows), self.tokens.take(rows), scores, k)
                group = torch.cat((group[:, :prefix], plan.apply(group[:, prefix:])), dim=1)
            outcomes.append(Outcome(rows, plan, group.shape[1] - prefix))
            parts.append(then(group))
        if not parts:  # an empty batch
            return then(x)
        self.outcomes = outcomes
        longest = max(part.shape[1] for part in parts)
        padded = torch.cat([nn.functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])
        back = torch.cat([outcome.rows for outcome in outcomes if outcome.rows is not None]).argsort()
        return padded.index_select(0, back)

    def _most(self) -> Any:
        assert self.stage is not None
        return allowed(self.stage, self.stage.schedule.count(site_of(self.stage, self.tokens), None), self.tokens.n)

    def _most_valid(self, valid: Tensor) -> int:
        """As many as the image with most keeps, each of its own patches."""
        assert self.stage is not None
        site, there = site_of(self.stage, self.tokens), valid.sum(1).tolist()
        counts = [
            min(asked(self.stage, self.stage.schedule.count(replace(site, n=n), None), min(n, 1)), n) for n in there
        ]
        if counts == there:
            return self.tokens.n
        self._valid_counts = torch.tensor(counts, device=valid.device)
        return max(counts)

    def _priorities(self, stage: Stage) -> Tensor | None:
        """What the reduction takes the best of: the scores, or their ranks, those chosen or the cells' best first."""
        if self.scores is None:
            return None
        best = covered(stage, self.tokens, self.scores)
        return best if self._chosen is None else preferring(best, self._chosen)
