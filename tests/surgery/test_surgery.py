"""prune_ and unprune_: what changes, what must not, and what is refused."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import timm
import torch
from small_models import create, photographs
from timm.layers.attention import Attention
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import entropatch
from entropatch import ClassAttention, PruneConfig, Random, Renyi, UnsupportedModelError
from entropatch.reductions import Drop
from entropatch.schedule import CumulativeImportance, Schedule
from entropatch.tokens import Plan

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_OF_EACH = [
    "deit",
    "deit distilled",
    "dinov2 registers",
    "siglip",
    "post-norm",
    "eva post-norm",
    "rope mixed",
    "dinov3",
]


def output(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def counts(model: nn.Module, images: Tensor) -> list[int]:
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
    return trace.counts


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def snapshot(model: nn.Module) -> Any:
    """All that surgery could disturb."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = [sorted(vars(module)) for module in model.modules()]
    return classes(model), attributes, [module.training for module in model.modules()], state


def assert_untouched(model: nn.Module, before: Any) -> None:
    after = snapshot(model)
    assert after[:3] == before[:3]
    assert list(after[3]) == list(before[3])
    assert all(torch.equal(after[3][key], before[3][key]) for key in before[3])


# ------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_prune_and_unprune_leave_the_stock_model(name):
    model = create(name)
    images = photographs(model)
    before, expected = snapshot(model), output(model, images)
    identities = [id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())]
    assert entropatch.prune_(model, keep_rate=0.5) is model
    assert not torch.equal(output(model, images), expected)
    assert [id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())] == identities
    assert list(model.state_dict()) == list(before[3])
    assert entropatch.unprune_(model) is model
    assert_untouched(model, before)
    assert torch.equal(output(model, images), expected)


def test_a_pruned_model_is_still_an_instance_of_its_class():
    model = create("dinov3")
    stock = type(model)
    assert isinstance(entropatch.prune_(model), stock)
    assert isinstance(model.blocks[1], EvaBlock)


def test_pruning_again_changes_the_setting_only():
    model = create("deit")
    images = photographs(model)
    entropatch.prune_(model, keep_rate=0.6, order=1.0, blocks=(1, 3))
    after_surgery = classes(model)
    assert counts(model, images) == [25, 15, 9]
    entropatch.prune_(model, keep_rate=0.4)
    assert entropatch.pruning_config(model) == PruneConfig(keep_rate=0.4, criterion=Renyi(1.0), blocks=(1, 3))
    assert counts(model, images) == [25, 10, 4]
    entropatch.prune_(model, blocks=(2,))
    assert counts(model, images) == [25, 10]
    entropatch.prune_(model, PruneConfig(keep_rate=0.8))
    assert entropatch.pruning_config(model) == PruneConfig(keep_rate=0.8)
    assert counts(model, images) == [25, 20, 16, 13]
    assert classes(model) == after_surgery
    fresh = entropatch.prune_(create("deit"), keep_rate=0.8, order=2.0)
    assert torch.equal(output(model, images), output(fresh, images))


def test_each_block_may_have_its_own_rate():
    model = entropatch.prune_(create("deit"), keep_rate=(0.8, 1.0, 0.25), blocks=(0, 1, 3))
    assert counts(model, photographs(model)) == [25, 20, 20, 5]


def test_the_default_blocks_stand_at_quarters_of_the_depth():
    model = entropatch.prune_(create("deit", depth=12), keep_rate=0.7)
    with entropatch.trace(model) as trace, torch.no_grad():
        model(photographs(model))
    assert [stage.block for stage in trace.stages] == [3, 6, 9]


