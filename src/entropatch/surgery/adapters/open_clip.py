"""OpenCLIP's own `VisionTransformer`, inside `CLIP`, `CustomTextCLIP` and `CoCa`; a timm tower goes to timm's adapter.

The text tower has blocks of the same classes, under a causal mask; it is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from open_clip import coca_model, timm_model, transformer
from open_clip import model as clip_model
from open_clip.utils import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from entropatch.surgery.adapters.base import Adapter, linear_weight
from entropatch.surgery.adapters.torch_modules import (
    MultiheadAttention,
    RunsLoop,
    refuse_odd_attention,
    run_inside,
)
from entropatch.surgery.checkpointing import checkpointed
from entropatch.surgery.dense_maps import dense_maps
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.loop import Passed, Stream, in_order, run_blocks
from entropatch.surgery.split_block import SplitBlock
from entropatch.surgery.state import undisturbed
from entropatch.surgery.visit import Visit


class ResidualAttentionBlock(SplitBlock, transformer.ResidualAttentionBlock):
    def whole(self, x: Tensor) -> Tensor:
        return self.turned(super().whole(self.turned(x)))

    def turned(self, x: Tensor) -> Tensor:
        """From (batch, tokens, width) to the stock block's layout, which may be (tokens, batch, width), and back."""
        return x if self.attn.batch_first else x.transpose(0, 1).contiguous()

    def attention_half(self, x: Tensor, visit: Visit) -> Tensor:
        y = self.ln_1(self.turned(x))
        y, _ = self.attn(y, y, y, need_weights=False, visit=visit)
        return x + self.turned(self.ls_1(y))

    def mlp_half(self, x: Tensor) -> Tensor:
        return x + self.turned(self.ls_2(self.mlp(self.ln_2(self.turned(x)))))


class CustomResidualAttentionBlock(SplitBlock, transformer.CustomResidualAttentionBlock):
    def attention_half(self, x: Tensor, visit: Visit) -> Tensor:
        return x + self.ls_1(self.ln_attn(self.attn(self.ln_1(x), visit=visit)))

    def mlp_half(self, x: Tensor) -> Tensor:
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Attention(transformer.Attention):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, visit: Visit | None = None) -> Tensor:
        if visit is None:
            return super().forward(x, attn_mask)
        # Where nothing is reduced and nobody asks for gradients, looking leaves no mark on the graph.
        traced = not visit.keeps_all or any(watch.gradients for watch in visit.watches)
        with torch.set_grad_enabled(traced and torch.is_grad_enabled()):
            packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
            q, k, v = packed.unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
            q, k = self.ln_q(q), self.ln_k(k)
        dropout = self.attn_drop.p if self.training else 0.0
        attention = visit.attention(q, k, v, scale=None, dropout=dropout, fused=True)
        visit.see(attention)
        if visit.keeps_all:
            return super().forward(x, attn_mask)
        y = attention.output()
        if self.head_scale is not None:
            y = y * self.head_scale
        y = self.ln_inner(y.transpose(1, 2).flatten(2))
        return self.out_drop(self.out_proj(y))


class Transformer(RunsLoop, transformer.Transformer):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


