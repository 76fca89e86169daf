"""Rows through `torch.compile`, each with graphs of its own and none that falls back to eager in silence."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def compiled(model: nn.Module) -> Callable[[Tensor], object]:
    """The model as one compiled graph."""

    def forward(images: Tensor) -> object:
        return model(images)

    # Dynamo keeps its graphs by code object and tries all of one's in turn; a code object of its own keeps each row
    # from paying for the guards of the rows before it, and from the limit on recompilations.
    own = types.FunctionType(forward.__code__.replace(), globals(), "forward", None, forward.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


@contextmanager
def no_eager_fallback() -> Iterator[None]:
    """Fail where Dynamo would give up compiling and run eagerly without a word."""
    import torch._dynamo.config as dynamo

    with dynamo.patch(fail_on_recompile_limit_hit=True):
        yield
