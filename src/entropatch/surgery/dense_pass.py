"""A model run densely, stock or pruned, with the tokens that enter its blocks, for criteria that learn offline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.criteria import offline
from entropatch.surgery.prune import prune_, unprune_
from entropatch.surgery.state import ATTRIBUTE, Observers, is_pruned, pruned_part, pruning_of


def dense_pass(model: nn.Module, images: Tensor) -> tuple[Any, list[Tensor], int]:
    """What a stock or pruned model returns of images, keeping all patches; what enters each block; prefix tokens in it.

    In evaluation mode; with gradients from the one to the others, also where no parameter takes any. The model is as it
    was behind it.
    """
    entered: dict[int, Tensor] = {}

    def see(block: int, module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        x = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        entered[block] = x
        return (x, *args[1:]), inputs

    with _dense(model) as (blocks, prefix), torch.enable_grad():
        hooks = [
            block.register_forward_pre_hook(partial(see, number), with_kwargs=True)
            for number, block in enumerate(blocks)
        ]
        try:
            output = model(images)
        finally:
            for hook in hooks:
                hook.remove()
    return output, [entered[block] for block in sorted(entered)], prefix


@contextmanager
def _dense(model: nn.Module) -> Iterator[tuple[list[nn.Module], int]]:
    """The blocks of a model that keeps all patches meanwhile, and how many prefix tokens it has."""
    stock = not is_pruned(model)
    if stock:
        prune_(model, keep_rate=1.0)
    target, before = pruned_part(model), pruning_of(model)
    modes = {module: module.training for module in model.modules()}
    vars(target)[ATTRIBUTE] = replace(before, stages=(), observers=Observers())
    model.eval()
    try:
        yield before.adapter.blocks(target), before.adapter.num_prefix_tokens(target)
    finally:
        for module, training in modes.items():
            module.training = training
        vars(target)[ATTRIBUTE] = before
        if stock:
            unprune_(model)


offline.offer(dense_pass)