class VisionTransformer(transformer.VisionTransformer):
    def forward(self, x: Tensor) -> Any:
        """As in the stock model; the tokens of `output_tokens` are those that are left.

        Where images keep different numbers of them, rows end in NaN.
        """
        pooled, tokens = self.pool_streams(self.run_streams(x))
        return (pooled, tokens) if self.output_tokens else pooled

    def run_streams(self, images: Tensor) -> list[Stream]:
        """What leaves the last block: the whole batch, or a group of images for each size."""
        if isinstance(images, torch.fx.Proxy):
            raise UnsupportedModelError(
                "a pruned model cannot be traced by torch.fx, since what it computes depends on its input; "
                "entropatch.unprune_ it first, or use hooks."
            )
        grid = self.grid(images)
        return run_inside(self.transformer, self._embeds(images), lambda x: self.run_blocks(x, grid))

    def run_blocks(
        self, x: Tensor, grid: tuple[int, int], last: int | None = None, taken: Sequence[int] = ()
    ) -> Passed:
        modules = list(self.transformer.resblocks)

        def call(i: int, x: Tensor, visit: Visit) -> Tensor:
            def run(visit: Visit, x: Tensor) -> Tensor:
                return modules[i](x, visit=visit)

            if self.transformer.grad_checkpointing:
                return checkpointed(_checkpoint, run, visit, x)
            return run(visit, x)

        left = _left_by_dropout(self.patch_dropout, grid[0] * grid[1])
        return run_blocks(self, x, grid, call, patches=left, last=last, taken=taken)

    def pool_streams(self, streams: Sequence[Stream]) -> tuple[Tensor, Tensor]:
        """The pooled and projected output of the whole batch, in its order, and the tokens beside it."""
        with undisturbed(self):
            outputs = [self._pool(stream.x) for stream in streams]
            if self.proj is not None:
                outputs = [(pooled @ self.proj, tokens) for pooled, tokens in outputs]
        pooled, tokens = ([output[i] for output in outputs] for i in (0, 1))
        return in_order(streams, pooled), in_order(streams, tokens)

    def grid(self, images: Tensor) -> tuple[int, int]:
        patch: Any = self.patch_size  # a pair; the stock class says nothing of its type
        return images.shape[-2] // patch[0], images.shape[-1] // patch[1]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
    ) -> dict[str, Any]:
        """OpenCLIP's `forward_intermediates`; every map is dense, a pruned patch showing the last value it had."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, but got {output_fmt!r}.")
        wanted, last = feature_take_indices(len(self.transformer.resblocks), indices)
        wanted, grid = sorted(set(wanted)), self.grid(x)
        passed = self.run_blocks(self._embeds(x), grid, last if stop_early else None, wanted)
        maps, prefixes = dense_maps(passed, wanted, 1, self.ln_post if normalize_intermediates else nn.Identity())
        if output_fmt == "NCHW":
            maps = [y.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for y in maps]
        output: dict[str, Any] = {"image_intermediates": maps}
        if output_extra_tokens:
            output["image_intermediates_prefix"] = prefixes
        if not intermediates_only:
            output["image_features"] = self.pool_streams(passed.streams)[0]
        return output


class OpenClipAdapter(Adapter):
    library = "open_clip"
    models: ClassVar[dict[type, type]] = {transformer.VisionTransformer: VisionTransformer}
    blocks_table: ClassVar[dict[type, type]] = {
        transformer.ResidualAttentionBlock: ResidualAttentionBlock,
        transformer.CustomResidualAttentionBlock: CustomResidualAttentionBlock,
    }
    attention: ClassVar[dict[type, type]] = {
        nn.MultiheadAttention: MultiheadAttention,
        transformer.Attention: Attention,
    }
    others: ClassVar[dict[type, type]] = {transformer.Transformer: Transformer}
    towers: ClassVar[dict[type, str]] = {
        clip_model.CLIP: "visual",
        clip_model.CustomTextCLIP: "visual",
        coca_model.CoCa: "visual",
        timm_model.TimmModel: "trunk",
    }
    container = "transformer.resblocks"
    replaceable: ClassVar[tuple[str, ...]] = (
        "forward",
        "forward_intermediates",
        "attention",
        "_embeds",
        "_pool",
        "_global_pool",
    )

    def example(self, model: Any) -> Tensor:
        weight = model.conv1.weight
        image = torch.randn(1, weight.shape[1], *model.image_size, generator=torch.Generator().manual_seed(0))
        return image.to(weight.device, weight.dtype)

    def check_inputs(self, model: Any, block: int, patches: int) -> tuple[Tensor, dict[str, Any]]:
        # In half precision norms may stay float32, and cast back to what the tokens are.
        weight = model.conv1.weight
        return self.random_tokens(model, patches, weight.shape[0]).to(weight.dtype), {}

    def run_block(self, kind: type, block: Any, x: Tensor, inputs: dict[str, Any]) -> Tensor:
        if _is_batch_first(block):
            return super().run_block(kind, block, x, inputs)
        return super().run_block(kind, block, x.transpose(0, 1).contiguous(), inputs).transpose(0, 1)

    def num_prefix_tokens(self, model: Any) -> int:
        return 1

    def knows_places(self, model: Any) -> bool:
        return isinstance(model.patch_dropout, nn.Identity)

    def has_class_token(self, model: Any) -> bool:
        return True

    def norm(self, model: Any) -> nn.Module:
        """The norm of the tokens; none where it comes after the pooling."""
        late = model.attn_pool is not None or model.final_ln_after_pool
        return nn.Identity() if late else model.ln_post

    def output_projection(self, block: Any) -> Tensor:
        attention: Any = self.attention_of(self.unwrapped(block))
        between = {
            "a scale of each head": getattr(attention, "head_scale", None) is not None,
            "a norm": not isinstance(getattr(attention, "ln_inner", nn.Identity()), nn.Identity),
        }
        return linear_weight(attention.out_proj, [name for name, there in between.items() if there])

    def refuse_model(self, model: Any) -> None:
        if type(model.transformer) is not transformer.Transformer:
            raise UnsupportedModelError(
                f"the transformer of the VisionTransformer is a {type(model.transformer).__name__}, which is not "
                "understood. Supported: Transformer."
            )
        layouts = {_is_batch_first(block) for block in self.blocks(model) if hasattr(block, "attn")}
        if layouts - {model.transformer.batch_first}:
            raise UnsupportedModelError(
                f"the transformer has batch_first={model.transformer.batch_first}, but blocks of it have another "
                "layout, so that they would attend across the images of a batch; set both alike."
            )

    def refuse_block(self, block: Any, what: str) -> None:
        if hasattr(block, "ln_1_kv"):
            raise UnsupportedModelError(
                f"{what} is built for cross-attention (is_cross_attention=True), whose keys are no patches of the "
                "image; a vision tower needs blocks without."
            )
        attention = block.attn
        if isinstance(attention, nn.MultiheadAttention):
            refuse_odd_attention(attention, f"the attention of {what}")
        elif attention.logit_scale is not None or not attention.use_fsdpa:
            setting = "scaled_cosine_attn=True" if attention.logit_scale is not None else "use_fsdpa=False"
            raise UnsupportedModelError(
                f"the attention of {what} has {setting}, a path of OpenCLIP's Attention that multiplies matrices of "
                "four dimensions by torch.bmm and so runs on no input; build the tower without."
            )


def _is_batch_first(block: Any) -> bool:
    return getattr(block.attn, "batch_first", True)


def _checkpoint(run: Any, *inputs: Tensor) -> Any:
    return checkpoint(run, *inputs, use_reentrant=False)


def _left_by_dropout(drop: Any, patches: int) -> int | None:
    """How many patches OpenCLIP's patch dropout leaves; None where there is none."""
    prob = getattr(drop, "prob", 0.0) if drop.training else 0.0
    return max(1, int(patches * (1 - prob))) if prob else None
