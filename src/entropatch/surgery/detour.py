"""Blocks that some tokens go around: chosen before the first of them, put back behind the last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entropatch.config import Stage
from entropatch.reductions import SlowFast
from entropatch.surgery.outcome import covered, site_of
from entropatch.surgery.reduced import NO_BACKEND, Reduced
from entropatch.surgery.streams import Stream
from entropatch.tokens import Plan, Tokens, scatter_tokens


@dataclass(frozen=True)
class Detour:
    """What waits beside the blocks that the others run.

    Attributes:
        stage: what is done.
        x: the tokens that entered the first of these blocks, (images, prefix + m, width).
        scores: by which they were chosen, (images, n).
        plan: which run the blocks.
        waiting: all that came to the first of them, (images, prefix + n, width).
        before: what those stand for.
    """

    stage: Stage
    x: Tensor
    scores: Tensor
    plan: Plan
    waiting: Tensor
    before: Tokens


def detoured(stage: Stage | None, stream: Stream) -> Stream:
    """The tokens of a stream that run the block of a stage, the others waiting; the stream itself where all do."""
    if stage is None or not stage.reduction.detours:
        return stream
    x, tokens = stream.x, stream.tokens
    count: Any = stage.schedule.count(site_of(stage, tokens), None)
    k = min(max(count, 1), tokens.n)
    if k == tokens.n:
        return stream
    assert isinstance(stage.reduction, SlowFast)
    with torch.no_grad():
        scores = stage.criterion.remembered(tokens.carried[stage.criterion.state_key])
        shares = stage.criterion.mass(scores)
        plan = stage.reduction.planned(covered(stage, tokens, scores), shares, k)
    prefix = tokens.num_prefix_tokens
    entering = torch.cat((x[:, :prefix], plan.apply(x[:, prefix:])), dim=1)
    around = Detour(stage, entering, scores, plan, x, tokens)
    return replace(stream, x=entering, tokens=tokens.after(plan), around=around)


def rejoined(stream: Stream, reduced: list[Reduced] | None) -> Stream:
    """A stream with the tokens that waited, at their places; what was done is added to `reduced`."""
    around: Detour | None = stream.around
    if around is None:
        return stream
    before, kept = around.before, around.plan.kept
    prefix, k, y = before.num_prefix_tokens, kept.shape[1], stream.x
    patches = around.waiting[:, prefix:]
    if reduced is not None:
        plan = Plan(kept)  # their representative ends here
        reduced.append(Reduced(around.stage, stream.rows, around.scores, patches, before, before, plan, NO_BACKEND))
    if around.plan.extra:
        patches = patches + (y[:, prefix + k :] - around.x[:, prefix + k :])
    joined = scatter_tokens(patches, y[:, prefix : prefix + k], kept)
    states = dict(before.carried)
    for name, values in stream.tokens.carried.items():
        states[name] = scatter_tokens(states[name], values[:, :k], kept) if name in states else values
    tokens = replace(before, carried=states)
    return replace(stream, x=torch.cat((y[:, :prefix], joined), dim=1), tokens=tokens, around=None)
