"""Images of one batch on their way through the blocks, in groups of equally many tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entropatch.surgery.reduced import Reduced
from entropatch.surgery.visit import Visit
from entropatch.tokens import Tokens


@dataclass(frozen=True)
class Stream:
    """Images of one batch on their way through the blocks, with equally many tokens.

    Attributes:
        x: (images, prefix + n, width).
        tokens: what they stand for.
        rows: numbers of these images in the batch, (images,); None for the whole batch.
        around: what waits beside the blocks; None where nothing does.
    """

    x: Tensor
    tokens: Tokens
    rows: Tensor | None = None
    around: Any = None


def join(parts: list[Tokens], like: list[Tensor]) -> Tokens:
    """Groups of images with equally many tokens as one, in the order given; `like` are tensors (images, …) of each."""
    first = parts[0]
    if len(parts) == 1:
        return first
    pairs = list(zip(parts, like, strict=True))
    positions = torch.cat([part.original_positions(x) for part, x in pairs])
    places = torch.cat([part.original_places(x) for part, x in pairs]) if first.followed else None
    sizes = None
    if any(part.sizes is not None for part in parts):
        ones = [torch.ones(x.shape[0], part.n, device=x.device) for part, x in pairs]
        sizes = torch.cat([one if part.sizes is None else part.sizes for part, one in zip(parts, ones, strict=True)])
    carried = {name: torch.cat([part.carried[name] for part in parts]) for name in first.carried}
    states = {name: torch.cat([part.states[name] for part in parts]) for name in first.states}
    valid = None if first.valid is None else torch.cat([part.valid for part in parts if part.valid is not None])
    mask = None
    if any(part.mask is not None for part in parts):
        width = first.num_prefix_tokens + first.n
        ones = [torch.ones(x.shape[0], width, device=x.device) for x in like]
        mask = torch.cat([one if part.mask is None else part.mask for part, one in zip(parts, ones, strict=True)])
    parked = None
    if first.parked is not None:
        values, numbers = zip(*(part.parked for part in parts if part.parked is not None), strict=True)
        parked = torch.cat(values), torch.cat(numbers)
    return replace(
        first,
        positions=positions,
        places=places,
        sizes=sizes,
        carried=carried,
        valid=valid,
        mask=mask,
        states=states,
        parked=parked,
    )


def leaving(stream: Stream, visit: Visit, y: Tensor, reduced: list[Reduced]) -> list[Stream]:
    """What a block's output stands for: one stream, or one for each size."""
    streams: list[Stream] = []
    prefix, before = visit.tokens.num_prefix_tokens, visit.tokens
    longest = max(outcome.n for outcome in visit.outcomes)
    if y.shape[1] != prefix + longest:
        raise ValueError(
            f"block {visit.block} returned {y.shape[1]} tokens, but {prefix + longest} were expected: a hook adds or "
            "removes tokens, which cannot be told from patches. Remove it, or entropatch.unprune_ the model."
        )
    for outcome in visit.outcomes:
        rows, plan = outcome.rows, outcome.plan
        part = before if rows is None else before.take(rows)
        tokens = outcome.after(part)
        if visit.patches is not None and visit.stage is not None:
            patches, scores = visit.patches, visit.scores
            if rows is not None:
                patches, scores = (
                    patches.index_select(0, rows),
                    None if scores is None else scores.index_select(0, rows),
                )
            there = numbers_in_batch(stream.rows, rows)
            reduced.append(Reduced(visit.stage, there, scores, patches, part, tokens, plan, visit.backend))
        if rows is None:
            streams.append(replace(stream, x=y, tokens=tokens))
        else:
            x = y.index_select(0, rows)[:, : prefix + outcome.n]
            streams.append(Stream(x, tokens, numbers_in_batch(stream.rows, rows)))
    return streams


def numbers_in_batch(batch: Tensor | None, rows: Tensor | None) -> Tensor | None:
    """Numbers in the batch of some rows of a stream."""
    if rows is None or batch is None:
        return batch if rows is None else rows
    return batch.index_select(0, rows)


def regrouped(streams: list[Stream]) -> list[Stream]:
    """Streams of one size joined, by rising size; the whole batch, once it is of one size again, in its order."""
    by_size: dict[int, list[Stream]] = {}
    for stream in streams:
        # Under torch.jit.trace, which counts multiply-adds, sizes are tensors, of which no two are the same key.
        by_size.setdefault(int(stream.tokens.n), []).append(stream)
    joined: list[Stream] = []
    for _, parts in sorted(by_size.items(), key=lambda item: item[0]):
        xs, rows = [part.x for part in parts], [part.rows for part in parts if part.rows is not None]
        joined.append(
            parts[0] if len(parts) == 1 else Stream(torch.cat(xs), join([p.tokens for p in parts], xs), torch.cat(rows))
        )
    if len(joined) > 1:
        return joined
    (whole,) = joined
    assert whole.rows is not None
    order = whole.rows.argsort()
    return [Stream(whole.x.index_select(0, order), whole.tokens.take(order))]
