"""A block that some tokens go around: chosen before it, put back behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entropatch.config import Stage
from entropatch.reductions import SlowFast
from entropatch.schedule import Site
from entropatch.surgery.outcome import covered
from entropatch.tokens import Plan, Tokens, scatter_tokens


@dataclass(frozen=True)
class Detour:
    """What runs a block, and what waits beside it.

    Attributes:
        stage: what is done.
        x: the tokens that enter the block, (images, prefix + m, width).
        tokens: what they stand for.
        scores: by which they were chosen, (images, n).
        plan: which run it.
        waiting: all that came to the block, (images, prefix + n, width).
        before: what those stand for.
    """

    stage: Stage
    x: Tensor
    tokens: Tokens
    scores: Tensor
    plan: Plan
    waiting: Tensor
    before: Tokens

    def back(self, y: Tensor, carried: Mapping[str, Tensor]) -> tuple[Tensor, Tokens]:
        """All tokens behind the block, from what left it, (images, prefix + m, width), and what it hands on."""
        prefix, kept = self.before.num_prefix_tokens, self.plan.kept
        k, patches = kept.shape[1], self.waiting[:, prefix:]
        if self.plan.extra:
            gain = y[:, prefix + k :] - self.x[:, prefix + k :]
            patches = patches + gain
        joined = scatter_tokens(patches, y[:, prefix : prefix + k], kept)
        states = dict(self.before.carried)
        for name, values in carried.items():
            states[name] = scatter_tokens(states[name], values[:, :k], kept) if name in states else values
        return torch.cat((y[:, :prefix], joined), dim=1), replace(self.before, carried=states)


def detour(stage: Stage | None, x: Tensor, tokens: Tokens) -> Detour | None:
    """What runs the block of a stage, of tokens (images, prefix + n, width); None where all do."""
    if stage is None or not stage.reduction.detours:
        return None
    site = Site(stage.block, stage.index, stage.count, stage.rate, tokens.n, tokens.total)
    count: Any = stage.schedule.count(site, None)
    k = min(max(count, 1), tokens.n)
    if k == tokens.n:
        return None
    assert isinstance(stage.reduction, SlowFast)
    with torch.no_grad():
        scores = stage.criterion.remembered(tokens.carried[stage.criterion.state_key])
        shares = stage.criterion.mass(scores)
        plan = stage.reduction.planned(covered(stage, tokens, scores), shares, k)
    prefix = tokens.num_prefix_tokens
    entering = torch.cat((x[:, :prefix], plan.apply(x[:, prefix:])), dim=1)
    return Detour(stage, entering, tokens.after(plan), scores, plan, x, tokens)
