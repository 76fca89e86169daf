"""The towers of transformers: their own forward runs, and hands each layer the `Stepwise` of the forward pass."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from entropatch.surgery.adapters.transformers.families import Family
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.state import ATTRIBUTE, Pruning
from entropatch.surgery.stepwise import Stepwise


class SplitTower:
    """A tower whose keyword arguments reach its layers.

    A family's class derives from this and from the stock tower.
    """

    family: ClassVar[Family]
    stock: ClassVar[type]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = Stepwise(self, self.grid_of(*args, **kwargs))
        self.refuse_outputs(kwargs)
        output = self.stock.forward(self, *args, run=run, **kwargs)
        run.end()
        return output

    def grid_of(self: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> tuple[int, ...]:
        """The patch grid of an input."""
        height, width = pair(self.config.patch_size)
        return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width

    def refuse_outputs(self: Any, kwargs: dict[str, Any]) -> None:
        """Raise UnsupportedModelError where images of different sizes cannot be put into what is asked for."""
        pruning: Pruning = vars(self)[ATTRIBUTE]
        asked = kwargs.get("output_attentions", getattr(self.config, "output_attentions", False))
        if pruning.config.schedule.per_image and asked:
            raise UnsupportedModelError(
                f"output_attentions gives one matrix per layer and batch, but under {pruning.config.schedule!r} images "
                "keep different numbers of tokens; use entropatch.watch, or a schedule with one number for all."
            )


def pair(size: Any) -> tuple[int, int]:
    """A side, or (height, width), as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