def test_the_random_state_and_the_training_modes_stay():
    model = create("dinov2").train()
    model.blocks[2].eval()
    before, state = snapshot(model), torch.get_rng_state()
    entropatch.prune_(model, keep_rate=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    entropatch.unprune_(model)
    assert_untouched(model, before)


def test_a_block_replaced_after_pruning_is_taken_in_by_the_next_prune():
    model, donor = create("deit"), create("deit")
    entropatch.prune_(model, keep_rate=0.5)
    model.blocks[1] = donor.blocks[1]
    entropatch.prune_(model, keep_rate=0.5)
    images = photographs(model)
    assert counts(model, images) == [25, 13, 7, 4]
    assert torch.equal(output(model, images), output(entropatch.prune_(create("deit"), keep_rate=0.5), images))
    assert classes(entropatch.unprune_(model)) == classes(create("deit"))


# ------------------------------------------------------------------------------------------- copies and checkpoints


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_copies_and_pickles_are_pruned_models_of_their_own(name):
    model = entropatch.prune_(create(name), keep_rate=0.5, order=3.0)
    images = photographs(model)
    expected = output(model, images)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with entropatch.trace(model):  # a trace belongs to the model it was opened on, not to copies made meanwhile
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for twin in twins:
        assert torch.equal(output(twin, images), expected)
        assert entropatch.pruning_config(twin) == entropatch.pruning_config(model)
        assert counts(twin, images) == [25, 13, 7, 4]
        entropatch.prune_(twin, keep_rate=0.8)
        assert counts(twin, images) == [25, 20, 16, 13]
        entropatch.unprune_(twin)
        assert torch.equal(output(twin, images), output(create(name), images))
    assert counts(model, images) == [25, 13, 7, 4]
    assert torch.equal(output(model, images), expected)


@pytest.mark.parametrize("name", ["deit distilled", "rope mixed"])
def test_checkpoints_move_between_stock_and_pruned(name):
    stock, images = create(name), photographs(create(name))
    pruned = entropatch.prune_(create(name), keep_rate=0.5)
    with torch.no_grad():
        for weight in pruned.parameters():
            weight.mul_(1.1)
    stock.load_state_dict(pruned.state_dict())
    fresh = entropatch.prune_(create(name), keep_rate=0.5)
    fresh.load_state_dict(stock.state_dict())
    assert torch.equal(output(fresh, images), output(pruned, images))
    assert torch.equal(output(entropatch.unprune_(pruned), images), output(stock, images))


def test_timm_averages_the_weights_of_a_pruned_model():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    images = photographs(model)
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)
    ema.update(model)
    assert counts(ema.module, images) == [25, 13, 7, 4]
    expected = entropatch.prune_(create("deit"), keep_rate=0.5)
    with torch.no_grad():
        for weight in expected.parameters():
            weight.mul_(1.1)
    torch.testing.assert_close(ema(images), output(expected, images))


# --------------------------------------------------------------------------------------- timm's own ways of changing


@pytest.mark.parametrize("name", ["deit", "dinov2 registers", "eva-02", "rope mixed", "dinov3"])
def test_another_image_size_after_pruning(name):
    patch = create(name).patch_embed.patch_size[0]
    model, stock = create(name), create(name)
    entropatch.prune_(model, keep_rate=0.5)
    for changed in (model, stock):
        changed.set_input_size(img_size=(4 * patch, 6 * patch))
    images = photographs(model, size=(4 * patch, 6 * patch))
    assert counts(model, images) == [24, 12, 6, 3]
    assert torch.equal(output(model, images), output(entropatch.prune_(stock, keep_rate=0.5), images))


@pytest.mark.parametrize("name", ["deit", "deit distilled", "siglip", "dinov3"])
def test_another_head_after_pruning(name):
    model = entropatch.prune_(create(name), keep_rate=0.5)
    images = photographs(model)
    model.reset_classifier(3)
    assert output(model, images).shape == (2, 3)
    assert counts(model, images) == [25, 13, 7, 4]
    assert classes(entropatch.unprune_(model))[0] is classes(create(name))[0]


def test_forward_hooks_of_blocks_and_their_parts_still_fire():
    model = create("eva-02")
    seen = []
    for i in (1, 2):
        for part in (model.blocks[i], model.blocks[i].attn, model.blocks[i].mlp):
            part.register_forward_hook(lambda module, args, y: seen.append((type(module), y.shape[1])))
    entropatch.prune_(model, keep_rate=0.5, blocks=(1,))
    seen.clear()  # surgery ran the parts of block 1 to check them
    output(model, photographs(model))
    attention, block = type(model.blocks[1].attn), type(model.blocks[1])
    mlp = type(model.blocks[1].mlp)
    assert seen == [(attention, 26), (mlp, 14), (block, 14), (attention, 14), (mlp, 14), (block, 14)]


