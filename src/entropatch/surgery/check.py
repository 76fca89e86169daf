"""The check at surgery: every changed part is run against its original on random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from entropatch.attention import BlockAttention
from entropatch.config import PruneConfig, Stage
from entropatch.criteria import Criterion
from entropatch.entropy import without_autocast
from entropatch.reductions import Drop
from entropatch.schedule import KeepRate
from entropatch.surgery.adapters.base import Adapter
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.state import ATTRIBUTE, Observers, Pruning
from entropatch.surgery.visit import Visit
from entropatch.tokens import Tokens

PATCHES = 12


def check_parts(model: nn.Module, adapter: Adapter, blocks: Sequence[int], whole: bool) -> dict[int, str]:
    """Run every changed part against its original.

    Args:
        model: with its classes swapped; modes and random state stay as they are.
        adapter: of its library.
        blocks: those that are new.
        whole: whether the model around the blocks is new too.

    Returns:
        What is wrong with the blocks that do not give what their originals give, by their index.

    Raises:
        UnsupportedModelError: the model around the blocks does not give what the original gives.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # Autocast would round the two runs differently.
        weight = next(model.parameters())
        if weight.is_meta:  # there are no values to compare
            return {}
        with torch.no_grad(), without_autocast(weight):
            if whole and adapter.entry is not None:
                _check_surroundings(model, adapter)
            found = {block: _check_block(model, adapter, block) for block in blocks}
            return {block: wrong for block, wrong in found.items() if wrong is not None}
    finally:
        for module, training in modes.items():
            module.training = training


def _check_surroundings(model: nn.Module, adapter: Adapter) -> None:
    """The model without its blocks, as the library runs it and as the swapped class does."""
    example = adapter.example(model)
    parent, _, name = adapter.container.rpartition(".")
    holder, blocks = model.get_submodule(parent), adapter.container_of(model)
    holder._modules[name] = type(blocks)()
    # Past nn.Module's own __setattr__, as in `prune_`.
    vars(model)[ATTRIBUTE] = Pruning(PruneConfig(keep_rate=1.0), adapter, (), Observers())
    try:
        kind = adapter.stock_class(model)
        try:
            expected = adapter.run_model(kind, model, example)
        except Exception as error:  # whatever a model raises that was built so that it cannot run
            raise UnsupportedModelError(
                f"the stock {kind.__name__} does not run on a random image of its size: {' '.join(str(error).split())}"
            ) from error
        stock, swapped = (
            [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            for output in (expected, adapter.run_model(type(model), model, example))
        )
    finally:
        holder._modules[name] = blocks
        vars(model).pop(ATTRIBUTE)
    if len(stock) != len(swapped) or not all(map(_same, stock, swapped)):
        raise UnsupportedModelError(
            f"{type(model).__name__} does not embed its patches, or norm its tokens, as entropatch expects: this "
            "version of the model library computes them differently, or a part was changed."
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a.isnan() | (a == b)).all())


def _check_block(model: nn.Module, adapter: Adapter, number: int) -> str | None:
    """What is wrong with a block, if anything."""
    # Half of the patches are dropped, since what mixes tokens after the reduction shows only then. The criterion of
    # the setting stays out of it: it may be slow or stateful, and what is checked is the block.
    block: Any = adapter.blocks(model)[number]
    prefix, n = adapter.num_prefix_tokens(model), PATCHES
    x, inputs = adapter.check_inputs(model, number, n)
    stage = Stage(number, 0, 1, 0.5, (1, 2), _EveryOther(), Drop(), KeepRate())
    got = block(x, **inputs, visit=Visit(number, Tokens(prefix, n, n), stage))
    rows = [*range(prefix), *range(prefix, prefix + n, 2)]
    stock: Any = adapter.stock_class(block)
    expected, x = adapter.run_block(stock, block, x, inputs)[:, rows], x[:, rows]
    # The residual stream x itself agrees trivially, so errors are measured against what the block added to it.
    error = (got - expected).abs().max().item()
    size = (expected - x).abs().max().item()
    eps = torch.finfo(x.dtype).eps
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(x.dtype, 8 * eps)
    if error <= tolerance * max(size, 1e-6) + 2 * eps * x.abs().max().item():
        return None
    return (
        f"block {number} ({stock.__name__}) does not behave as entropatch expects: split at its middle it differs "
        f"from the original by {error:g} where it adds up to {size:g} (dtype {x.dtype}). A part of it was changed, "
        "or this version of the model library computes it differently."
    )


@dataclass(frozen=True)
class _EveryOther(Criterion):
    """Keeps the patches at even indices; only for the check at surgery."""

    kind: ClassVar[str] = "_EveryOther"

    def importance(self, attention: BlockAttention) -> Tensor:
        indices = torch.arange(attention.num_patches, device=attention.q.device)
        return (1.0 - indices % 2).expand(attention.q.shape[0], -1)
