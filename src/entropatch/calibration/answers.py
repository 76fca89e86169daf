"""What of a model's answer is compared: its logits, what goes into its head, or its map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.surgery import restore, trace
from entropatch.surgery.state import pruned_part, pruning_of, unwrap

OBJECTIVES = {
    "logits": "KL divergence of the dense model's classes from the pruned one's, in nats",
    "features": "1 - cosine of the pooled feature, dense and pruned",
    "dense": "1 - cosine of the patch features, dense and pruned, mean over the grid",
    "class map": "KL divergence of the dense model's classes from the pruned one's at each place, mean over the map, "
    "in nats",
    "value map": "sum of |pruned - dense| over that of |dense|, both over the map",
}
SHORT = {
    "logits": "KL(dense ‖ pruned), nats",
    "features": "1 - cosine of features",
    "dense": "1 - cosine of patches",
    "class map": "KL(dense ‖ pruned) per place, nats",
    "value map": "|pruned - dense| / |dense|",
}
ASKED = ("logits", "features", "dense")  # what may be asked for: the map of a model that makes one is "dense"
MAPS = ("dense", "class map", "value map")

_VECTORS = ("logits", "image_embeds", "pooler_output", "last_hidden_state")
_VALUES = ("predicted_depth", "reconstruction")


def objective_of(model: Any, asked: str | None, image: Tensor) -> str:
    """Which of `OBJECTIVES` is compared: what is asked for, one of `ASKED`; or for None the first the model allows.

    Args:
        model: pruned.
        asked: as of `entropatch.calibration.calibrated`.
        image: (1, channels, H, W).

    Raises:
        ValueError: the model answers nothing that is compared, or not what is asked for.
    """
    name = type(unwrap(model)).__name__
    try:
        kind, _ = answer(model, image)
    except ValueError:
        if asked != "dense":  # for which some models have a way of their own
            raise
        kind = ""
    if kind in MAPS:
        if asked in (None, "dense"):
            return kind
        raise ValueError(
            f"objective={asked!r} needs one vector for an image, but this {name} makes a map; use objective='dense', "
            "or leave it out."
        )
    if asked == "logits" and kind == "features":
        raise ValueError(
            f"objective='logits' needs a head, but this {name} has none, and returns a feature; use "
            "objective='features', or leave it out."
        )
    objective = asked or ("logits" if kind == "logits" else "features")
    output(model, image, objective)
    return objective


def output(model: Any, images: Tensor, objective: str) -> Tensor:
    """What an objective compares, float32: vectors (batch, C); of maps one for each place, (batch, places, C)."""
    if objective in ("class map", "value map"):
        return answer(model, images)[1].float()
    if objective == "dense":
        return _patches(model, images).float()
    return (_before_head(model, images) if objective == "features" else _vector(model, model(images))).float()


def answer(model: Any, images: Tensor) -> tuple[str, Tensor]:
    """What a model returns: a kind and its values.

    One of `MAPS` and (batch, places, C); or "logits", "features", or "vector" where it does not say, and (batch, C).

    Raises:
        ValueError: it is none of these.
    """
    result = getattr(model, "patch_logits", model)(images)  # a Segmenter's map, of which that of pixels is made
    if (found := _map(model, result)) is not None:
        return found
    vector, name = _vector(model, result), _named(result, _VECTORS)[0]
    if name == "logits" or has_head(model):
        return "logits", vector
    return "features" if name or _classes(model) == 0 else "vector", vector


def pooled(result: Any, has_class_token: bool = True) -> Tensor:
    """The logits, or the pooled feature, among what a model returns: (batch, C)."""
    _, result = _named(result, _VECTORS)
    if isinstance(result, (tuple, list)) and result and isinstance(result[0], Tensor):
        result = result[0]
    if not isinstance(result, Tensor) or result.ndim not in (2, 3):
        raise ValueError(
            "the model must return logits or features (batch, C), a map (batch, C, H, W), or a mapping with logits, "
            f"but got {_described(result)}; wrap it in a module that does, whose entropatch_tower is the name of the "
            "attribute that holds it."
        )
    if result.ndim == 2:
        return result
    return result[:, 0] if has_class_token else result.mean(1)


def has_head(model: Any) -> bool:
    """Whether what the model returns are logits of classes, as far as it says so."""
    return bool(_classes(model))


def _classes(model: Any) -> int | None:
    """How many classes a model says that it tells apart; None if it says nothing."""
    if any(isinstance(getattr(model, name, None), nn.Identity) for name in ("head", "heads", "classifier", "fc")):
        return 0
    classes = getattr(model, "num_classes", None)
    if classes is None:
        classes = getattr(getattr(model, "config", None), "num_labels", None) if hasattr(model, "classifier") else None
    return len(getattr(model, "heads", ())) or None if classes is None else classes  # torchvision


def _vector(model: Any, result: Any) -> Tensor:
    part: Any = pruned_part(model)
    return pooled(result, pruning_of(part).adapter.has_class_token(part))


def _map(model: Any, result: Any) -> tuple[str, Tensor] | None:
    """The map among what a model returns, if there is one."""
    maps = _field(result, "feature_maps")
    if maps is None and isinstance(result, (tuple, list)) and all(_is_map(one) for one in result):
        maps = result
    if maps:
        return "dense", torch.cat([_places(one) for one in maps], dim=1)
    name, values = _named(result, _VALUES)
    if name:
        return "value map", _places(values if _is_map(values) else values[:, None])
    name, values = _named(result, ("logits",))
    if not _is_map(values):
        return None
    kind = "class map" if name or has_head(model) else "dense"
    return "value map" if values.shape[1] == 1 else kind, _places(values)


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _places(values: Tensor) -> Tensor:
    """(batch, C, H, W) -> (batch, places, C); tokens stay as they are."""
    return values.flatten(2).transpose(1, 2) if values.ndim == 4 else values


def _patches(model: Any, images: Tensor) -> Tensor:
    """The maps of features that a model returns, or its patch features back on the grid: (batch, patches, C)."""
    with trace(model) as seen:
        result = getattr(model, "forward_features", model)(images)
    if (found := _map(model, result)) is not None:
        return found[1]
    result = getattr(result, "last_hidden_state", result)  # of transformers
    if not isinstance(result, Tensor) or result.ndim != 3:
        raise ValueError(
            f"{type(unwrap(model)).__name__} gives no patch features; use objective='features' or 'logits'."
        )
    return restore(result, seen).flatten(1, -2)


def _before_head(model: Any, images: Tensor) -> Tensor:
    """The pooled feature: what goes into the linear layer that the logits come out of; what the model returns if it has
    no head. Where the logits are the mean of those of several heads, the mean of what goes into them."""
    model = getattr(model, "_orig_mod", model)
    seen: list[tuple[Tensor, Tensor]] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> None:
        if logits.ndim == 2:
            seen.append((given[0], logits))

    hooks = [part.register_forward_hook(note) for part in model.modules() if isinstance(part, nn.Linear)]
    try:
        kind, logits = answer(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    if kind != "logits":
        return logits
    ends = [end for end in seen if end[1] is logits] or [end for end in seen if end[1].shape == logits.shape]
    means = [torch.stack(part).mean(0) for part in zip(*ends, strict=True)]
    if not means or not torch.allclose(means[1], logits, rtol=1e-3, atol=1e-6):
        raise ValueError(
            f"what goes into the head of this {type(model).__name__} is not known, since its logits come out of no "
            "linear layer; use objective='logits', or leave it out."
        )
    return means[0]


def _named(result: Any, names: tuple[str, ...]) -> tuple[str, Any]:
    """The first of these tensors that there is in what a model returns, and its name; "" and the result for none."""
    for name in names:
        if isinstance(part := _field(result, name), Tensor):
            return name, part
    return "", result


def _field(result: Any, name: str) -> Any:
    return result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)


def _described(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"a tensor {tuple(result.shape)}"
    names = f" of {', '.join(map(str, result))}" if isinstance(result, Mapping) else ""
    return f"{type(result).__name__}{names}"
