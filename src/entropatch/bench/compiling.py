"""Rows through `torch.compile`, each with graphs of its own and none that falls back to eager in silence."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# The mode "reduce-overhead", which is the first of these, but all as one graph or not at all: it would split off what
# cannot be part of one, or run without, and say so in a log alone.
ONE_CUDA_GRAPH: dict[str, Any] = {
    "triton.cudagraphs": True,
    "triton.cudagraph_or_error": True,
    "graph_partition": False,
}


def compiled(model: nn.Module, cuda_graphs: bool = False) -> Callable[[Tensor], object]:
    """The model as one compiled graph, whose kernels a CUDA graph starts all at once if asked."""

    def forward(images: Tensor) -> object:
        return model(images)

    # Dynamo keeps its graphs by code object and tries all of one's in turn; a code object of its own keeps each row
    # from paying for the guards of the rows before it, and from the limit on recompilations.
    own = types.FunctionType(forward.__code__.replace(), globals(), "forward", None, forward.__closure__)
    options = dict(ONE_CUDA_GRAPH) if cuda_graphs else None
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)


def record_cuda_graph(run: Callable[[], object]) -> None:
    """Call it until its CUDA graph is recorded: the first call compiles, the second records, the third replays.

    Raises:
        RuntimeError: there is something that a CUDA graph cannot hold, by Inductor's reason or by its count.
    """
    from torch._dynamo.utils import counters

    before = counters["inductor"]["cudagraph_skips"]
    with torch.inference_mode():
        for _ in range(3):
            run()
    if counters["inductor"]["cudagraph_skips"] > before:
        raise RuntimeError("Inductor ran this row without a CUDA graph; measure it with the runtime compile instead.")


@contextmanager
def no_eager_fallback() -> Iterator[None]:
    """Fail where Dynamo would give up compiling and run eagerly without a word."""
    import torch._dynamo.config as dynamo

    with dynamo.patch(fail_on_recompile_limit_hit=True):
        yield
