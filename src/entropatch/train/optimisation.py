"""The optimiser and its learning rates, as the recipe sets them."""

from __future__ import annotations

from typing import Any

from torch import nn

from entropatch.train.recipe import Recipe


def optimizer_of(model: nn.Module, recipe: Recipe) -> Any:
    """timm's optimiser over the model's parameters, at the recipe's peak learning rate."""
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]

    betas: dict[str, Any] = {} if recipe.betas is None else {"betas": recipe.betas}
    return create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.peak_learning_rate,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        **betas,
    )


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
