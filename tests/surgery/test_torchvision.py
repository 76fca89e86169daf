"""torchvision's VisionTransformer: the stock model at keep rate 1, the masked dense model below, else refused."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import timm
import torch
import torchvision
from reference_model import evit, renyi
from reference_towers import torchvision_twin
from small_towers import DEPTH, SIZE, TORCHVISION, WIDTH, pictures, refused, torchvision_model, uneven_pictures
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.vision_transformer import Encoder, EncoderBlock, VisionTransformer

import entropatch
from entropatch import UnsupportedModelError

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = {1: 0.7, 2: 0.5, 3: 0.6}
SETTING: dict[str, Any] = {"blocks": tuple(STAGES), "keep_rate": tuple(STAGES.values())}


def dense_and_pruned(name: str = "plain", **setting: Any) -> tuple[Any, Any]:
    return torchvision_model(name), entropatch.prune_(torchvision_model(name), **setting)


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("gradients", [False, True], ids=["fused path", "with gradients"])
def test_keep_rate_one_is_the_stock_model_to_the_last_bit(name: str, gradients: bool) -> None:
    dense, pruned = dense_and_pruned(name, keep_rate=1.0)
    images = pictures()
    with torch.set_grad_enabled(gradients):
        expected = dense(images)
        assert torch.equal(pruned(images), expected)
        with entropatch.trace(pruned) as trace:  # scores are looked at, and the blocks still compute as they did
            assert torch.equal(pruned(images), expected)
    assert trace.counts == [25] * 4
    assert all(scores is not None for scores in trace.scores)


def test_keep_rate_one_draws_the_same_random_numbers_in_training() -> None:
    dense, pruned = (model.train() for model in dense_and_pruned("dropout", keep_rate=1.0))
    outputs = []
    for model in (dense, pruned):
        torch.manual_seed(3)
        outputs.append(model(pictures()))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for ours, theirs in zip(pruned.parameters(), dense.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("part", ["dropout", "self_attention"])
def test_pruning_blocks_drop_out_in_training(part: str) -> None:
    """Where everything is dropped out, what the attention computes does not matter."""
    outputs = []
    for factor in (1.0, 3.0):
        model = entropatch.prune_(torchvision_model(), keep_rate=0.5, blocks=(3,)).train()
        block = model.encoder.layers[3]
        if part == "dropout":
            block.dropout.p = 1.0
        else:
            block.self_attention.dropout = 1.0
        with torch.no_grad():  # of the values only
            block.self_attention.in_proj_weight[2 * WIDTH :] *= factor
        outputs.append(model(pictures()))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", TORCHVISION)
def test_equals_the_dense_model_with_dropped_patches_masked(name: str) -> None:
    dense, pruned = (model.double() for model in dense_and_pruned(name, order=2.0, **SETTING))
    images = pictures(dtype=torch.float64)
    with torch.no_grad(), entropatch.trace(pruned) as trace:
        logits = pruned(images)
    twin = torchvision_twin(dense, images, STAGES, renyi(2.0))
    assert [kept.tolist() for kept in trace.kept] == twin.kept
    assert trace.counts == [25, 18, 9, 6]
    torch.testing.assert_close(logits, twin.output, atol=1e-10, rtol=0)
    for scores, expected in zip(trace.scores, twin.scores, strict=True):
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)
    assert (dense(images) - logits).abs().max() > 0.01, "pruning changed nothing, so the test shows nothing"


def test_class_attention_keeps_the_patches_of_the_loops() -> None:
    dense, pruned = (model.double() for model in dense_and_pruned(criterion=entropatch.ClassAttention(), **SETTING))
    images = pictures(dtype=torch.float64)
    with torch.no_grad(), entropatch.trace(pruned) as trace:
        logits = pruned(images)
    twin = torchvision_twin(dense, images, STAGES, evit)
    assert [kept.tolist() for kept in trace.kept] == twin.kept
    torch.testing.assert_close(logits, twin.output, atol=1e-10, rtol=0)


@pytest.mark.parametrize("setting", [{"keep_rate": 0.5}, {"method": "evit"}, {"method": "tome"}], ids=str)
def test_equals_timm_with_the_same_weights(setting: dict[str, Any]) -> None:
    ours = torchvision_model()
    sizes = {"img_size": SIZE, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "mlp_ratio": 2, "num_classes": 5}
    twin = timm.create_model("vit_base_patch16_224", **sizes).eval()
    twin.load_state_dict(as_timm(ours.state_dict()))
    passes = []
    for model in (ours, twin):
        entropatch.prune_(model.double(), **setting)
        with torch.no_grad(), entropatch.trace(model) as trace:
            passes.append((model(pictures(dtype=torch.float64)), trace))
    (logits, trace), (expected, theirs) = passes
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    assert trace.counts == theirs.counts
    assert all(torch.equal(*kept) for kept in zip(trace.kept, theirs.kept, strict=True))


def as_timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's names in timm's."""
    pairs = {
        "encoder.layers.encoder_layer_": "blocks.", ".ln_1.": ".norm1.", ".ln_2.": ".norm2.", ".mlp.0.": ".mlp.fc1.",
        ".mlp.3.": ".mlp.fc2.", ".self_attention.in_proj_": ".attn.qkv.", ".self_attention.out_proj": ".attn.proj",
        "encoder.ln": "norm", "encoder.pos_embedding": "pos_embed", "class_token": "cls_token",
        "conv_proj": "patch_embed.proj", "heads.head": "head",
    }  # fmt: skip
    renamed = {}
    for name, value in state.items():
        for old, new in pairs.items():
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def test_counts_per_image_equal_each_image_alone() -> None:
    schedule = entropatch.CumulativeImportance(0.8)
    model, images = entropatch.prune_(torchvision_model().double(), schedule=schedule, blocks=(1, 2)), uneven_pictures()
    with torch.no_grad(), entropatch.trace(model) as trace:
        together = model(images)
    assert trace.counts[-1] == [19, 25, 19, 19]
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=0)


