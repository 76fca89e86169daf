"""Multiply-adds: the paper's figures, formulas written out, PyTorch's own counter, and nothing missed in silence."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from small_models import FAMILIES, create, known, photographs
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

import entropatch
from entropatch.measure import count_flops, count_flops_torch

# Until 2.10 or so PyTorch's own counter knew no rule for the CPU's fused attention.
COUNTS_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry

# arXiv 2604.03803, tables 1 and 3: DeiT-S, 224 px, GFLOPs by fvcore.
RENYI = {0.7: "3.00", 0.5: "2.29", 0.3: "1.80"}
EVIT = {0.7: "3.04", 0.5: "2.31", 0.3: "1.82"}


@pytest.fixture(scope="module")
def deit_small() -> nn.Module:
    return timm.create_model("deit_small_patch16_224")


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 224, 224)


class Calls(nn.Module):
    """A model made of one function, and of the layers it uses."""

    def __init__(self, function: Any, *layers: nn.Module):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def printed(macs: int) -> str:
    return f"{macs / 1e9:.2f}"


# ------------------------------------------------------------------------------------------- the paper's figures


def test_dense_deit_small_is_4_61(deit_small, image):
    n, d, depth = 197, 384, 12
    qkv, projection, mlp, attention = 3 * n * d * d, n * d * d, 8 * n * d * d, 2 * n * n * d
    patches, head, norms = 196 * d * 3 * 16 * 16, d * 1000, (2 * depth + 1) * 5 * n * d
    flops = count_flops(deit_small, image)
    assert flops.total == depth * (qkv + projection + mlp + attention) + patches + head + norms
    assert printed(flops.total) == "4.61"
    assert flops.uncounted == {}
    assert sum(flops.by_operator.values()) == flops.total


@pytest.mark.parametrize("order", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("rate", RENYI)
def test_entropy_pruned_deit_small(deit_small, image, rate, order):
    config = entropatch.PruneConfig(keep_rate=rate, criterion=entropatch.Renyi(order))
    flops = count_flops(entropatch.prune_(deit_small, config), image)
    entropatch.unprune_(deit_small)
    assert printed(flops.total) == RENYI[rate]
    assert flops.uncounted == {}


@pytest.mark.parametrize("rate", EVIT)
def test_evit_deit_small(deit_small, image, rate):
    config = entropatch.PruneConfig(keep_rate=rate, criterion=entropatch.ClassAttention(), reduction="fuse")
    flops = count_flops(entropatch.prune_(deit_small, config), image)
    entropatch.unprune_(deit_small)
    assert printed(flops.total) == EVIT[rate]
    assert flops.uncounted == {}


def test_random_pruning_by_the_arithmetic_of_its_token_counts(deit_small, image):
    """196 → 138 → 97 → 68 patches; the block that prunes attends over all of its tokens, its MLP runs on the kept."""
    entropatch.prune_(deit_small, keep_rate=0.7, criterion=entropatch.Random())
    flops = count_flops(deit_small, image)
    entropatch.unprune_(deit_small)
    d, macs = 384, 196 * 384 * 3 * 16 * 16 + 384 * 1000
    entering = [197, 197, 197, 197, 139, 139, 139, 98, 98, 98, 69, 69]
    leaving = [*entering[1:], 69]
    for n, kept in zip(entering, leaving, strict=True):
        macs += 4 * n * d * d + 2 * n * n * d + 8 * kept * d * d + 5 * d * (n + kept)
    macs += 5 * d * 69
    assert flops.total == macs


# ------------------------------------------------------------------------------------ a second, independent opinion


@pytest.mark.skipif(not COUNTS_ATTENTION, reason="this PyTorch's counter misses fused attention on CPUs")
@pytest.mark.parametrize(
    "config",
    [
        None,
        entropatch.PruneConfig(criterion=entropatch.Random()),
        entropatch.PruneConfig(criterion=entropatch.Renyi(2.0)),
        entropatch.PruneConfig(criterion=entropatch.ClassAttention(), reduction="fuse"),
    ],
    ids=["dense", "random", "renyi", "evit"],
)
def test_agrees_with_pytorchs_counter_but_for_the_norms(deit_small, image, config):
    if config is not None:
        entropatch.prune_(deit_small, config)
    flops, second = count_flops(deit_small, image), count_flops_torch(deit_small, image)
    if config is not None:
        entropatch.unprune_(deit_small)
    # fvcore writes EViT's weighted sum of the dropped tokens as an einsum of 2·k·d where a product has k·d.
    assert second == pytest.approx(2 * (flops.total - flops.by_operator["layer_norm"]), rel=1e-4)


def test_merging_is_counted_too(deit_small, image):
    entropatch.prune_(deit_small, method="tome", keep_rate=0.7)
    flops = count_flops(deit_small, image)
    with entropatch.trace(deit_small) as trace, torch.no_grad():
        deit_small(image)
    entropatch.unprune_(deit_small)
    assert flops.uncounted == {}
    width, heads = 384, 6
    before, after = [
        [n + 1 for n in counts] for counts in (trace.counts[:-1], trace.counts[1:])
    ]  # with the class token
    assert flops.by_operator["scaled_dot_product_attention"] == sum(2 * width * n * n for n in before)
    # In a block: queries, keys, values and their projection of all tokens, the MLP of those that are left.
    linear = sum(4 * width**2 * n + 8 * width**2 * m for n, m in zip(before, after, strict=True)) + 1000 * width
    assert flops.by_operator["linear"] == linear
    # The patches of every other place beside those between, by their keys' mean over heads.
    assert flops.by_operator["matmul"] == sum(width // heads * (n // 2) * ((n - 1) // 2) for n in before)


@pytest.mark.parametrize("method", ["tome", "shannon-merge"])
@pytest.mark.parametrize("name", ["deit", "siglip", "eva", "rope registers"])
def test_merging_leaves_nothing_uncounted_in_any_kind_of_model(name, method):
    model = create(name)
    dense = count_flops(model, photographs(model)).total
    flops = count_flops(entropatch.prune_(model, method=method, keep_rate=0.5), photographs(model))
    assert flops.uncounted == {}
    assert flops.total < dense


QUICK = ("deit distilled", "dinov2 registers", "siglip", "eva-02", "rope mixed", "dinov3", "sapiens2, shared keys")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_nothing_is_missed_in_any_family(name):
    if not known(name):
        pytest.skip("this timm does not have the model")
    model = create(name)
    images = photographs(model, batch=1)
    counts = [count_flops(model, images)]
    entropatch.prune_(model, keep_rate=0.5)
    counts.append(count_flops(model, images))
    assert counts[1].total < counts[0].total
    for flops in counts:
        assert flops.uncounted == {}
    norms = sum(count for operator, count in counts[1].by_operator.items() if "norm" in operator)
    if not COUNTS_ATTENTION:
        pytest.skip("this PyTorch's counter misses fused attention on CPUs")
    assert count_flops_torch(model, images) == pytest.approx(2 * (counts[1].total - norms), rel=0.02)


# ----------------------------------------------------------------------------------------------- one rule at a time


def test_fused_attention_counts_both_products():
    k, v = torch.randn(2, 3, 11, 4), torch.randn(2, 3, 11, 6)
    flops = count_flops(Calls(lambda q: F.scaled_dot_product_attention(q, k, v)), torch.randn(2, 3, 7, 4))
    assert flops.total == 3 * 7 * 11 * (4 + 6)


def test_fused_attention_with_a_mask_and_shared_keys():
    k, mask = torch.randn(1, 2, 11, 4), torch.zeros(7, 11)

    def attend(q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=True)

    assert count_flops(Calls(attend), torch.randn(1, 6, 7, 4)).total == 6 * 7 * 11 * 8


@pytest.mark.parametrize("n", [5, 300])
def test_this_packages_operators(n):
    k, v = torch.randn(1, 2, n, 8), torch.randn(1, 2, n, 8)
    kernels = pytest.importorskip("entropatch.kernels")
    entropy = Calls(lambda q: kernels.attention_entropy(q, k, 2.0, 0.5, "streaming"))
    both = Calls(lambda q: kernels.attend_with_entropy(q, k, v, 2.0, 0.5, 1, "streaming"))
    assert count_flops(entropy, torch.randn(1, 2, n, 8)).by_operator == {"attention_entropy": 2 * n * n * 8}
    assert count_flops(both, torch.randn(1, 2, n, 8)).by_operator == {"attend_with_entropy": 2 * 2 * n * n * 8}


def test_multi_head_attention_is_not_one_opaque_operator():
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    flops = count_flops(Calls(lambda x: attention(x, x, x, need_weights=False)[0], attention), torch.randn(1, 7, 16))
    assert flops.total == 4 * 7 * 16 * 16 + 2 * 7 * 7 * 16
    assert flops.uncounted == {}
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(("weighted", "per_element"), [(True, 5), (False, 4)])
def test_rms_norm_counts_as_the_other_norms(weighted, per_element):
    norm = nn.RMSNorm(16, elementwise_affine=weighted)
    assert count_flops(norm, torch.randn(2, 7, 16)).total == per_element * 7 * 16


def test_batched_addition_of_products():
    a, b = torch.randn(3, 5, 7), torch.randn(3, 7, 2)
    assert count_flops(Calls(lambda x: torch.baddbmm(x, a, b)), torch.randn(3, 5, 2)).total == 5 * 7 * 2


# ------------------------------------------------------------------------------------------ never missed in silence


@torch.library.custom_op("entropatch_tests::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    return x @ x.transpose(-2, -1)


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ x.transpose(-2, -1)


def test_unknown_operators_are_listed():
    def mixture(x: Tensor) -> Tensor:
        free = F.gelu(x).softmax(-1).sort(-1).values.cumsum(-1).exp().flip(1).add_(1)
        return opaque(x) + opaque(free) + Opaque.apply(x) + torch.cdist(x, x)

    flops = count_flops(Calls(mixture), torch.randn(1, 4, 4))
    assert flops.total == 0
    assert flops.uncounted == {"entropatch_tests::opaque": 2, "prim::PythonOp.Opaque": 1, "aten::cdist": 1}


def test_recurrent_layers_are_listed():
    lstm = nn.LSTM(4, 4, batch_first=True)
    assert "aten::lstm" in count_flops(Calls(lambda x: lstm(x)[0], lstm), torch.randn(1, 3, 4)).uncounted


# ------------------------------------------------------------------------------------- what it leaves as it found it


def test_modes_gradients_and_outputs_stay_as_they_were(deit_small):
    model = create("deit")
    model.train()
    model.blocks[1].eval()
    model.patch_embed.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    count_flops(model, photographs(model))
    count_flops_torch(model, photographs(model))
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_modes_return_after_an_error():
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("broken model")

    model = Calls(fail).train()
    with pytest.raises(RuntimeError, match="broken model"):
        count_flops(model, torch.randn(1, 3))
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_training_mode_does_not_change_the_count():
    model = create("deit", patch_drop_rate=0.5)  # half the patches while training
    expected = count_flops(model, photographs(model))
    assert count_flops(model.train(), photographs(model)) == expected


def test_counts_per_image():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    assert (
        count_flops(model, photographs(model, batch=3)).total == count_flops(model, photographs(model, batch=1)).total
    )
    assert count_flops_torch(model, photographs(model, batch=3)) == count_flops_torch(
        model, photographs(model, batch=1)
    )


def test_outputs_of_any_structure():
    layer = nn.Linear(4, 5)
    model = Calls(lambda x: {"features": [layer(x)], "name": "x", "pooled": (layer(x),)}, layer)
    assert count_flops(model, torch.randn(3, 4)).total == 2 * 4 * 5


def test_half_precision_and_autocast():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    images = photographs(model)
    expected = count_flops(model, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert count_flops(model, images).total == expected.total
    assert count_flops(model.bfloat16(), images.bfloat16()).total == expected.total


def test_a_compiled_model_counts_as_its_module():
    model = create("deit")
    assert count_flops(torch.compile(model), photographs(model)) == count_flops(model, photographs(model))


def test_an_empty_batch_is_refused(deit_small):
    with pytest.raises(ValueError, match=r"at least one image, but got shape \(0, 3, 224, 224\)"):
        count_flops(deit_small, torch.empty(0, 3, 224, 224))


def test_without_fvcore_the_message_names_the_extra(monkeypatch, deit_small, image):
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    with pytest.raises(ImportError, match=r"\.\[bench\]"):
        count_flops(deit_small, image)
