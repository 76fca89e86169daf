"""What one run is to do: the model, the data and the settings that `finetune` was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from entropatch.config import PruneConfig
from entropatch.data.base import DataSet
from entropatch.data.preprocessing import preprocessing_of
from entropatch.learning import learned_criterion
from entropatch.surgery import is_pruned, prune_, unprune_
from entropatch.train.entropies import EntropyTerm
from entropatch.train.recipe import Recipe
from entropatch.train.runtime import Runtime

CHECKPOINTING = "set_grad_checkpointing"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, as `entropatch.train.finetune` describes its arguments."""

    model: nn.Module
    data: DataSet
    folder: Path
    prune: PruneConfig | None = None
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    teacher: nn.Module | None = None
    runtime: Runtime = field(default_factory=Runtime)

    @property
    def warms_up(self) -> bool:
        """Whether the keep rate changes while training."""
        return self.prune is not None and bool(self.recipe.keep_warmup_start or self.recipe.keep_warmup_epochs)

    @property
    def learns(self) -> bool:
        """Whether a teacher is asked: by the recipe, or by the method's own loss."""
        criterion = learned_criterion(self.prune)
        return bool(self.recipe.distillation) or (criterion is not None and criterion.teaches)

    def check(self) -> None:
        """Refuse what does not fit together, before anything is written. Raises ValueError."""
        recipe, classes = self.recipe, len(self.data.classes)
        if is_pruned(self.model):
            raise ValueError("the model is pruned already; give the stock model, and the setting as prune=….")
        for name, module in (("model", self.model), ("teacher", self.teacher)):
            its = getattr(module, "num_classes", classes)
            if module is not None and its != classes:
                raise ValueError(f"the {name} has {its} classes, but the data set has {classes}.")
            size, asked = _fixed_size(module), (recipe.image_size, recipe.image_size)
            if size not in (None, asked):
                raise ValueError(
                    f"the {name} takes images of {size} pixels, but image_size is {recipe.image_size}; build the "
                    f"{name} for that size, or set image_size."
                )
            if self.runtime.gradient_checkpointing and module is self.model and not hasattr(module, CHECKPOINTING):
                raise ValueError(f"{type(module).__name__} has no gradient checkpointing (no {CHECKPOINTING}).")
        criterion = learned_criterion(self.prune)
        if criterion is None and (recipe.backbone_rate != 1 or recipe.backbone_frozen_epochs):
            raise ValueError(
                "backbone_rate and backbone_frozen_epochs are for a method with weights of its own, which train beside "
                "the model's; without one they would only slow it down: lower learning_rate, or leave them out."
            )
        if criterion is not None and self.warms_up:
            raise ValueError(
                f"{type(criterion).__name__} is trained at its target keep rate; leave keep_warmup_start and "
                "keep_warmup_epochs out."
            )
        if self.learns and self.teacher is None:
            raise ValueError("distillation needs a teacher: a dense model fine-tuned on the same data (--teacher).")
        if self.runtime.compile and (recipe.keep_warmup_start or recipe.keep_warmup_epochs):
            raise ValueError("a keep-rate warm-up changes the number of tokens at every step; run it without compile.")
        if self.runtime.compile and recipe.entropy_weight:
            raise ValueError(
                "an entropy penalty looks into the blocks at each step, for which a compiled model would be compiled "
                "again each time; run it without compile, or with entropy_weight=0."
            )
        if self.warms_up and self.prune is not None and not self.prune.schedule.uses_keep_rate:
            raise ValueError(
                f"a keep-rate warm-up needs a schedule with a keep rate, but {self.prune.schedule!r} says by itself "
                "how many tokens stay; leave keep_warmup_start and keep_warmup_epochs out."
            )
        if self.prune is not None:
            # Tried and undone: an unsupported model or a setting that does not fit is refused before anything is
            # written.
            prune_(self.model, self.prune)
            unprune_(self.model)
        with EntropyTerm(self.model, recipe).of_a_pass():  # likewise
            pass


def _fixed_size(model: nn.Module | None) -> tuple[int, ...] | None:
    """Height and width of the only images the model takes; None if it takes any, or does not say."""
    own = None if model is None else preprocessing_of(model)
    if own is not None:
        return own.size
    if model is None or getattr(model, "dynamic_img_size", False):
        return None
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return None if size is None else tuple(size)