def test_the_encoder_alone_hooks_and_features() -> None:
    """What people do with torchvision's model: run the encoder themselves, hook it, take features by name."""
    model = entropatch.prune_(torchvision_model(), keep_rate=0.5)
    images, seen = pictures(), {}
    for name in ("encoder", "encoder.layers", "encoder.layers.encoder_layer_3", "encoder.ln"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, y, name=name: seen.update({name: tuple(y.shape)})
        )
    with torch.no_grad():
        logits = model(images)
        tokens = torch.cat([model.class_token.expand(2, -1, -1), model._process_input(images)], 1)
        assert torch.equal(model.heads(model.encoder(tokens)[:, 0]), logits)
        assert set(seen.values()) == {(2, 5, WIDTH)}
        assert len(seen) == 4
        extractor = create_feature_extractor(model, ["encoder"], tracer_kwargs={"leaf_modules": [Encoder]})
        assert torch.equal(model.heads(extractor(images)["encoder"][:, 0]), logits)
        with entropatch.trace(model) as trace:
            left = model.encoder(tokens)
    dense = entropatch.restore(left, trace)
    assert dense.shape == (2, 5, 5, WIDTH)
    assert torch.equal(dense.flatten(1, 2).gather(1, trace.kept[-1][..., None].expand(-1, -1, WIDTH)), left[:, 1:])
    with pytest.raises(UnsupportedModelError, match=r"cannot be traced by torch.fx, which create_feature_extractor"):
        create_feature_extractor(model, ["encoder.ln"])


def test_a_watch_leaves_the_stock_model_and_sees_its_attention() -> None:
    model, entropies, images = torchvision_model(), {}, pictures()
    with torch.no_grad():
        expected = model(images)
        with entropatch.watch(model, (0, 3), lambda a, tokens: entropies.update({a.block: a.entropy(1.0)})):
            assert torch.equal(model(images), expected)
    assert {block: tuple(entropy.shape) for block, entropy in entropies.items()} == {0: (2, 2, 25), 3: (2, 2, 25)}
    assert type(model.encoder) is Encoder


def test_prune_and_unprune_change_classes_only() -> None:
    model, stock = torchvision_model(), torchvision_model()
    before = {name: (type(part), id(part)) for name, part in model.named_modules()}
    assert entropatch.tower_name(model) == "encoder"
    assert entropatch.prune_(model, keep_rate=0.5) is model
    assert entropatch.tower_name(model) == "encoder"
    assert entropatch.pruning_config(model) == entropatch.PruneConfig(keep_rate=0.5, method="class-renyi-2@2")
    assert list(model.state_dict()) == list(stock.state_dict())
    assert type(model) is VisionTransformer
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(pictures()), model(pictures()))
    entropatch.unprune_(model)
    assert {name: (type(part), id(part)) for name, part in model.named_modules()} == before
    assert torch.equal(model(pictures()), stock(pictures()))


