"""What the files of all model libraries share: classes swapped by tables, and refusals of what no table lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.wrappers import inside, rebased

# What is read of a model's tokens once its blocks have run: what its own class makes of them, or its prefix tokens; any
# number of patch tokens; or all of them at their places on the grid, so that pruned ones are put back.
READS = ("pooled", "tokens", "grid")


class Adapter(ABC):
    """What surgery knows of one model library. All functions take the model, stock or pruned.

    A library's file lists its classes beside subclasses of theirs: the model's gives its loop over the blocks to
    `entropatch.surgery.loop.run_blocks`, a block's is a `SplitBlock`.

    Attributes:
        library: its name, for refusals.
        models, blocks_table, attention: stock class -> swapped class. `attention` is empty where a block's subclass
            computes its attention itself.
        others: further classes that are swapped, such as the container of the blocks and what is around it.
        towers: class of a larger model -> where in it the model is that is pruned, such as "visual". That may be one
            of another library, and larger than its own tower again.
        container: where the model holds its blocks, such as "blocks" or "encoder.layer".
        attention_name: a block's attribute that is its attention.
        entry: the model's method that runs the blocks and what is around them, checked against the original at surgery;
            None where the original runs what is around the blocks.
        replaceable: methods whose replacement on an instance is refused.
    """

    library: ClassVar[str] = ""
    models: ClassVar[dict[type, type]] = {}
    blocks_table: ClassVar[dict[type, type]] = {}
    attention: ClassVar[dict[type, type]] = {}
    others: ClassVar[dict[type, type]] = {}
    towers: ClassVar[dict[type, str]] = {}
    container: ClassVar[str] = "blocks"
    attention_name: ClassVar[str] = "attn"
    entry: ClassVar[str | None] = "forward"
    replaceable: ClassVar[tuple[str, ...]] = ("forward",)

    @cached_property
    def swapped(self) -> dict[type, type]:
        """All tables in one."""
        return self.models | self.blocks_table | self.attention | self.others

    @cached_property
    def stock(self) -> dict[type, type]:
        """The other way round: swapped class -> stock class."""
        return {swapped: stock for stock, swapped in self.swapped.items()}

    @property
    def supported(self) -> str:
        """The classes that are understood, in words."""
        models = ", ".join(kind.__name__ for kind in self.models)
        larger = ", ".join(kind.__name__ for kind in self.towers)
        inside = f" (also inside {larger})" if larger else ""
        return f"{self.library} {models}{inside} with blocks {', '.join(kind.__name__ for kind in self.blocks_table)}"

    # What a library's file must say, or may say otherwise.

    @abstractmethod
    def example(self, model: nn.Module) -> Any:
        """One random image of the model's size, on its device and of its type; as `run_model` takes it."""

    def run_model(self, kind: type, model: nn.Module, example: Any) -> Any:
        """What the model gives for its example, run as one of class `kind`: a nest of tensors."""
        assert self.entry is not None
        return getattr(kind, self.entry)(model, example)

    def run_block(self, kind: type, block: nn.Module, x: Tensor, inputs: dict[str, Any]) -> Tensor:
        """What a block gives for tokens (batch, tokens, width), run as one of the stock class `kind`."""
        return kind.forward(block, x, **inputs)

    def tower(self, model: nn.Module) -> str | None:
        """Where the model that is pruned is in a larger one; None if this file knows no such larger model.

        Raises:
            UnsupportedModelError: it has none, several, or one that must not be pruned there.
        """
        return self.towers.get(type(model))

    def reads_of_tower(self, model: nn.Module) -> str:
        """What a larger model reads of its tower's tokens: one of `READS`."""
        return "pooled"

    def reads(self, model: nn.Module) -> str:
        """What is read of the model's tokens whatever holds it: one of `READS`."""
        return "pooled"

    def run_images(self, whole: nn.Module, model: nn.Module, images: Tensor) -> None:
        """Run the blocks of a model on images, alone or as `whole`, the larger model that holds it."""
        run: Any = getattr(whole, "forward_features", whole)  # without the head, where it can be run so
        run(images)

    def fit_processor(
        self, processor: Any, model: nn.Module, tokens_left: Callable[[int, int | None], int]
    ) -> int | None:
        """Make a processor write as many placeholders as a larger model has visual tokens, and say how many; None for
        a model whose number is fixed.

        Args:
            processor: changed in place.
            model: the larger model.
            tokens_left: (patches, blocks) -> how many are left after so many blocks, None for all.

        Raises:
            UnsupportedModelError: it is not known how.
        """
        raise UnsupportedModelError(f"{type(model).__name__} is no vision-language model that is supported.")

    def check_inputs(self, model: Any, block: int, patches: int) -> tuple[Tensor, dict[str, Any]]:
        """Random tokens for a block, (1, prefix + patches, width), and what else the block is given."""
        return self.random_tokens(model, patches, model.embed_dim), {}

    def num_prefix_tokens(self, model: Any) -> int:
        return model.num_prefix_tokens

    def has_class_token(self, model: Any) -> bool:
        return model.cls_token is not None

    def knows_places(self, model: nn.Module) -> bool:
        """Whether each patch stands at a known place of a grid of two dimensions, whatever the input."""
        return True

    def is_rotary(self, model: nn.Module) -> bool:
        """Whether positions are in the attention of every block, so that an appended token has none."""
        return False

    def norm(self, model: Any) -> nn.Module:
        """The final norm, which `restore` puts the values of pruned patches through."""
        return model.norm

    def output_projection(self, block: Any) -> Tensor:
        """W_O of a block, wrapped or not, which the output of its heads is multiplied by: (width, heads · head width).

        Raises:
            UnsupportedModelError: it has none, or something stands between the heads and it.
        """
        raise UnsupportedModelError(
            f"entropatch's adapter of {self.library} does not say where the output projection of an attention is, "
            "which the criterion asks for; use ClassAttention()."
        )

    def refuse_model(self, model: nn.Module) -> None:  # noqa: B027  # there may be none
        """Raise UnsupportedModelError for a part around the blocks that is not understood."""

    def refuse_setting(self, model: nn.Module, config: PruneConfig) -> None:  # noqa: B027  # there may be none
        """Raise UnsupportedModelError for a setting that this model cannot have."""

    def attention_of(self, block: nn.Module) -> nn.Module | None:
        """The attention module of a block; None if it has none."""
        return getattr(block, self.attention_name, None)

    def refuse_block(self, block: Any, what: str) -> None:  # noqa: B027  # there may be none
        """Raise UnsupportedModelError for a stock block, of a class that is listed, with a part not understood."""

    # What is the same for all.

    def recognises(self, model: nn.Module) -> bool:
        """Whether the model is of a class this file understands, stock or swapped."""
        return type(model) in self.models or isinstance(model, tuple(self.models.values()))

    def is_swapped(self, part: nn.Module) -> bool:
        """Whether a model or a block, past its wrappers, is of a swapped class."""
        return inside(part, self._is_swapped) is not None

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks in the order they run, wrappers included."""
        return list(self.container_of(model))

    def container_of(self, model: nn.Module) -> Any:
        """The module that holds the blocks."""
        return attrgetter(self.container)(model)

    def _around(self, model: nn.Module) -> list[nn.Module]:
        """The modules on the way from the model to its blocks, the container last."""
        names = self.container.split(".")
        return [attrgetter(".".join(names[: i + 1]))(model) for i in range(len(names))]

    def stock_class(self, part: nn.Module) -> type:
        """The class a part, past its wrappers, has without pruning."""
        return rebased(type(inside(part, self._is_swapped) or part), self.stock)

    def refuse_parts(self, model: nn.Module) -> None:
        """Raise UnsupportedModelError for a stock part that cannot be split, or whose forward was replaced."""
        if not self.is_swapped(model):
            self._refuse_replaced(model, "the model")
            self.refuse_model(model)
            for part in self._around(model):
                self._refuse_replaced(part, "the container of the blocks")
        blocks = self.blocks(model)
        if len({id(block) for block in blocks}) < len(blocks):
            raise UnsupportedModelError(
                "the model runs one block several times; each block must be a module of its own."
            )
        for i, block in enumerate(blocks):
            if self.is_swapped(block):
                continue
            self._refuse_part(block, self.blocks_table, f"block {i}", "cannot be split after its attention residual")
            if self.attention:
                what, why = f"the attention of block {i}", "has no single softmax over its patches"
                self._refuse_part(self.attention_of(block), self.attention, what, why)
            self.refuse_block(block, f"block {i}")

    def swap(self, model: Any) -> list[tuple[nn.Module, type]]:
        """Swap the classes of the model and of its blocks that are stock; returns each part with its class before."""
        fresh = [block for block in self.blocks(model) if not self.is_swapped(block)]
        parts: list[Any] = [part for block in fresh for part in (self.attention_of(block) or block, block)]
        parts += [*reversed(self._around(model)), model]
        changed = [(part, type(part)) for part in parts if type(part) in self.swapped]
        for part, kind in changed:
            part.__class__ = self.swapped[kind]
        return changed

    def unswap(self, model: nn.Module) -> None:
        """The stock classes again. Raises UnsupportedModelError, changing nothing, where that is not possible."""
        changed = [(part, rebased(type(part), self.stock)) for part in model.modules() if self._is_swapped(part)]
        for part, kind in changed:
            own = vars(part).get("forward")
            if own is not None and getattr(own, "__func__", None) is not type(part).forward:
                raise UnsupportedModelError(
                    f"the forward of this {kind.__name__} was replaced on the instance by one that calls the pruned "
                    "forward; undo that first (Accelerate's mixed precision: "
                    "accelerator.unwrap_model(model, keep_fp32_wrapper=False))."
                )
            if issubclass(kind, tuple(self.stock)):
                raise UnsupportedModelError(
                    f"{type(part).__module__}.{type(part).__qualname__} was derived from a pruned class in a way that "
                    "cannot be undone; undo what derived it (FSDP, parametrize) first."
                )
        for part, kind in changed:
            vars(part).pop("forward", None)  # which, if there, is that of the swapped class
            part.__class__ = kind

    def random_tokens(self, model: nn.Module, patches: int, width: int) -> Tensor:
        """Random tokens of one image, (1, prefix + patches, width), of the type and on the device of the blocks."""
        parameter = next(p for p in self.container_of(model).parameters() if p.is_floating_point())
        # Drawn on the CPU from a generator of its own: the user's random state stays as it was.
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, self.num_prefix_tokens(model) + patches, width, generator=generator, device="cpu")
        return x.to(parameter.device, parameter.dtype)

    def unwrapped(self, block: nn.Module) -> nn.Module:
        """A block, past its wrappers."""
        return inside(block, self._is_swapped) or block

    def _is_swapped(self, part: nn.Module) -> bool:
        return isinstance(part, tuple(self.stock))

    def _refuse_part(self, part: nn.Module | None, table: dict[type, type], what: str, why: str) -> None:
        kind = type(part)
        if part is None or kind not in table:
            known = ", ".join(stock.__name__ for stock in table)
            raise UnsupportedModelError(
                f"{what} is a {kind.__module__}.{kind.__qualname__}, which {why}. Supported: {known}."
            )
        self._refuse_replaced(part, what)

    def _refuse_replaced(self, part: nn.Module, what: str) -> None:
        for method in self.replaceable:
            if method in vars(part):
                raise UnsupportedModelError(
                    f"{what} ({type(part).__name__}) had its {method} replaced on the instance; prune the stock model."
                )
        if getattr(part, "_compiled_call_impl", None) is not None:
            raise UnsupportedModelError(
                f"{what} ({type(part).__name__}) is compiled already; prune it first, then compile."
            )


def linear_weight(projection: Any, between: Sequence[str]) -> Tensor:
    """The weight of an output projection. Raises UnsupportedModelError for what is not linear in the values.

    Args:
        projection: the module.
        between: what stands between the heads and it.
    """
    if between:
        raise UnsupportedModelError(
            f"the attention has {' and '.join(between)} between its heads and its output projection, so no value has "
            "an image of its own under it, which the criterion asks for; use ClassAttention()."
        )
    if not isinstance(projection, nn.Linear):
        raise UnsupportedModelError(
            f"the output projection of the attention is a {type(projection).__name__}, but the criterion asks for the "
            "weight of an nn.Linear; use ClassAttention()."
        )
    return projection.weight