def test_a_hook_that_changes_the_attention_output_changes_the_model():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    images = photographs(model)
    before = output(model, images)
    handle = model.blocks[1].attn.register_forward_hook(lambda module, args, y: 2 * y)
    assert not torch.equal(output(model, images), before)
    handle.remove()
    assert torch.equal(output(model, images), before)


def test_attention_maps_can_be_hooked_where_fused_attention_is_off():
    model = create("deit")
    for block in model.blocks:
        block.attn.fused_attn = False
    entropatch.prune_(model, keep_rate=0.5)
    maps = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, args, y: maps.append(y))
    output(model, photographs(model))
    assert [tuple(y.shape[-2:]) for y in maps] == [(26, 26), (26, 26), (14, 14), (8, 8)]
    for y in maps:
        torch.testing.assert_close(y.sum(-1), torch.ones(y.shape[:-1]))


# --------------------------------------------------------------------------------------------------- refused settings


def test_a_model_that_is_not_pruned():
    for call in (entropatch.unprune_, entropatch.pruning_config, lambda model: entropatch.trace(model).__enter__()):
        with pytest.raises(ValueError, match=r"VisionTransformer is not pruned; call entropatch\.prune_"):
            call(create("deit"))


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"keep_rate": 0.0}, ValueError, r"keep_rate must lie in \(0, 1\]"),
        ({"blocks": (3, 4)}, ValueError, r"blocks must lie in 0 … 3 for a model of depth 4, but got \(3, 4\)"),
        ({"keep_rate": (0.5, 0.5)}, ValueError, "one number or one per block .* but got 2 rates"),
        ({"rate": 0.5}, TypeError, "prune_ takes the fields keep_rate, .*order, but got rate"),
        ({"order": 0}, ValueError, "order must be greater than 0"),
        ({"order": 1.0, "criterion": Renyi(2.0)}, TypeError, "give one of the two"),
        ({"config": PruneConfig(), "keep_rate": 0.5}, TypeError, "not both; got .*keep_rate"),
        ({"config": 0.5}, TypeError, "config must be a PruneConfig, but got 0.5"),
    ],
)
@pytest.mark.parametrize("pruned", [False, True])
def test_settings_out_of_range_leave_the_model_as_it_was(setting, error, message, pruned):
    model = create("deit")
    images = photographs(model)
    if pruned:
        entropatch.prune_(model, keep_rate=0.6)
    before, expected = snapshot(model), output(model, images)
    with pytest.raises(error, match=message):
        entropatch.prune_(model, **setting)
    assert_untouched(model, before)
    assert torch.equal(output(model, images), expected)


@pytest.mark.parametrize("setting", [{"criterion": ClassAttention()}, {"reduction": "fuse"}])
def test_a_class_token_is_needed_for_class_attention(setting):
    model = create("siglip")
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match="needs a class token, but this VisionTransformer has none; use "):
        entropatch.prune_(model, **setting)
    assert_untouched(model, before)


def test_a_fused_token_has_no_place_in_a_rotary_embedding():
    model = create("eva-02 clip")
    with pytest.raises(UnsupportedModelError, match="a fused token stands at no place of the grid"):
        entropatch.prune_(model, criterion=ClassAttention(), reduction="fuse")
    entropatch.prune_(create("eva clip"), criterion=ClassAttention(), reduction="fuse")  # absolute positions only


def test_a_criterion_must_return_one_score_per_patch():
    class Prefixed(Renyi):
        def importance(self, attention):
            return attention.q.new_zeros(attention.q.shape[0], attention.q.shape[2])

    model = entropatch.prune_(create("deit"), keep_rate=0.5, criterion=Prefixed())
    with pytest.raises(ValueError, match=r"Prefixed.importance must return .* = \(2, 25\), but got \(2, 26\)"):
        model(photographs(model))


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (None, "NoneType"),
        ([[0.0] * 25] * 2, "list"),
        (torch.zeros(2, 25, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(2, 25, dtype=torch.long), "torch.int64"),
    ],
)
def test_a_criterion_must_return_a_floating_point_tensor(returned, got):
    class Strange(Renyi):
        def importance(self, attention):
            return returned

    model = entropatch.prune_(create("deit"), keep_rate=0.5, criterion=Strange())
    with pytest.raises(ValueError, match=rf"Strange.importance must return \(batch, patches\) .* but got {got}"):
        model(photographs(model))