def test_a_new_head_and_a_subclass() -> None:
    class Mine(VisionTransformer):
        pass

    model = torchvision_model()
    model.heads = nn.Linear(WIDTH, 3)
    assert entropatch.prune_(model, keep_rate=0.5)(pictures()).shape == (2, 3)
    mine = torchvision_model()
    mine.__class__ = Mine
    with pytest.raises(UnsupportedModelError, match=r"Mine is not supported. It holds one as \.encoder: prune that"):
        entropatch.prune_(mine)
    entropatch.prune_(mine.encoder, keep_rate=0.5)
    assert entropatch.tower_name(mine) == "encoder"
    with entropatch.trace(mine) as trace:
        mine(pictures())
    assert trace.counts == [25, 13, 7, 4]


def test_a_class_of_ones_own_says_where_the_model_is() -> None:
    class Regressor(nn.Module):
        entropatch_tower = "backbone"

        def __init__(self) -> None:
            super().__init__()
            self.backbone = torchvision_model()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.backbone(images).sum(1)

    model = Regressor()
    assert entropatch.tower_name(model) == "backbone.encoder"
    entropatch.prune_(model, keep_rate=0.5)
    with entropatch.trace(model) as trace:
        model(pictures())
    assert trace.counts == [25, 13, 7, 4]
    entropatch.unprune_(model)
    assert type(model.backbone.encoder) is Encoder


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"])
def test_every_published_architecture(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
        entropatch.prune_(model.eval(), keep_rate=0.7)
        with entropatch.trace(model) as trace:
            assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    n = {"16": 196, "32": 49, "14": 256}[name[-2:]]
    assert trace.counts[0] == n
    assert trace.counts[-1] < 0.37 * n


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    model = entropatch.prune_(torchvision_model(), keep_rate=0.5)
    images = pictures()
    with torch.no_grad():
        compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), model(images))
        with entropatch.trace(compiled) as trace:
            compiled(images)
    assert trace.counts == [25, 13, 7, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    dense, pruned = (model.to(dtype) for model in dense_and_pruned(keep_rate=1.0))
    with torch.no_grad():
        assert torch.equal(pruned(pictures(dtype=dtype)), dense(pictures(dtype=dtype)))
        entropatch.prune_(pruned, keep_rate=0.5)
        with entropatch.trace(pruned) as trace:
            assert pruned(pictures(dtype=dtype)).dtype == dtype
    assert trace.counts == [25, 13, 7, 4]
    dense, pruned = dense_and_pruned(keep_rate=1.0)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert torch.equal(pruned(pictures()), dense(pictures()))


# ------------------------------------------------------------------------------------------------------------ refused


def test_other_models_of_torchvision_are_refused_by_name() -> None:
    for name in ("swin_t", "swin_v2_t", "maxvit_t", "resnet18"):
        with torch.device("meta"):
            model = torchvision.models.get_model(name)
        assert f"{type(model).__name__} is not supported" in refused(model)
    assert "torchvision Encoder (also inside VisionTransformer) with blocks EncoderBlock" in refused(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda block: setattr(block.self_attention, "batch_first", False), "block 1 has batch_first=False"),
        (lambda block: setattr(block.self_attention, "add_zero_attn", True), "add_zero_attn=True"),
        (
            lambda block: setattr(block, "self_attention", nn.MultiheadAttention(WIDTH, 2, 0.0, True, True)),
            "add_bias_kv=True",
        ),
        (lambda block: setattr(block, "self_attention", nn.Identity()), "the attention of block 1 is a .*Identity"),
        (lambda block: setattr(block, "forward", lambda x: x), "had its forward replaced"),
        (lambda block: setattr(block, "__class__", type("Mine", (EncoderBlock,), {})), "block 1 is a .*Mine"),
        (lambda block: block.self_attention.compile(), "is compiled already"),
    ],
)
def test_parts_that_are_not_understood(change: Any, reason: str) -> None:
    model = torchvision_model()
    change(model.encoder.layers[1])
    assert re.search(reason, refused(model)), refused(model)


def test_what_the_model_was_made_into_is_refused_with_the_fix() -> None:
    extractor = create_feature_extractor(torchvision_model(), ["encoder.ln"])
    assert "made by torch.fx" in refused(extractor)
    scripted = torch.jit.script(torchvision_model())
    assert "made by TorchScript" in refused(scripted)
    assert "compiled already" in refused(torch.compile(torchvision_model()))
    lone = Encoder(22, 1, 2, WIDTH, 64, 0.0, 0.0)
    assert "22 tokens, which are not one class token and a square grid" in refused(lone)
    model = torchvision_model()
    model.encoder.layers = nn.ModuleList(model.encoder.layers)
    assert "layers of the Encoder are a ModuleList" in refused(model)
    model = torchvision_model()
    model.encoder.layers[3] = model.encoder.layers[2]
    assert "runs one block several times" in refused(model)
