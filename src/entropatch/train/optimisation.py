"""The optimiser and its learning rates, as the recipe sets them."""

from __future__ import annotations

from typing import Any

from torch import nn

from entropatch.surgery import own_parameters
from entropatch.train.recipe import Recipe

BACKBONE = "backbone"  # marks groups of the model's parameters beside a method's


def optimizer_of(model: nn.Module, recipe: Recipe) -> Any:
    """timm's optimiser over the model's parameters, at the recipe's peak learning rate."""
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]

    betas: dict[str, Any] = {} if recipe.betas is None else {"betas": recipe.betas}
    optimizer = create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.peak_learning_rate,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        **betas,
    )
    if own := {id(parameter) for parameter in own_parameters(model)}:
        optimizer.param_groups[:] = [part for group in optimizer.param_groups for part in _split(group, own, recipe)]
    return optimizer


def _split(group: dict[str, Any], own: set[int], recipe: Recipe) -> list[dict[str, Any]]:
    """A group of parameters in two: the model's, at its share of the learning rate, and those of the method's own."""
    parts = []
    for theirs in (False, True):
        if params := [p for p in group["params"] if (id(p) in own) == theirs]:
            scale = 1.0 if theirs else group.get("lr_scale", 1.0) * recipe.backbone_rate
            parts.append({**group, "params": params, "lr_scale": scale, BACKBONE: not theirs})
    return parts


def hold_backbone(optimizer: Any, recipe: Recipe, epoch: int) -> None:
    """Leave the model's weights as they are while they are frozen; `epoch` from 0. After each step of the schedule."""
    if epoch < recipe.backbone_frozen_epochs:
        for group in optimizer.param_groups:
            if group.get(BACKBONE):
                group["lr"] = 0.0


def schedule_of(optimizer: Any, recipe: Recipe, steps_per_epoch: int) -> Any:
    """timm's cosine by steps, after a linear warm-up if the recipe has one."""
    from timm.scheduler.cosine_lr import CosineLRScheduler

    rates, warmup = recipe.learning_rates, recipe.warmup_epochs * steps_per_epoch
    return CosineLRScheduler(
        optimizer,
        t_initial=max(recipe.epochs * steps_per_epoch - warmup, 1),
        lr_min=rates["minimum"],
        warmup_t=warmup,
        warmup_lr_init=rates.get("warmup_from", 0.0),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def learning_rate(optimizer: Any) -> float:
    """Of the head, which layer decay leaves as it is."""
    return max(group["lr"] for group in optimizer.param_groups)
