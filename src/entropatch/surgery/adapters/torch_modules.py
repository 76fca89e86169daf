"""What several adapters share: PyTorch's own attention split, and containers that run the loop they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from entropatch.attention import BlockAttention
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.loop import Passed, Stream
from entropatch.surgery.visit import Visit


class RunsLoop:
    """A container of blocks, or a module around one: called as in the stock model, it runs the loop it is given."""

    def forward(self, input: Tensor, *args: Any, run: Callable[[Tensor], Any] | None = None, **kwargs: Any) -> Any:
        if run is not None:
            return run(input)
        return super().forward(input, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


class Sequential(RunsLoop, nn.Sequential):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


def run_inside(container: nn.Module, x: Tensor, run: Callable[[Tensor], Passed]) -> list[Stream]:
    """What leaves the blocks, run inside the call of a `RunsLoop`, so that its hooks fire."""
    passed: list[Passed] = []

    def loop(x: Tensor) -> Any:
        passed.append(run(x))
        streams = passed[0].streams
        return streams[0].x if len(streams) == 1 else [stream.x for stream in streams]

    y = container(x, run=loop)
    streams = passed[0].streams
    return [replace(stream, x=part) for stream, part in zip(streams, [y] if len(streams) == 1 else y, strict=True)]


class MultiheadAttention(nn.MultiheadAttention):
    """PyTorch's attention, which shows a `Visit` its queries, keys and values.

    Where nothing is reduced the stock module computes, by whatever path it takes: in evaluation mode without gradients
    that is one fused operator, whose last digits differ from those of its parts.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, query: Tensor, *args: Any, visit: Visit | None = None, **kwargs: Any
    ) -> Any:
        if visit is None:
            return super().forward(query, *args, **kwargs)
        attention = self.shown(query, visit)
        visit.see(attention)
        if visit.keeps_all:
            return super().forward(query, *args, **kwargs)
        y = attention.output().transpose(1, 2).flatten(2)
        # As in the stock module the projection's weights are used, and the projection is not called.
        y = F.linear(y, self.out_proj.weight, self.out_proj.bias)
        return y if self.batch_first else y.transpose(0, 1), None

    def shown(self, x: Tensor, visit: Visit) -> BlockAttention:
        """What a criterion sees of tokens in the module's own layout."""
        x = x if self.batch_first else x.transpose(0, 1)
        # Where nothing is reduced and nobody asks for gradients, looking leaves no mark on the graph.
        traced = not visit.keeps_all or any(watch.gradients for watch in visit.watches)
        with torch.set_grad_enabled(traced and torch.is_grad_enabled()):
            packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
            q, k, v = packed.unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return visit.attention(q, k, v, scale=None, dropout=self.dropout if self.training else 0.0, fused=True)


def refuse_odd_attention(attention: Any, what: str) -> None:
    """Raise UnsupportedModelError for an nn.MultiheadAttention with keys that belong to no token."""
    odd = {
        "add_bias_kv=True": attention.bias_k is not None or attention.bias_v is not None,
        "add_zero_attn=True": attention.add_zero_attn,
        "kdim or vdim other than embed_dim": attention.in_proj_weight is None,
    }
    found = [name for name, there in odd.items() if there]
    if found:
        raise UnsupportedModelError(
            f"{what} is an nn.MultiheadAttention with {', '.join(found)}: it must attend to its own tokens and to "
            "nothing else. Build it without."
        )
