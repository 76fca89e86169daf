"""What a backend states about itself, in its own file; `entropatch.kernels.registry` lists the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from entropatch.kernels import cost


@dataclass(frozen=True)
class Backend:
    """A way to compute attention and its entropy, right to the float64 twin for every order, size and dtype it takes.

    Attributes:
        name: what `backend=` calls it.
        why_not: the reason why it cannot run for given queries (B, H, n, d), None where it can. Asked while
            torch.compile traces, so it looks nothing up.
        attention_entropy: (q, k, order, scale, key_bias) -> entropy (B, H, n), as `kernels.attention_entropy`.
        attend_with_entropy: (q, k, v, order, scale, num_prefix, key_bias) -> output (B, H, N, d) laid out as
            (B, N, H, d), and entropy (B, H, N - num_prefix).
        column_norms: (q, k, power, scale, num_prefix, key_bias) -> (B, N - num_prefix), norms of the mean head's
            columns; None where `kernels.head_mean` computes them.
        plain: made of PyTorch's own operators, which are counted, exported and differentiated one by one. Any other is
            an operator of ours, opaque to PyTorch, whose gradients come from `kernels.backward`.
        entropy_macs, attend_macs: multiply-adds of the two, from the shapes of (q, k) and (q, k, v), where not plain.
    """

    name: str
    why_not: Callable[[Tensor], str | None]
    attention_entropy: Callable[[Tensor, Tensor, float, float, Tensor | None], Tensor]
    attend_with_entropy: Callable[[Tensor, Tensor, Tensor, float, float, int, Tensor | None], tuple[Tensor, Tensor]]
    column_norms: Callable[[Tensor, Tensor, float, float, int, Tensor | None], Tensor] | None = None
    plain: bool = False
    entropy_macs: Callable[[cost.Shape, cost.Shape], int] = cost.logits_macs
    attend_macs: Callable[[cost.Shape, cost.Shape, cost.Shape], int] = cost.attention_macs
