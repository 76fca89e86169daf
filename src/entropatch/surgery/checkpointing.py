"""Blocks of a pruned model under gradient checkpointing, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entropatch.surgery.visit import Visit


def checkpointed(
    checkpoint: Callable[..., Any], run: Callable[..., Tensor], visit: Visit, x: Tensor, *inputs: Tensor
) -> Tensor:
    """`run(visit, x, *inputs)` under gradient checkpointing.

    Args:
        checkpoint: the library's, called with a function and its tensors.
        run: runs the block.
        visit: of the block; what is found out is there afterwards.
        x, inputs: what the block is given.
    """
    if not torch.compiler.is_compiling():
        return _run_once(checkpoint, run, visit, x, *inputs)
    if visit.k is None or visit.tokens.valid is not None:  # counts that depend on the scores: no graph holds them
        return _run_outside_graph(checkpoint, run, visit, x, *inputs)

    def packed(x: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        # A compiled region that is computed again must change nothing outside it, so its findings are outputs.
        inner = visit.again()
        return (run(inner, x, *inputs), *inner.pack())

    y, *found = checkpoint(packed, x, *inputs)
    visit.unpack(found)
    return y


def _run_once(
    checkpoint: Callable[..., Any], run: Callable[..., Tensor], visit: Visit, x: Tensor, *inputs: Tensor
) -> Tensor:
    differentiated = torch.is_grad_enabled()

    def once(x: Tensor, *inputs: Tensor) -> Tensor:
        if differentiated and not torch.is_grad_enabled() and any(watch.gradients for watch in visit.watches):
            raise RuntimeError(
                "watch(…, gradients=True) sees no gradients under reentrant gradient checkpointing, which runs the "
                "blocks without any; use the other kind (timm.layers.set_reentrant_ckpt(False)), or none."
            )
        return run(visit, x, *inputs)

    return checkpoint(once, x, *inputs)


_run_outside_graph: Any = torch.compiler.disable(_run_once)