class Sparing(Schedule):
    """Returns what a schedule must not."""

    returned: Any = None

    def count(self, site, mass):
        return self.returned


@pytest.mark.parametrize("returned", [None, 12.5, float("nan"), "3", [3, 4], True, torch.tensor([5, 6])])
def test_a_schedule_must_return_a_whole_number(monkeypatch, returned):
    monkeypatch.setattr(Sparing, "returned", returned)
    model = entropatch.prune_(create("deit"), schedule=Sparing())
    with pytest.raises(ValueError, match=r"Sparing.count must return a whole number of tokens, but got "):
        model(photographs(model))


def test_a_schedule_may_count_in_numpys_integers(monkeypatch):
    monkeypatch.setattr(Sparing, "returned", np.int64(7))
    model = entropatch.prune_(create("deit"), schedule=Sparing())
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(photographs(model))
    assert trace.counts == [25, 7, 7, 7]


@pytest.mark.parametrize(
    ("returned", "wrong"),
    [
        (lambda kept: None, "an entropatch Plan, but got NoneType"),
        (lambda kept: kept, "an entropatch Plan, but got Tensor"),
        (lambda kept: Plan(kept.tolist()), r"a Plan with kept int64 \(2, 13\), but got list"),
        (lambda kept: Plan(kept.float()), r"a Plan with kept int64 \(2, 13\), but got torch.float32 \(2, 13\)"),
        (lambda kept: Plan(kept[:1]), r"a Plan with kept int64 \(2, 13\), but got torch.int64 \(1, 13\)"),
        (lambda kept: Plan(kept[:, :4]), r"a Plan with kept int64 \(2, 13\), but got torch.int64 \(2, 4\)"),
        (lambda kept: Plan(kept[0]), r"a Plan with kept int64 \(2, 13\), but got torch.int64 \(13,\)"),
        (lambda kept: Plan(kept, sources=kept), "a Plan with all of sources, targets, weights, shares, or without"),
        (
            lambda kept: Plan(kept, kept[:, :2], kept[:, :1], torch.ones(2, 13), torch.ones(2, 2)),
            r"a Plan with targets int64 \(2, 2\), but got torch.int64 \(2, 1\)",
        ),
        (
            lambda kept: Plan(kept, kept[:, :2], kept[:, :2], torch.ones(2, 1), torch.ones(2, 2)),
            r"a Plan with weights floating point \(2, 13\), but got torch.float32 \(2, 1\)",
        ),
        (
            lambda kept: Plan(kept, appended=torch.ones(2, 25)),
            r"a Plan with appended floating point \(2, m, 25\), but got torch.float32 \(2, 25\)",
        ),
    ],
)
def test_a_reduction_must_return_a_plan_that_fits(returned, wrong):
    class Unfit(Drop):
        def plan(self, attention, tokens, scores, k):
            kept = super().plan(attention, tokens, scores, k).kept
            return returned(kept) if len(kept) == 2 else Plan(kept)

    model = entropatch.prune_(create("deit"), keep_rate=0.5, reduction=Unfit())
    with pytest.raises(ValueError, match=f"Unfit.plan must return {wrong}"):
        model(photographs(model))


@pytest.mark.parametrize(("returned", "got"), [(None, "NoneType"), ([], "list"), (torch.ones(2, 3), r"\(2, 3\)")])
def test_a_criterions_mass_must_be_one_share_per_patch(returned, got):
    class Massless(Renyi):
        def mass(self, scores):
            return returned if len(scores) == 2 else super().mass(scores)

    model = entropatch.prune_(create("deit"), criterion=Massless(), schedule=CumulativeImportance())
    with pytest.raises(ValueError, match=rf"Massless.mass must return \(batch, patches\) .* but got {got}"):
        model(photographs(model))


# ---------------------------------------------------------------------------------------------------- refused models


def test_what_is_no_module():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, but got str"):
        entropatch.prune_("deit_small_patch16_224")


def test_a_model_inside_another_is_pointed_to():
    with pytest.raises(
        UnsupportedModelError, match=r"torch.*Sequential is not supported. It holds one as \.1\.trunk: "
    ):
        entropatch.prune_(nn.Sequential(nn.Identity(), nn.ModuleDict({"trunk": create("deit")})))
    with pytest.raises(UnsupportedModelError, match=r"FeatureGetterNet is not supported. It holds one as \.model: "):
        entropatch.prune_(timm.create_model("deit_tiny_patch16_224", features_only=True))


