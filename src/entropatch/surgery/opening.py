"""What a criterion decides before a block: tokens that leave before its attention, or, in training, no longer count."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.config import Stage
from entropatch.criteria.learned import Decision, Entering, LearnedCriterion, Note
from entropatch.priorities import preferring
from entropatch.surgery.counting import within
from entropatch.surgery.outcome import covered, site_of
from entropatch.surgery.plan_check import checked_counts, checked_scores
from entropatch.surgery.reduced import NO_BACKEND, Reduced
from entropatch.surgery.streams import Stream, numbers_in_batch, regrouped
from entropatch.tokens import Plan, Tokens, gather_tokens, removed_indices


@dataclass
class Opening:
    """What is decided before the blocks of one forward pass, and what the loss reads of it.

    Attributes:
        weights: the method's own, by block; None for none.
        depth: how many blocks there are.
        training: whether the model trains.
        recorded: whether scores are wanted even where all tokens stay.
        notes: for the loss, so far.
    """

    weights: nn.ModuleDict | None
    depth: int
    training: bool
    recorded: bool
    notes: list[Note] = field(default_factory=list)

    def opened(self, stage: Stage | None, streams: list[Stream], reduced: list[Reduced]) -> list[Stream]:
        """The streams as they enter the block of a stage; what was done is added to `reduced`."""
        if stage is None or not isinstance(stage.criterion, LearnedCriterion) or self._keeps_all(stage):
            return streams
        parts = [part for stream in streams for part in self._opened(stage, stage.criterion, stream, reduced)]
        return parts if len(parts) == 1 else regrouped(parts)

    def closed(self, criterion: LearnedCriterion, streams: list[Stream]) -> list[Stream]:
        """The streams behind the last block."""
        after = []
        for stream in streams:
            x, values = criterion.close(self._entering(stream, self.depth))
            self.notes.append(Note(self.depth, 1.0, values))
            after.append(replace(stream, x=x))
        return after

    def _keeps_all(self, stage: Stage) -> bool:
        """Whether the setting says that all tokens stay, whatever the scores: the stock model."""
        return stage.schedule.uses_keep_rate and stage.share == 1 and not self.recorded

    def _entering(self, stream: Stream, block: int) -> Entering:
        tokens, weights = stream.tokens, self.weights
        own = weights[str(block)] if weights is not None and str(block) in weights else None
        return Entering(
            stream.x,
            tokens.num_prefix_tokens,
            tokens.positions,
            tokens.mask,
            tokens.carried,
            tokens.states,
            tokens.total,
            block,
            self.depth,
            own,
            self.training,
        )

    def _opened(
        self, stage: Stage, criterion: LearnedCriterion, stream: Stream, reduced: list[Reduced]
    ) -> list[Stream]:
        entering = self._entering(stream, stage.block)
        # Where a criterion changes what comes out, gradients pass through it at inference too.
        changes = self.training or criterion.closes or criterion.predicts
        with torch.set_grad_enabled(torch.is_grad_enabled() and changes):
            decision = criterion.decide(entering)
        shape = entering.patches.shape[0], stream.tokens.n
        scores = checked_scores(criterion, decision.scores, shape, "decide").detach()
        if decision.note:
            self.notes.append(Note(stage.block, stage.share, decision.note))
        tokens = replace(
            stream.tokens,
            carried={**stream.tokens.carried, **decision.carried},
            states={**stream.tokens.states, **decision.states},
        )
        if decision.prefix_mask is not None:
            prefix = decision.prefix_mask
            tokens = replace(tokens, mask=torch.cat((prefix, prefix.new_ones(shape)), dim=1))
        if stage.schedule.uses_keep_rate and stage.share == 1:  # scored for a trace only
            return [_done(stage, stream, None, scores, None, tokens, reduced if self.recorded else None)]
        if decision.mask is not None:
            return [self._masked(stage, stream, decision, scores, tokens, reduced)]
        priorities = scores if stage.coverage is None else covered(stage, tokens, scores)
        if not stage.schedule.per_image:
            count: Any = stage.schedule.count(site_of(stage, tokens), None)
            counts, k = None, min(max(count, min(tokens.n, 1)), tokens.n)
        else:
            counts, priorities = _counts(stage, criterion, tokens, scores, priorities)
            k = tokens.n
        record = reduced if self.recorded else None
        shares = criterion.mass(scores) if decision.shares is None else decision.shares
        if counts is None:
            return [_done(stage, stream, None, scores, _plan(stage, shares, priorities, k), tokens, record)]
        parts = []
        for size in counts.unique().tolist():
            rows = (counts == size).nonzero()[:, 0]
            plan = _plan(stage, shares.index_select(0, rows), priorities.index_select(0, rows), size)
            parts.append(_done(stage, stream, rows, scores, plan, tokens, record))
        return parts or [replace(stream, tokens=tokens)]  # an empty batch

    def _masked(
        self, stage: Stage, stream: Stream, decision: Decision, scores: Tensor, tokens: Tokens, reduced: list[Reduced]
    ) -> Stream:
        """While the model trains: no token leaves, and those that do not stay no longer count."""
        tokens = replace(tokens, mask=decision.mask, mask_epsilon=decision.mask_epsilon)
        x, plan = stream.x, None
        if decision.appended is not None:
            prefix = tokens.num_prefix_tokens
            everyone = torch.arange(tokens.n, device=x.device).expand(x.shape[0], -1)
            plan = Plan(everyone, appended=decision.appended)
            x = torch.cat((x[:, :prefix], plan.apply(x[:, prefix:])), dim=1)
        after = tokens if plan is None else tokens.after(plan)
        if decision.appended_mask is not None and decision.mask is not None:
            after = replace(after, mask=torch.cat((decision.mask, decision.appended_mask), dim=1))
        if self.recorded:
            reduced.append(_record(stage, stream, None, scores, tokens, after, plan))
        return replace(stream, x=x, tokens=after)


def _counts(
    stage: Stage, criterion: LearnedCriterion, tokens: Tokens, scores: Tensor, priorities: Tensor
) -> tuple[Tensor, Tensor]:
    """How many patches of each image stay, and by which priorities."""
    schedule, site = stage.schedule, site_of(stage, tokens)
    shape = scores.shape[0], tokens.n
    read = checked_scores(criterion, getattr(criterion, schedule.reads)(scores), shape, schedule.reads)
    chosen = schedule.chosen(site, read)
    counts = schedule.count(site, read) if chosen is None else chosen.sum(1)
    counts = within(schedule.rounded(checked_counts(schedule, counts, shape[0]), site), 0, tokens.n)
    return counts, priorities if chosen is None else preferring(priorities, chosen)


def _plan(stage: Stage, shares: Tensor, priorities: Tensor, k: Any) -> Plan | None:
    if isinstance(k, int) and k == shares.shape[1]:
        return None
    return stage.reduction.planned(priorities, shares, k)


def _done(
    stage: Stage,
    stream: Stream,
    rows: Tensor | None,
    scores: Tensor,
    plan: Plan | None,
    tokens: Tokens,
    reduced: list[Reduced] | None,
) -> Stream:
    """Some images of a stream, all of them for None, with what their plan leaves."""
    x, before, numbers = stream.x, tokens, numbers_in_batch(stream.rows, rows)
    if rows is not None:
        x, before, scores = x.index_select(0, rows), tokens.take(rows), scores.index_select(0, rows)
    after, prefix = before, tokens.num_prefix_tokens
    if plan is not None:
        patches = x[:, prefix:]
        after = before.after(plan)
        if stage.reduction.parks:
            after = replace(after, parked=_parked(before, patches, plan))
    if reduced is not None:
        reduced.append(_record(stage, replace(stream, x=x, rows=numbers), numbers, scores, before, after, plan))
    if plan is not None:
        x = torch.cat((x[:, :prefix], plan.apply(x[:, prefix:])), dim=1)
    return Stream(x, after, numbers)


def _record(
    stage: Stage, stream: Stream, rows: Tensor | None, scores: Tensor, before: Tokens, after: Tokens, plan: Plan | None
) -> Reduced:
    patches = stream.x[:, before.num_prefix_tokens :]
    return Reduced(stage, stream.rows if rows is None else rows, scores, patches, before, after, plan, NO_BACKEND)


def _parked(before: Tokens, patches: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The tokens that wait, and where they stand, with those that a plan does not keep."""
    gone = removed_indices(plan.kept, before.n)
    values, positions = gather_tokens(patches, gone), gather_tokens(before.original_positions(patches), gone)
    if before.parked is None:
        return values, positions
    return torch.cat((before.parked[0], values), dim=1), torch.cat((before.parked[1], positions), dim=1)


def unparked(stream: Stream, stage: Stage, block: int, reduced: list[Reduced] | None) -> Stream:
    """A stream with the tokens that waited, all in the order of the grid; `stage` is the last that parked some."""
    tokens = stream.tokens
    if tokens.parked is None:
        return stream
    prefix = tokens.num_prefix_tokens
    patches = stream.x[:, prefix:]
    positions = torch.cat((tokens.original_positions(patches), tokens.parked[1]), dim=1)
    order = positions.argsort(dim=1)
    joined = gather_tokens(torch.cat((patches, tokens.parked[0]), dim=1), order)
    after = replace(tokens, n=tokens.n + tokens.parked[1].shape[1], positions=None, places=None, parked=None)
    if reduced is not None:
        reduced.append(Reduced(replace(stage, block=block), stream.rows, None, joined, after, after, None, NO_BACKEND))
    return replace(stream, x=torch.cat((stream.x[:, :prefix], joined), dim=1), tokens=after)
