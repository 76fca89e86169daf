"""Training a pruned model: gradients, gradient checkpointing, dropout, reduced precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from small_models import FAMILIES, create, photographs
from torch import Tensor, nn

import entropatch
from entropatch import ClassAttention, Random

pytestmark = pytest.mark.usefixtures("one_thread")

FUSE = {"criterion": ClassAttention(), "reduction": "fuse"}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)
    return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter_that_the_stock_model_trains(name):
    model = create(name).train()
    images = photographs(model)
    trained = {key for key, gradient in gradients(model, loss_of(model, images)).items() if gradient.abs().sum() > 0}
    assert len(trained) > 20
    entropatch.prune_(model, keep_rate=0.5, blocks=(0, 2, 3))
    reached = gradients(model, loss_of(model, images))
    assert {key for key, gradient in reached.items() if gradient.abs().sum() > 0} == trained
    assert all(gradient.isfinite().all() for gradient in reached.values())


def test_gradients_equal_finite_differences_while_the_selection_holds():
    """Selection is not differentiated: between the jumps where it changes, the model is smooth and so is checked."""
    model = entropatch.prune_(create("dinov2 registers").double(), keep_rate=0.5, blocks=(1, 2))
    images = photographs(model, batch=1).double().requires_grad_()
    direction = torch.randn_like(images)
    kept, values, step = [], [], 1e-6
    for sign in (1, -1):
        with torch.no_grad(), entropatch.trace(model) as trace:
            values.append(loss_of(model, images + sign * step * direction))
        kept.append([stage.tolist() for stage in trace.kept])
    assert kept[0] == kept[1]
    (gradient,) = torch.autograd.grad(loss_of(model, images), images)
    torch.testing.assert_close((gradient * direction).sum(), (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("reduction", "reached"), [("drop", False), ("fuse", True)])
def test_the_fused_token_passes_gradients_to_the_dropped(reduction, reached):
    """After the reduction a dropped patch acts through the fused token alone."""
    model = entropatch.prune_(create("deit"), keep_rate=0.5, **FUSE | {"blocks": (3,), "reduction": reduction})
    attended, given = [], []
    model.blocks[3].attn.register_forward_hook(lambda module, args, y: attended.append(y))
    model.blocks[3].norm2.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with entropatch.trace(model) as trace:
        model(photographs(model))
    (gradient,) = torch.autograd.grad(given[0].sum(), attended[0])
    dropped = gradient[:, 1:].gather(1, trace.stages[0].dropped[..., None].expand(-1, -1, 32))
    assert (dropped.abs().sum() > 0).item() is reached


def test_training_lowers_the_loss():
    model = entropatch.prune_(create("deit"), keep_rate=0.5).train()
    images, labels = photographs(model, batch=8), torch.arange(8) % 5
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_distilled_training_gives_two_outputs():
    model = entropatch.prune_(create("deit distilled"), keep_rate=0.5).train()
    model.set_distilled_training(True)
    one, two = model(photographs(model))
    assert one.shape == two.shape == (2, 5)
    assert not torch.equal(one, two)


# ---------------------------------------------------------------------------------------------- gradient checkpointing

SETTINGS: dict[str, dict[str, Any]] = {
    "renyi": {"order": 2.0},
    "shannon": {"order": 1.0},
    "random, seeded": {"criterion": Random(7)},
    "random, unseeded": {"criterion": Random(None)},
    "keep all": {"keep_rate": 1.0},
}
CHECKPOINTED = [(name, setting) for name in ("deit", "dinov3", "rope mixed") for setting in SETTINGS]


@pytest.mark.parametrize(("name", "setting"), [*CHECKPOINTED, ("deit", "fuse"), ("eva post-norm", "renyi")])
@pytest.mark.parametrize("traced", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(name, setting, traced):
    model = create(name, drop_path_rate=0.2, proj_drop_rate=0.1, attn_drop_rate=0.1).train()
    images = photographs(model)
    entropatch.prune_(model, **{"keep_rate": 0.5} | (FUSE if setting == "fuse" else SETTINGS[setting]))
    passes = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        torch.manual_seed(1)
        if traced:
            with entropatch.trace(model) as trace:
                loss = loss_of(model, images)
            kept = [kept.tolist() for kept in trace.kept]
        else:
            loss, kept = loss_of(model, images), []
        passes.append((gradients(model, loss), kept))
    assert passes[0][1] == passes[1][1]
    assert list(passes[0][0]) == list(passes[1][0])
    for key, gradient in passes[0][0].items():
        torch.testing.assert_close(passes[1][0][key], gradient, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["deit", "rope mixed"])
def test_feature_maps_under_gradient_checkpointing(name):
    model = entropatch.prune_(create(name).train(), keep_rate=0.5)
    images = photographs(model)
    passes = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        final, maps = model.forward_intermediates(images)
        passes.append(gradients(model, final.sum() + sum(y.square().sum() for y in maps)))
    for key, gradient in passes[0].items():
        torch.testing.assert_close(passes[1][key], gradient)


def test_recomputation_leaves_the_trace_alone():
    """The backward pass runs the stages of earlier batches again; the trace stays that of the last forward pass."""
    model = entropatch.prune_(create("dinov3").train(), keep_rate=0.5)
    model.set_grad_checkpointing()
    images = photographs(model, batch=3)
    with entropatch.trace(model) as trace:
        loss = loss_of(model, images[:1])
        loss_of(model, images[1:])
        kept = [kept.tolist() for kept in trace.kept]
        loss.backward()
    assert [kept.tolist() for kept in trace.kept] == kept


# ------------------------------------------------------------------------------------------------- dropout in training


@pytest.mark.parametrize("name", ["deit", "dinov2 registers", "eva clip", "dinov3", "rope mixed"])
def test_patch_dropout_comes_before_pruning(name):
    model = create(name, patch_drop_rate=0.4).train()
    entropatch.prune_(model, keep_rate=0.5)
    images = photographs(model)
    with entropatch.trace(model) as trace:
        loss = loss_of(model, images)
    assert trace.counts == [15, 8, 4, 2]
    assert gradients(model, loss)
    model.eval()
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
    assert trace.counts == [25, 13, 7, 4]


@pytest.mark.parametrize("name", ["dinov3", "rope mixed"])
def test_patch_dropout_and_the_rotary_table(name):
    """A patch keeps its own place in the rotary table through dropout and pruning: what is left equals the stock model
    on the same patches, where that has dropped all the others from the start and nothing mixes them before."""
    model, stock = create(name, patch_drop_rate=0.4), create(name, patch_drop_rate=0.4)
    entropatch.prune_(model, keep_rate=0.5, blocks=(3,))
    middles = []
    for each in (model, stock):
        each.train()
        each.blocks[3].mlp.register_forward_pre_hook(lambda module, args: middles.append(args[0]))
        torch.manual_seed(2)
        if each is model:
            with entropatch.trace(model) as trace:
                model(photographs(model))
        else:
            each(photographs(stock))
    prefix = model.num_prefix_tokens
    rows = torch.cat((torch.arange(prefix).expand(2, -1), prefix + trace.kept[0]), dim=1)
    torch.testing.assert_close(middles[0], middles[1].gather(1, rows[..., None].expand(-1, -1, 32)))


def test_train_and_eval_differ_by_dropout_only():
    model = entropatch.prune_(create("deit", drop_path_rate=0.5, attn_drop_rate=0.3), keep_rate=0.5)
    images = photographs(model)
    with torch.no_grad():
        expected = model.eval()(images)
        model.train()
        assert not torch.equal(model(images), expected)
        assert not torch.equal(model(images), model(images))
        assert torch.equal(model.eval()(images), expected)
    plain = entropatch.prune_(create("deit"), keep_rate=0.5)
    torch.testing.assert_close(plain.train()(images), plain.eval()(images))


@pytest.mark.parametrize("fused", [True, False])
def test_attention_dropout_acts_in_pruning_blocks(fused):
    model = create("deit", attn_drop_rate=0.5)
    for block in model.blocks:
        block.attn.fused_attn = fused
    entropatch.prune_(model, keep_rate=0.5, blocks=(0,))
    for block in model.blocks[1:]:
        block.attn.attn_drop.p = 0.0
    model.train()
    images = photographs(model)
    with torch.no_grad():
        assert not torch.equal(model(images), model(images))


# -------------------------------------------------------------------------------------------------- reduced precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["deit", "dinov2", "siglip", "q/k norm", "eva-02", "rope mixed", "dinov3", "sapiens2, shared keys"]
)
def test_half_precision_weights(name, dtype):
    stock = create(name).to(dtype)
    images = photographs(stock)
    try:
        stock(images.to(dtype))
    except RuntimeError as failure:
        pytest.skip(f"the stock model of timm {timm.__version__} fails as well: {failure}")
    wide = entropatch.prune_(create(name), keep_rate=0.5)
    model = entropatch.prune_(create(name).to(dtype), keep_rate=0.5)
    converted = entropatch.prune_(create(name), keep_rate=0.5).to(dtype)
    with torch.no_grad(), entropatch.trace(model) as trace:
        logits = model(images.to(dtype))
        assert torch.equal(converted(images.to(dtype)), logits)
        assert logits.dtype == dtype
        assert trace.counts == [25, 13, 7, 4]
        assert all(scores.dtype == torch.float32 for scores in trace.scores)
        # Other patches may be kept where rounding turns a near tie, so what is compared is scores before that.
        with entropatch.trace(wide) as expected:
            wide(images)
        torch.testing.assert_close(trace.scores[0], expected.scores[0], atol=0.1, rtol=0)
        entropatch.prune_(model, keep_rate=1.0)
        assert torch.equal(model(images.to(dtype)), stock(images.to(dtype)))


@pytest.mark.parametrize("name", ["deit", "q/k norm", "eva-02", "dinov3"])
def test_autocast(name):
    model, stock = entropatch.prune_(create(name), keep_rate=0.5), create(name)
    images = photographs(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with entropatch.trace(model) as trace:
            logits = model(images)
        assert logits.isfinite().all()
        assert logits.dtype == stock(images).dtype
        assert all(scores.dtype == torch.float32 for scores in trace.scores)
        entropatch.prune_(model, keep_rate=1.0)
        assert torch.equal(model(images), stock(images))
    entropatch.prune_(model, keep_rate=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, images)
    reached = gradients(model, loss)
    assert all(gradient.isfinite().all() for gradient in reached.values())


@pytest.mark.parametrize("dropped", [0.0, 0.4])
@pytest.mark.parametrize("name", ["deit", "eva-02", "dinov3"])
def test_tokens_added_while_training_are_refused(name, dropped):
    """Prompt tuning: what a hook adds before the blocks could not be told from patches, in training mode neither."""
    model = entropatch.prune_(create(name, patch_drop_rate=dropped), keep_rate=0.5).train()
    model(photographs(model))  # without, it runs
    model.blocks[0].register_forward_pre_hook(lambda module, args: args)
    model.norm_pre.register_forward_hook(lambda module, args, x: torch.cat((x, x[:, -3:]), dim=1))
    with pytest.raises(ValueError, match="tokens were added or removed before the blocks"):
        model(photographs(model))


@dataclass(frozen=True)
class AnotherEachTime(entropatch.Criterion):
    """Scores that no second call repeats."""

    def importance(self, attention):
        CALLS.append(attention.block)
        generator = torch.Generator().manual_seed(len(CALLS))
        return torch.rand(attention.q.shape[0], attention.num_patches, generator=generator)


CALLS: list[int] = []


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("schedule", [entropatch.KeepRate(), entropatch.CumulativeImportance(0.4)])
def test_a_recomputed_block_keeps_what_it_kept(schedule, reentrant):
    """Under gradient checkpointing the gradients are those of the forward pass, whatever a criterion says later."""
    grads = []
    timm.layers.set_reentrant_ckpt(reentrant)
    try:
        for checkpointing in (False, True):
            CALLS.clear()
            model = create("deit").train()
            entropatch.prune_(model, criterion=AnotherEachTime(), schedule=schedule)
            model.set_grad_checkpointing(checkpointing)
            model(photographs(model).requires_grad_()).square().sum().backward()
            grads.append([weight.grad for weight in model.parameters()])
    finally:
        timm.layers.set_reentrant_ckpt(False)
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)
