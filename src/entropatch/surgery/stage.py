"""One pruning stage inside one block, independent of any model library."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.config import exact_rate, kept_count
from entropatch.criteria import Criterion
from entropatch.reduction import REDUCTIONS, select

if TYPE_CHECKING:
    from entropatch.surgery.tracing import Trace


class Listeners:
    """The traces open on one model; shared by its stages.

    A trace hears the forward passes of the thread that opened it, so threads that share a model do not mix. Copies and
    pickles of a model have none: a trace belongs to the `with` block that opened it.
    """

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Listeners, ()

    def current(self) -> Trace | None:
        """The trace this thread opened last."""
        if not self.traces:
            return None
        if torch.compiler.is_compiling():  # compiled code cannot ask for its thread
            return self.traces[-1]
        thread = threading.get_ident()
        return next((trace for trace in reversed(self.traces) if trace.thread == thread), None)

    @contextmanager
    def listen(self, trace: Trace) -> Iterator[Trace]:
        """Let `trace` hear the forward passes, and whoever listened before it afterwards."""
        self.traces.append(trace)
        try:
            yield trace
        finally:
            self.traces.remove(trace)

    def recording(self) -> Trace | None:
        """`current`, if a forward pass is on; in the backward pass gradient checkpointing runs stages once more."""
        trace = self.current()
        return trace if trace is not None and trace.running else None


@dataclass
class Stage:
    """What one pruning block does: its setting, and who listens."""

    block: int
    keep_rate: float
    criterion: Criterion
    reduction: str
    num_prefix_tokens: int
    has_class_token: bool
    backend: str = "auto"
    listeners: Listeners = field(default_factory=Listeners, compare=False)
    rate: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rate = exact_rate(self.keep_rate)

    def begin(self, x: Tensor) -> Decision | None:
        """The decision to be made on x (batch, tokens, width); None if all stay and nobody listens."""
        n = x.shape[1] - self.num_prefix_tokens
        k = kept_count(self.rate, n)
        trace = self.listeners.recording()
        return None if k == n and trace is None else Decision(self, n, k, trace)


class Decision:
    """One pass through a stage: the attention is scored, then the tokens are reduced.

    Attributes:
        stage: the stage.
        n, k: patch tokens present, and to be kept.
        trace: the trace that records this pass, if any.
        scores: importance of the patches, (batch, n), once scored.
        kept: places of the kept among the present patches, (batch, k), once scored.
    """

    def __init__(self, stage: Stage, n: int, k: int, trace: Trace | None = None):
        self.stage, self.n, self.k, self.trace = stage, n, k, trace
        self.attention: BlockAttention | None = None
        self.scores: Tensor | None = None
        self.kept: Tensor | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether the block must run as in the stock model, to the last bit; it is scored for a trace only."""
        return self.k == self.n

    def score(self, attention: BlockAttention) -> None:
        """Score the patches, and choose which stay."""
        stage = self.stage
        with torch.no_grad():
            scores = stage.criterion.importance(attention)
            expected = (attention.q.shape[0], self.n)
            if scores.shape != expected:
                raise ValueError(
                    f"{type(stage.criterion).__name__}.importance must return (batch, patches) = {expected}, "
                    f"but got {tuple(scores.shape)}."
                )
            self.scores = scores
            self.kept = select(scores, self.k)
        self.attention = attention

    def reduce(self, x: Tensor) -> Tensor:
        """The tokens after the attention residual, without the pruned ones."""
        if self.attention is None or self.kept is None or self.scores is None:
            raise RuntimeError(f"block {self.stage.block} reduced its tokens before its attention was scored.")
        if self.trace is not None:
            patches = x[:, self.stage.num_prefix_tokens :]
            self.trace.record(self.stage, self.scores, self.kept, patches, self.attention.backend)
        return x if self.keeps_all else REDUCTIONS[self.stage.reduction](x, self.kept, self.attention)
