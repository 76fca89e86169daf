"""What surgery knows of transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.schedule import KeepRate
from entropatch.surgery.adapters.base import Adapter, linear_weight
from entropatch.surgery.adapters.transformers.families import FAMILIES, Family, pair
from entropatch.surgery.adapters.transformers.holders import HOLDERS, why_not
from entropatch.surgery.adapters.transformers.processors import fit_processor
from entropatch.surgery.errors import UnsupportedModelError

MINIMUM = (5, 20)  # the first release that is tested; in older ones layers and hooks lie elsewhere
PADDED = ("Padded", "Tiled")  # towers that fill up their images


class TransformersAdapter(Adapter):
    library = "transformers"
    container = "layers"
    entry: ClassVar[str | None] = None  # the model's own forward runs around the layers

    @cached_property
    def models(self) -> dict[type, type]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _table(lambda family: tuple(family.towers))

    @cached_property
    def blocks_table(self) -> dict[type, type]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _table(lambda family: (family.layer,))

    @cached_property
    def attention(self) -> dict[type, type]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _table(lambda family: (family.attention,))

    @property
    def supported(self) -> str:
        towers = [name for family in FAMILIES for name in family.towers]
        return f"transformers {', '.join([*towers, *HOLDERS])}"

    def recognises(self, model: nn.Module) -> bool:
        if _family(model) is None:
            return False
        _check_version()
        return super().recognises(model)

    def tower(self, model: nn.Module) -> str | None:
        kind = type(model)
        if not kind.__module__.startswith("transformers."):
            return None
        if (why := why_not(model)) is not None:
            raise UnsupportedModelError(why)
        if kind.__name__ in HOLDERS and _holds(model, name := HOLDERS[kind.__name__][0]):
            self._refuse_first_patch(model, model.get_submodule(name))
            return name
        towers = [name for name, part in model.named_modules() if name and _family(part) is not None]
        if not towers:
            return None
        raise UnsupportedModelError(
            f"what transformers' {kind.__name__} does with the tokens of its tower .{towers[0]} is not known to fit "
            f"fewer of them. If it is, prune that tower: entropatch.prune_(model.{towers[0]}, …)."
        )

    def _refuse_first_patch(self, model: Any, tower: nn.Module) -> None:
        """LLaVA leaves out the first token under a strategy of that name, which is to be a class token."""
        strategy = getattr(model.config, "vision_feature_select_strategy", None)
        reads = self.reads_of_tower(model)
        if strategy == "default" and reads == "tokens" and _family(tower) and not self.num_prefix_tokens(tower):
            raise UnsupportedModelError(
                f'this {type(model).__name__} with vision_feature_select_strategy="default" leaves out the first token '
                f"of its tower, but a {type(tower).__name__} has no class token there, and its first patch may be "
                'pruned; use vision_feature_select_strategy="full".'
            )

    def reads_of_tower(self, model: nn.Module) -> str:
        return HOLDERS[type(model).__name__][1]

    def fit_processor(
        self, processor: Any, model: nn.Module, tokens_left: Callable[[int, int | None], int]
    ) -> int | None:
        tower = model.get_submodule(HOLDERS[name][0]) if (name := type(model).__name__) in HOLDERS else None
        prefix = self.num_prefix_tokens(tower) if tower is not None and _family(tower) else 1
        return fit_processor(processor, model, prefix, tokens_left)

    def reads(self, model: nn.Module) -> str:
        return _of(model).towers[_name(model)]

    def container_of(self, model: nn.Module) -> Any:
        return model.get_submodule(_of(model).layers[_name(model)])

    def _around(self, model: nn.Module) -> list[nn.Module]:
        names = _of(model).layers[_name(model)].split(".")
        return [model.get_submodule(".".join(names[: i + 1])) for i in range(len(names))]

    def attention_of(self, block: nn.Module) -> nn.Module | None:
        kinds = {(kind.__module__, kind.__name__) for kind in type(block).__mro__}
        family = next((f for f in FAMILIES if (f.path, f.layer) in kinds), None)
        if family is None:
            return None
        attention = getattr(block, family.parts.attention)
        return getattr(attention, family.parts.core) if family.parts.core else attention

    def output_projection(self, block: Any) -> Tensor:
        attention = self.attention_of(self.unwrapped(block))
        for name in ("o_proj", "out_proj", "projection"):  # of the classes that project their heads themselves
            if hasattr(attention, name):
                return linear_weight(getattr(attention, name), ())
        return super().output_projection(block)

    def example(self, model: Any) -> Tensor:
        height, width = pair(model.config.image_size)
        parameter = next(model.parameters())
        image = torch.randn(1, model.config.num_channels, height, width, generator=torch.Generator().manual_seed(0))
        return image.to(parameter.device, parameter.dtype)

    def check_inputs(self, model: Any, block: int, patches: int) -> tuple[Tensor, dict[str, Any]]:
        family = _of(model)
        x = self.random_tokens(model, patches, model.config.hidden_size)
        inputs: dict[str, Any] = {"attention_mask": None} if family.masked else {}
        if family.heads == "Rotary":
            width = model.config.hidden_size // model.config.num_attention_heads
            angles = torch.linspace(0, 6, patches * width, device=x.device).view(patches, width)
            inputs["position_embeddings"] = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        return x, inputs

    def run_images(self, whole: nn.Module, model: nn.Module, images: Tensor) -> None:
        model(images)

    def refuse_model(self, model: Any) -> None:
        if getattr(model, "pooler", None) is not None and self.num_prefix_tokens(model) == 0:
            raise UnsupportedModelError(
                f"the pooler of this {type(model).__name__} reads the first patch as if it were a class token, which "
                "may be pruned; make the model with add_pooling_layer=False."
            )

    def refuse_setting(self, model: Any, config: PruneConfig) -> None:
        if _of(model).tower not in PADDED:
            return
        if unaware := [criterion for criterion, _, _ in config.parts if not criterion.knows_padding]:
            raise UnsupportedModelError(
                f"{type(model).__name__} fills up its images with padding, which would change the scores of "
                f"{unaware[0]!r}; use criterion=Renyi(order=…), or say knows_padding = True in a criterion of yours "
                "whose scores of patches are the same beside padding."
            )
        kept = all(reduction.kind == "drop" and coverage is None for _, reduction, coverage in config.parts)
        if not kept or not isinstance(config.schedule, KeepRate):
            raise UnsupportedModelError(
                f"{type(model).__name__} fills up its images with padding, which is neither scored nor counted with "
                f'reduction="drop", keep rates and no coverage only, but got {config!r}.'
            )

    def num_prefix_tokens(self, model: Any) -> int:
        return _of(model).prefix(model.config)

    def knows_places(self, model: Any) -> bool:
        family = _of(model)
        return family.tower not in PADDED and family.heads != "Video"

    def has_class_token(self, model: Any) -> bool:
        return self.num_prefix_tokens(model) > 0

    def is_rotary(self, model: nn.Module) -> bool:
        return _of(model).heads == "Rotary"

    def norm(self, model: Any) -> nn.Module:
        name = _of(model).norm
        return (getattr(model, name) if name else None) or nn.Identity()


def _holds(model: nn.Module, name: str) -> bool:
    """Whether a model has such a part; DPT has a backbone, or layers of its own."""
    return any(name == there for there, _ in model.named_modules())


def _family(model: nn.Module) -> Family | None:
    """The family of a tower, stock or swapped."""
    kind = type(model)
    swapped = getattr(kind, "family", None)
    if isinstance(swapped, Family):
        return swapped
    return next((f for f in FAMILIES if f.path == kind.__module__ and kind.__name__ in f.towers), None)


def _check_version() -> None:
    version = sys.modules["transformers"].__version__
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise UnsupportedModelError(
            f"transformers must be {wanted} or newer, whose models are laid out otherwise than those of {version}: "
            f"pip install 'transformers>={wanted}'. Checkpoints stay as they are."
        )


def _of(model: nn.Module) -> Family:
    family = _family(model)
    assert family is not None
    return family


def _name(model: nn.Module) -> str:
    """The class of a tower in its family's table; FSDP derives classes of other names."""
    return next(kind.__name__ for kind in type(model).__mro__ if kind.__name__ in _of(model).towers)


def _table(names: Callable[[Family], tuple[str, ...]]) -> dict[type, type]:
    """Stock class -> swapped class, of the files of transformers that are imported already."""
    from entropatch.surgery.adapters.transformers import classes

    there = [(sys.modules[family.path], family) for family in FAMILIES if family.path in sys.modules]
    return {getattr(file, name): getattr(classes, name) for file, family in there for name in names(family)}
