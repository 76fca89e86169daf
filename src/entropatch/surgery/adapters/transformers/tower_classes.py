"""The towers of transformers: their own forward runs, and hands each layer the `Stepwise` of the forward pass."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from entropatch.surgery.adapters.transformers.families import Family, pair
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.state import ATTRIBUTE, Pruning
from entropatch.surgery.stepwise import Stepwise


class SplitTower:
    """A tower whose keyword arguments reach its layers.

    A family's class derives from this and from the stock tower.
    """

    family: ClassVar[Family]
    stock: ClassVar[type]
    mask_place: ClassVar[int | None]  # of attention_mask among the positional arguments

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Made anew, as by type(model).from_pretrained, it has no setting, and is a stock tower. Copies give no config.
        return cls.stock(*args, **kwargs) if args or kwargs else super().__new__(cls)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        masked = self.is_masked(*args, **kwargs)
        run = Stepwise(self, self.grid_of(*args, **kwargs), self.padding_of(*args, **kwargs), masked)
        self.refuse_outputs(kwargs)
        output = self.run_stock(*args, run=run, **kwargs)
        run.end()
        return output

    def run_stock(self: Any, *args: Any, run: Stepwise, **kwargs: Any) -> Any:
        """The stock tower's forward, whose layers are handed `run`."""
        return self.stock.forward(self, *args, run=run, **kwargs)

    def grid_of(self: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> tuple[int, ...]:
        """The patch grid of an input."""
        height, width = pair(self.config.patch_size)
        return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width

    def is_masked(self: Any, *args: Any, attention_mask: Any = None, **kwargs: Any) -> bool:
        """Whether the caller gave an attention mask."""
        place = self.mask_place
        return attention_mask is not None or (place is not None and len(args) > place and args[place] is not None)

    def padding_of(self: Any, *args: Any, **kwargs: Any) -> Tensor | None:
        """Which patches of an input are none, False there: (batch, patches); None if the input cannot have such."""
        return None

    def refuse_outputs(self: Any, kwargs: dict[str, Any]) -> None:
        """Raise UnsupportedModelError where images of different sizes cannot be put into what is asked for."""
        pruning: Pruning = vars(self)[ATTRIBUTE]
        asked = kwargs.get("output_attentions", getattr(self.config, "output_attentions", False))
        if pruning.config.schedule.per_image and asked:
            raise UnsupportedModelError(
                f"output_attentions gives one matrix per layer and batch, but under {pruning.config.schedule!r} images "
                "keep different numbers of tokens; use entropatch.watch, or a schedule with one number for all."
            )


class Padded(SplitTower):
    """SigLIP 2: images of different grids are filled up to one number of patches, and a mask says with which."""

    def grid_of(self: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> tuple[int, ...]:
        """That of the images, if all have one; else their patches in a row, (1, N)."""
        shapes = {tuple(shape) for shape in self.named_inputs(pixel_values, *args, **kwargs)[2].tolist()}
        only = shapes.pop() if len(shapes) == 1 else (1, 0)
        return only if only[0] * only[1] == pixel_values.shape[1] else (1, pixel_values.shape[1])

    def padding_of(self: Any, *args: Any, **kwargs: Any) -> Tensor | None:
        mask = self.named_inputs(*args, **kwargs)[1]
        return None if mask is None else mask.bool()

    @staticmethod
    def named_inputs(
        pixel_values: Tensor, pixel_attention_mask: Tensor | None, spatial_shapes: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        return pixel_values, pixel_attention_mask, spatial_shapes

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def run_stock(
        self: Any,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None,
        spatial_shapes: Tensor,
        *,
        run: Stepwise,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        x = self.embeddings(pixel_values, spatial_shapes)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=pixel_attention_mask)
        x = self.encoder(inputs_embeds=x, attention_mask=mask, run=run, **kwargs).last_hidden_state
        x = self.post_layernorm(x)
        # The head is given the mask of the tokens that are left.
        left = pixel_attention_mask if run.left.positions is None else run.left.valid
        pooled = self.head(x, left) if self.use_head else None
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)


class Video(SplitTower):
    """VideoMAE, whose own forward hands its layers nothing."""

    def grid_of(self: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> tuple[int, ...]:
        height, width = pair(self.config.patch_size)
        frames, _, *size = pixel_values.shape[1:]
        return frames // self.config.tubelet_size, size[0] // height, size[1] // width

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def run_stock(
        self: Any, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, *, run: Stepwise, **kwargs: Any
    ) -> BaseModelOutput:
        x = self.encoder(self.embeddings(pixel_values, bool_masked_pos), run=run).last_hidden_state
        return BaseModelOutput(last_hidden_state=x if self.layernorm is None else self.layernorm(x))


class Silent(SplitTower):
    """InternVL, whose own forward hands its layers nothing, and whose encoder takes nothing to hand on."""

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def run_stock(
        self: Any, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, *, run: Stepwise, **kwargs: Any
    ) -> Any:
        x = self.embeddings(pixel_values, bool_masked_pos=bool_masked_pos)
        for layer in self.encoder.layer:
            x = layer(x, run=run)
        file = sys.modules[self.stock.__module__]
        return file.InternVLVisionModelOutputWithPooling(last_hidden_state=self.layernorm(x))


class Tiled(SplitTower):
    """Idefics and SmolVLM: images are cut into tiles, some filled up, and a mask (batch, H, W) says where."""

    def padding_of(self: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.mask_of(pixel_values, *args, **kwargs).flatten(1)

    def mask_of(self: Any, pixel_values: Tensor, patch_attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        if patch_attention_mask is not None:
            return patch_attention_mask.bool()
        size = (pixel_values.shape[0], *self.grid_of(pixel_values))
        return torch.ones(size, dtype=torch.bool, device=pixel_values.device)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def run_stock(
        self: Any, pixel_values: Tensor, patch_attention_mask: Tensor | None = None, *, run: Stepwise, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        mask = self.mask_of(pixel_values, patch_attention_mask)
        x = self.embeddings(pixel_values=pixel_values, patch_attention_mask=mask)
        seen = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=mask.flatten(1))
        for layer in self.encoder.layers:
            x = layer(x, seen, run=run)
        return BaseModelOutputWithPooling(last_hidden_state=self.post_layernorm(x))
