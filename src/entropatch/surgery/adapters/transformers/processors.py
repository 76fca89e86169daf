"""Processors of transformers that write one placeholder for every visual token, before the tower runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from entropatch.surgery.adapters.transformers.families import pair
from entropatch.surgery.errors import UnsupportedModelError

# Vision-language models that read their tokens by cross-attention: a fixed number of queries goes on.
BY_QUERIES = ("Blip2", "InstructBlip", "Blip")


def fit_processor(
    processor: Any, model: nn.Module, prefix: int, tokens_left: Callable[[int, int | None], int]
) -> int | None:
    """See `entropatch.fit_processor_`; `prefix` is how many prefix tokens the tower has."""
    name, kind = type(model).__name__, type(processor).__name__
    if name.startswith("Llava") and kind == "LlavaProcessor":
        return _fit_llava(processor, model, prefix, tokens_left)
    if name.startswith("PaliGemma") and kind == "PaliGemmaProcessor":
        processor.image_seq_length = tokens_left(_patches(model), None)
        return processor.image_seq_length
    if name.startswith(BY_QUERIES) and kind.startswith(BY_QUERIES):
        return None
    raise UnsupportedModelError(
        f"it is not known how a {kind} counts the visual tokens of a {name}; supported are LlavaProcessor with "
        "LlavaForConditionalGeneration, PaliGemmaProcessor with PaliGemmaForConditionalGeneration, and BLIP's."
    )


def _fit_llava(processor: Any, model: Any, prefix: int, tokens_left: Callable[[int, int | None], int]) -> int:
    config, patches = model.config, _patches(model)
    depth = config.vision_config.num_hidden_layers
    layers = config.vision_feature_layer
    counts = {
        tokens_left(patches, layer if layer >= 0 else depth + 1 + layer)
        for layer in ([layers] if isinstance(layers, int) else layers)
    }
    if len(counts) > 1:
        raise UnsupportedModelError(
            f"this {type(model).__name__} reads its features after layers {layers}, between which patches are pruned; "
            "prune before the first of them only."
        )
    (left,) = counts
    left += prefix - (config.vision_feature_select_strategy == "default")  # which leaves out the first token
    # It writes (h // p) · (w // p) + num_additional_image_tokens, and one less under "default".
    processor.num_additional_image_tokens = left - patches + (processor.vision_feature_select_strategy == "default")
    return left


def _patches(model: Any) -> int:
    vision = model.config.vision_config
    (height, width), (h, w) = pair(vision.image_size), pair(vision.patch_size)
    return (height // h) * (width // w)
