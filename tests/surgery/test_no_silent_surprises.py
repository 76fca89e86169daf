"""What goes on around a pruned model without its knowledge is an error, or works; it never runs dense in silence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import create, photographs
from timm.models.vision_transformer import Block, VisionTransformer
from timm.utils import AttentionExtract
from torch import Tensor, nn

import entropatch
from entropatch import UnsupportedModelError

pytestmark = pytest.mark.usefixtures("one_thread")


def pruned(name: str, **setting: Any) -> Any:
    return entropatch.prune_(create(name), **{"keep_rate": 0.5} | setting)


def counts(model: nn.Module, images: Tensor) -> list[Any]:
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
    return trace.counts


# --- tokens that others add or take -------------------------------------------------------------------------------


def longer(y: Tensor) -> Tensor:
    """Ten more tokens, as prompt tuning inserts them."""
    return torch.cat((y, y[:, :10]), dim=1)


@pytest.mark.parametrize("name", ["deit", "dinov3"])
def test_tokens_inserted_before_the_blocks(name: str) -> None:
    model = pruned(name)
    handle = model.norm_pre.register_forward_hook(lambda module, args, y: longer(y))
    images = photographs(model)
    with pytest.raises(ValueError, match=r"35 tokens beside \d prefix tokens enter .* the grid has 5 × 5"):
        model(images)
    handle.remove()
    assert counts(model, images) == [25, 13, 7, 4]


@pytest.mark.parametrize("block", [0, 1, 3])
def test_tokens_inserted_before_a_block(block: int) -> None:
    model = pruned("deit")
    model.blocks[block].register_forward_pre_hook(lambda module, args: (longer(args[0]),))
    with pytest.raises(ValueError, match=f"block {block} was given .* a hook adds or removes tokens"):
        model(photographs(model))


@pytest.mark.parametrize("block", [0, 2])
def test_tokens_inserted_after_a_block(block: int) -> None:
    model = pruned("deit")
    model.blocks[block].register_forward_hook(lambda module, args, y: longer(y))
    with pytest.raises(ValueError, match=f"block {block} returned .* a hook adds or removes tokens"):
        model(photographs(model))


# --- models and parts that are not understood ---------------------------------------------------------------------


class OtherEmbedding(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("name", ["deit", "eva-02"])
def test_a_foreign_patch_embedding_is_refused_by_name(name: str) -> None:
    model: Any = create(name)
    model.patch_embed = OtherEmbedding(model.patch_embed)
    kind = type(model)
    with pytest.raises(UnsupportedModelError, match=r"patch embedding is a .*OtherEmbedding, .* no dynamic_feat_size"):
        entropatch.prune_(model)
    assert type(model) is kind


@pytest.mark.parametrize("name", ["deit", "dinov3"])
def test_a_library_that_embeds_or_norms_otherwise_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create(name)
    kind = type(model)
    forward = kind.forward_features  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(kind, "forward_features", lambda self, x, *args, **kw: 1.01 * forward(self, x, *args, **kw))
    with pytest.raises(UnsupportedModelError, match="does not embed its patches, or norm its tokens"):
        entropatch.prune_(model)
    assert type(model) is kind


def test_symbolic_tracing_is_refused() -> None:
    model = pruned("deit")
    for trace in (torch.fx.symbolic_trace, lambda m: AttentionExtract(m, method="fx")):
        with pytest.raises(UnsupportedModelError, match=r"cannot be traced by torch\.fx.*method='hook'"):
            trace(model)


# --- blocks run by others, replaced or reordered --------------------------------------------------------------------


def run_over(blocks: Any, x: Tensor, inputs: dict[str, Any]) -> Tensor:
    for block in blocks:
        x = block(x, **inputs)
    return x


def test_a_loop_of_ones_own_over_the_blocks() -> None:
    for name in ("deit", "dinov3"):
        model = pruned(name)
        x = model._pos_embed(model.patch_embed(photographs(model)))
        x, given = x if isinstance(x, tuple) else (x, None)
        with pytest.raises(RuntimeError, match="called outside the model's own loop, where nothing would be pruned"):
            run_over(model.blocks, x, {} if given is None else {"rope": given})
    model = pruned("deit")
    with pytest.raises(RuntimeError, match="called outside the model's own loop"):
        model.blocks(model._pos_embed(model.patch_embed(photographs(model))))
    entropatch.unprune_(model)
    model.blocks(model._pos_embed(model.patch_embed(photographs(model))))


def test_hooks_of_the_container_of_the_blocks_fire() -> None:
    model, seen = pruned("deit"), []
    model.blocks.register_forward_hook(lambda module, args, y: seen.append(y.shape[1]))
    model(photographs(model))
    assert seen == [5]
    handle = model.blocks.register_forward_hook(lambda module, args, y: 2 * y)
    changed = model.forward_features(photographs(model))
    handle.remove()
    assert not torch.equal(changed, model.forward_features(photographs(model)))


@pytest.mark.parametrize("name", ["deit", "dinov3", "rope mixed"])
def test_reordered_blocks_prune_by_their_new_places(name: str) -> None:
    model, stock = pruned(name), create(name)
    for each in (model, stock):
        blocks: Any = each.blocks
        each.blocks = (
            type(blocks)(*reversed(blocks)) if isinstance(blocks, nn.Sequential) else nn.ModuleList(blocks[::-1])
        )
    images = photographs(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images), entropatch.prune_(stock, keep_rate=0.5)(images))
    assert counts(model, images) == [25, 13, 7, 4]


def test_a_block_that_was_replaced_is_an_error_until_the_model_is_pruned_again() -> None:
    model, donor = pruned("deit"), create("deit")
    model.blocks[1] = donor.blocks[1]  # pyright: ignore[reportIndexIssue]
    images = photographs(model)
    with pytest.raises(RuntimeError, match=r"block 1 \(Block\) of a pruned model is not pruned: it was replaced"):
        model(images)
    entropatch.prune_(model, keep_rate=0.5)
    assert counts(model, images) == [25, 13, 7, 4]


def test_a_class_changed_back_by_hand() -> None:
    model = pruned("deit")
    model.blocks[2].__class__ = Block
    with pytest.raises(RuntimeError, match=r"block 2 \(Block\) of a pruned model is not pruned"):
        model(photographs(model))
    model = pruned("deit")
    model.__class__ = VisionTransformer
    with pytest.raises(RuntimeError, match="called outside the model's own loop"):
        model(photographs(model))
    for ask in (entropatch.pruning_config, entropatch.unprune_, lambda m: entropatch.trace(m).__enter__()):
        with pytest.raises(ValueError, match="is not pruned"):
            ask(model)
    entropatch.prune_(model, keep_rate=0.5)  # anew
    assert counts(model, photographs(model)) == [25, 13, 7, 4]


def test_a_shallow_copy_has_a_setting_of_its_own_and_shares_the_blocks() -> None:
    model = pruned("deit")
    twin, images = copy.copy(model), photographs(model)
    entropatch.prune_(twin, keep_rate=0.8)
    assert counts(model, images) == [25, 13, 7, 4]
    assert counts(twin, images) == [25, 20, 16, 13]
    entropatch.unprune_(twin)
    with pytest.raises(RuntimeError, match="a copy that shares it was unpruned"):
        model(images)


# --- nothing at all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [{}, {"method": "evit"}, {"method": "tome"}, {"method": "shannon-merge"}])
@pytest.mark.parametrize("name", ["deit", "deit distilled", "average", "rope mixed"])
def test_an_empty_batch_gives_an_empty_result(name: str, setting: dict[str, Any]) -> None:
    if setting.get("method") == "evit" and name in ("average", "rope mixed"):
        pytest.skip("no class token, or no place for a fused token")
    model, stock = pruned(name, **setting), create(name)
    none = photographs(model)[:0]
    with torch.no_grad():
        assert model(none).shape == stock(none).shape == (0, 5)
    assert counts(model, none)[0] == 25