def test_a_subclass_may_do_anything_and_is_refused():
    class Odd(type(create("deit"))):
        pass

    model = create("deit")
    model.__class__ = Odd
    with pytest.raises(UnsupportedModelError, match=r"test_surgery.*Odd is not supported"):
        entropatch.prune_(model)


def replace_forward(part: Any, method: str = "forward") -> None:
    setattr(part, method, getattr(part, method))


class OtherBlock(Block):
    pass


class OtherAttention(Attention):
    pass


def repeat_a_block(model: Any) -> None:
    model.blocks[2] = model.blocks[1]


SPOILT = {
    "had its forward replaced": lambda m: replace_forward(m),
    "had its forward_features replaced": lambda m: replace_forward(m, "forward_features"),
    "had its _pos_embed replaced": lambda m: replace_forward(m, "_pos_embed"),
    r"block 2 \(Block\) had its forward replaced": lambda m: replace_forward(m.blocks[2]),
    r"attention of block 0 \(Attention\) had its forward": lambda m: replace_forward(m.blocks[0].attn),
    "block 3 is a test_surgery.OtherBlock, which cannot": lambda m: setattr(m.blocks[3], "__class__", OtherBlock),
    "attention of block 1 is a test_surgery.OtherAttention": lambda m: setattr(
        m.blocks[1].attn, "__class__", OtherAttention
    ),
    "the attention of block 1 is a torch.nn.*Identity": lambda m: setattr(m.blocks[1], "attn", nn.Identity()),
    "runs one block several times": repeat_a_block,
}


@pytest.mark.parametrize("message", SPOILT)
def test_models_changed_by_hand_are_refused_and_left_alone(message):
    model = create("deit")
    SPOILT[message](model)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=message):
        entropatch.prune_(model)
    assert_untouched(model, before)


# ------------------------------------------------------------------------------------- the check on random tokens


class MixesTokens(nn.Module):
    """Fine on the full sequence, wrong as soon as tokens are missing."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.1 * x.roll(1, dims=1)


@pytest.mark.parametrize("part", ["norm2", "mlp", "ls2"])
def test_a_part_after_the_middle_that_mixes_tokens_is_refused(part):
    model = create("dinov2")
    setattr(model.blocks[2], part, MixesTokens(getattr(model.blocks[2], part)))
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"block 2 \(Block\) does not behave as entropatch expects"):
        entropatch.prune_(model)
    assert_untouched(model, before)
    with pytest.raises(UnsupportedModelError, match=r"block 2 \(Block\) does not behave as entropatch expects"):
        entropatch.prune_(model, blocks=(1, 3))  # block 2 would be given fewer tokens
    entropatch.prune_(model, blocks=(3,))  # before the first block that prunes nothing changes
    with pytest.raises(UnsupportedModelError, match=r"block 2 \(Block\) does not behave as entropatch expects"):
        entropatch.prune_(model, blocks=(2,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dinov2", "post-norm", "eva-02", "eva post-norm"])
def test_a_library_that_computes_a_block_otherwise_is_noticed(name, dtype, monkeypatch):
    model = create(name).to(dtype)
    kind = type(model.blocks[0])
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, x, *args, **kwargs: x + 1.5 * (forward(self, x, *args, **kwargs) - x)
    )
    before = snapshot(model)
    with pytest.raises(
        UnsupportedModelError, match=rf"block 1 \({kind.__name__}\) .* this version of the model library"
    ):
        entropatch.prune_(model)
    assert_untouched(model, before)


@pytest.mark.parametrize("name", ["dinov2", "sapiens2, shared keys", "eva-02", "eva-02, three projections"])
def test_a_library_that_computes_attention_otherwise_is_noticed(name, monkeypatch):
    model = create(name)
    kind = type(model.blocks[1].attn)
    forward = kind.forward

    def softer(self, x, *args, **kwargs):
        return forward(self, x, *args, **kwargs) - 0.1 * self.proj_drop(self.proj(x))

    monkeypatch.setattr(kind, "forward", softer)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match="does not behave as entropatch expects"):
        entropatch.prune_(model)
    assert_untouched(model, before)


def test_a_failing_check_leaves_the_model_as_it_was(monkeypatch):
    model = create("deit")
    before = snapshot(model)
    monkeypatch.setattr("entropatch.surgery.check._check_block", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        entropatch.prune_(model)
    assert_untouched(model, before)


def test_the_check_does_not_depend_on_autocast():
    model = create("q/k norm")
    for block in model.blocks:
        block.attn.fused_attn = False
    with torch.autocast("cpu", torch.bfloat16):
        entropatch.prune_(model, keep_rate=0.5)


@pytest.mark.parametrize(
    ("fields", "patches"), [({}, 25), ({"order": 2.0}, 25), ({"method": "evit"}, 27), ({"method": "value-norm"}, 25)]
)
def test_a_model_without_values_is_pruned_by_shape(fields, patches):
    with torch.device("meta"):
        model = timm.create_model("deit_tiny_patch16_224")
        entropatch.prune_(model, keep_rate=0.5, **fields)
        assert model.forward_features(torch.empty(1, 3, 224, 224)).shape == (
            1,
            1 + patches,
            192,
        )


def test_parts_changed_by_hand_count_as_they_are():
    """LayerScale, q/k norm and gates are the model's own: a pruned model uses what is there."""
    for name in ("dinov2", "q/k norm"):
        model, twin = create(name), create(name)
        for changed in (model, twin):
            block: Any = changed.blocks[1]
            block.ls1 = nn.Sequential(block.ls1, nn.Tanh())
            block.attn.q_norm = nn.Sequential(block.attn.q_norm, nn.Tanh())
        images = photographs(model)
        entropatch.prune_(model, keep_rate=1.0)
        assert torch.equal(output(model, images), output(twin, images))
        entropatch.prune_(model, keep_rate=0.5)
        entropatch.prune_(untouched := create(name), keep_rate=0.5)
        assert not torch.equal(output(model, images), output(untouched, images))


