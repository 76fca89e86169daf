"""How many tokens a pruned tower hands to a language model, and processors that write as many placeholders."""

from __future__ import annotations

from typing import Any

from torch import nn

from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.registry import tower_of
from entropatch.surgery.state import is_pruned, pruning_of, unwrap
from entropatch.surgery.visit import Visit
from entropatch.tokens import Tokens


def tokens_left(model: nn.Module, patches: int, blocks: int | None = None) -> int:
    """How many patch tokens of each image are left after so many blocks of a model, stock or pruned.

    Args:
        model: as `prune_` takes it.
        patches: of an image.
        blocks: how many blocks ran; None for all.

    Raises:
        ValueError: the schedule keeps a different number of each image.
    """
    if not is_pruned(model):
        return patches
    pruning = pruning_of(model)
    n = patches
    if pruning.reads == "grid":
        return n
    for block, stage in enumerate(pruning.stages[:blocks]):
        if stage is None:
            continue
        if stage.schedule.per_image:
            raise ValueError(
                f"under {stage.schedule!r} images keep different numbers of tokens, so none is known beforehand; use a "
                "schedule with one number for all, such as KeepRate()."
            )
        k = Visit(block, Tokens(0, n, patches), stage).k
        assert k is not None
        n = k + (stage.reduction.appends if k < n else 0)
    return n


def fit_processor_(processor: Any, model: nn.Module) -> int | None:
    """Make a processor write as many image placeholders as a vision-language model has visual tokens; in place.

    Call it after `prune_`, after each change of the setting, and after `unprune_`, which brings the stock number back.

    Args:
        processor: of the model, such as transformers' `LlavaProcessor` or `PaliGemmaProcessor`.
        model: the vision-language model, stock or pruned.

    Returns:
        The number of placeholders for each image; None where it does not depend on the pruning, since the model reads
        all patches at their places, or reads its tokens by cross-attention.

    Raises:
        UnsupportedModelError: the model or the processor is not one whose number of tokens is known.
        ValueError: the schedule keeps a different number of each image.

    Example:
        >>> entropatch.prune_(model, keep_rate=0.7)
        >>> entropatch.fit_processor_(processor, model)
        >>> model.generate(**processor(images=image, text="USER: <image> What is this? ASSISTANT:"))
    """
    tower = tower_of(unwrap(model))
    if tower.holder is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is no vision-language model that is supported; pass the whole model, no tower."
        )
    if tower.reads == "grid":
        return None
    larger, library = tower.holder
    return library.fit_processor(processor, larger, lambda patches, blocks: tokens_left(model, patches, blocks))
