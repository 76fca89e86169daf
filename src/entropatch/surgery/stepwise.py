"""The same loop, block by block, for libraries whose own loop calls the blocks one after another.

What a library's loop hands from block to block is one tensor. So images that keep different numbers of tokens are
filled up there with NaN, while each block runs on groups of one size; and where patches are read at their places, what
is handed on is dense, every pruned patch showing the last value it had, while the blocks run on the tokens left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from entropatch.surgery.loop import Passed, in_order
from entropatch.surgery.outcome import Outcome
from entropatch.surgery.state import ATTRIBUTE, Pruning
from entropatch.surgery.visit import Visit
from entropatch.tokens import Tokens, gather_tokens

# Runs a block on tokens: run(x, visit).
Run = Callable[[Tensor, Visit], Tensor]


class Stepwise:
    """One forward pass of a model whose own loop calls the blocks.

    The model makes one for each of its forward passes and hands it to the blocks; each hands itself to `block`.

    Args:
        model: the pruned model.
        grid: (H, W), or (T, H, W) of a video: the patch grid of the input.
        valid: which of the patches are no padding, (batch, patches); None for all.
        masked: whether the caller gave an attention mask.
    """

    masked: bool

    def __init__(self, model: nn.Module, grid: tuple[int, ...], valid: Tensor | None = None, masked: bool = False):
        if valid is not None and torch.compiler.is_exporting():
            raise ValueError(
                f"the images of a {type(model).__name__} are filled up with padding and keep a share of their own "
                "patches each, but an exported graph has one number for all; export a model without padding."
            )
        pruning: Pruning = vars(model)[ATTRIBUTE]
        self._model, self._grid, self._dense = model, grid, pruning.reads == "grid"
        self._valid, self.masked = valid, masked
        self._passing: Passed | None = None
        self._visits: dict[int, list[Visit]] = {}
        self._width = 0  # tokens handed on, prefix tokens included

    def block(self, part: nn.Module, x: Tensor, run: Run) -> Tensor:
        """Run the block that is next, or once more one that ran before and runs again for its gradients.

        Args:
            part: the block.
            x: what the model's loop hands on, (batch, tokens, width).
            run: runs the block on images with equally many tokens.
        """
        before = self._visits.get(id(part))
        if before is not None:
            if any(visit.opened for visit in before):
                raise RuntimeError(
                    f"block {before[0].block} runs again, under a checkpoint of its own, but tokens left before it; "
                    "use the model's own gradient checkpointing."
                )
            return self._handed_on(
                x, [(visit, run(self._left(visit.tokens, visit.rows, x), visit)) for visit in before]
            )
        done: list[tuple[Visit, Tensor]] = []

        def call(i: int, tokens: Tensor, visit: Visit) -> Tensor:
            done.append((visit, run(tokens, visit)))
            return done[-1][1]

        passing = self._passing
        if passing is None:
            passing = self._passing = Passed(self._model, x, self._grid, followed=self._dense, valid=self._valid)
        else:
            self._check_width(x)
            passing.streams = [replace(s, x=self._left(s.tokens, s.rows, x)) for s in passing.streams]
        passing.step(len(self._visits), call)
        waiting = passing.pruning.detours
        self._visits[id(part)] = [visit for visit, _ in done]
        y = self._handed_on(x, done)
        if waiting and not self._dense and len(self._visits) == len(passing.modules):
            y = in_order(passing.streams, [stream.x for stream in passing.streams])
        if len(self._visits) == len(passing.modules) and passing.pruning.closer is not None:
            prefix = passing.prefix
            closed = in_order(passing.streams, [stream.x[:, :prefix] for stream in passing.streams])
            y = torch.cat((closed, y[:, prefix:]), dim=1)
        self._width = y.shape[1]
        return y

    @property
    def left(self) -> Tokens:
        """What the tokens that the last block left stand for, where all images have equally many."""
        assert self._passing is not None
        (stream,) = self._passing.streams
        return stream.tokens

    def end(self) -> None:
        """The model's loop is over. Raises RuntimeError if it did not run every block."""
        passing, ran = self._passing, len(self._visits)
        if passing is None or ran != len(passing.modules):
            raise RuntimeError(
                f"the loop of this {type(self._model).__name__} ran {ran} of its blocks: it left some out, or called "
                "others, which a pruned model cannot follow; entropatch.unprune_ it."
            )
        passing.end()

    def _check_width(self, x: Tensor) -> None:
        if x.shape[1] != self._width:
            raise ValueError(
                f"{x.shape[1]} tokens enter block {len(self._visits)}, but {self._width} left the one before: a hook "
                "adds or removes tokens, which cannot be told from patches. Remove it, or unprune_ the model."
            )

    def _left(self, tokens: Tokens, rows: Tensor | None, x: Tensor) -> Tensor:
        """Of what was handed on, the tokens that some images have left."""
        part = x if rows is None else x.index_select(0, rows)
        prefix = tokens.num_prefix_tokens
        if self._dense:
            if tokens.positions is None:
                return part
            positions = tokens.positions.clamp_min(0)  # what only fills up takes any
            return torch.cat((part[:, :prefix], gather_tokens(part[:, prefix:], positions)), dim=1)
        return part if rows is None else part[:, : prefix + tokens.n]

    def _handed_on(self, x: Tensor, done: Sequence[tuple[Visit, Tensor]]) -> Tensor:
        """What the blocks made of x, as one tensor for the batch in its order."""
        parts: list[Tensor] = []
        rows: list[Tensor | None] = []
        for visit, y in done:
            for outcome in visit.outcomes:
                part = y if outcome.rows is None else y.index_select(0, outcome.rows)
                part = part[:, : visit.tokens.num_prefix_tokens + outcome.n]
                rows.append(_numbers(visit.rows, outcome.rows))
                parts.append(_dense(x, rows[-1], part, visit, outcome) if self._dense else part)
        if len(parts) == 1 and rows[0] is None:
            return parts[0]
        longest = max(part.shape[1] for part in parts)
        filled = [nn.functional.pad(p, (0, 0, 0, longest - p.shape[1]), value=float("nan")) for p in parts]
        numbers = torch.cat([row for row in rows if row is not None])
        return torch.cat(filled).index_select(0, numbers.argsort())


def _numbers(batch: Tensor | None, rows: Tensor | None) -> Tensor | None:
    """Numbers in the batch of some images of a visit."""
    return rows if batch is None else batch if rows is None else batch.index_select(0, rows)


def _dense(x: Tensor, numbers: Tensor | None, y: Tensor, visit: Visit, outcome: Outcome) -> Tensor:
    """All patches of some images: those left as they are now, the others as they were last."""
    if outcome.plan is None and visit.tokens.positions is None:
        return y
    prefix = visit.tokens.num_prefix_tokens
    before = visit.tokens if outcome.rows is None else visit.tokens.take(outcome.rows)
    after = outcome.after(before)
    places = after.original_places(y)[..., None]
    dense = x if numbers is None else x.index_select(0, numbers)
    dense = dense[:, prefix:]
    if outcome.plan is not None and visit.patches is not None:
        patches = visit.patches if outcome.rows is None else visit.patches.index_select(0, outcome.rows)
        earlier = before.original_places(y)
        gone = (earlier >= 0)[..., None] & (places < 0)
        dense = torch.where(gone, gather_tokens(patches, earlier.clamp_min(0)), dense)
    now = torch.where(places >= 0, gather_tokens(y[:, prefix:], places[..., 0].clamp_min(0)), dense)
    return torch.cat((y[:, :prefix], now), dim=1)