# ------------------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("name", ["deit", "eva-02"])
def test_masks_are_refused_where_patches_go(name):
    model = create(name)
    if "attn_mask" not in inspect.signature(model.forward).parameters:
        pytest.skip(f"{type(model).__name__} of timm {timm.__version__} takes no mask")
    images = photographs(model)
    mask = torch.zeros(2, 1, 26, 26)
    with torch.no_grad():
        expected = model(images, attn_mask=mask)
    entropatch.prune_(model, keep_rate=0.5)
    with pytest.raises(ValueError, match="a pruning block takes no attn_mask and no is_causal"):
        model(images, attn_mask=mask)
    entropatch.prune_(model, keep_rate=1.0)
    with torch.no_grad():
        assert torch.equal(model(images, attn_mask=mask), expected)


# ---------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("name", ["dinov3", "rope mixed"])
def test_threads_that_share_a_model_do_not_mix(name):
    """Each forward pass carries its own rotary table, each thread hears its own trace."""
    model = entropatch.prune_(create(name), keep_rate=0.5)
    batches = [photographs(model, batch=8)[i : i + 1].repeat(4, 1, 1, 1) for i in range(8)]

    def everything(batch: Tensor) -> list[Tensor]:
        with torch.no_grad(), entropatch.trace(model) as trace:
            logits = model(batch)
        with torch.no_grad():
            return [logits, *trace.kept, *model.forward_intermediates(batch, intermediates_only=True)]

    expected = [everything(batch) for batch in batches]
    start, failures = threading.Barrier(len(batches)), []

    def work(i: int) -> None:
        try:
            start.wait()
            for _ in range(5):
                assert all(torch.equal(a, b) for a, b in zip(everything(batches[i]), expected[i], strict=True))
        except BaseException as failure:  # a thread's exception would otherwise be lost
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_random_scores_depend_on_the_seed_alone():
    images = photographs(create("deit"))
    first = output(entropatch.prune_(create("deit"), keep_rate=0.5, criterion=Random(3)), images)
    torch.rand(5)
    assert torch.equal(output(entropatch.prune_(create("deit"), keep_rate=0.5, criterion=Random(3)), images), first)
    assert not torch.equal(output(entropatch.prune_(create("deit"), keep_rate=0.5, criterion=Random(4)), images), first)
