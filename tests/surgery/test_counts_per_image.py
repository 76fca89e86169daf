"""Images that keep different numbers of tokens: each as if it were alone, together in groups of one size."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_models import GRID, create, photographs
from torch import Tensor

import entropatch
from entropatch import ClassAttention, CumulativeImportance, PruneConfig, Schedule
from entropatch.measure import count_flops
from entropatch.schedule import Site

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, dict[str, Any]] = {
    "drop": {"order": 2.0},
    "fuse": {"criterion": ClassAttention(), "reduction": "fuse"},
    "merge": {"order": 1.0, "reduction": "merge"},
}


@dataclass(frozen=True)
class BySum(Schedule):
    """Different counts for different images, whatever their scores: by where their most important patch lies."""

    per_image = True

    def count(self, site: Site, mass: Tensor | None) -> Tensor:
        assert mass is not None
        sizes = torch.tensor([(site.n + 3) // 4, (site.n + 1) // 2, (3 * site.n + 3) // 4, site.n])
        return sizes[mass.argmax(1) % 4]


def pruned(name: str, **setting: Any) -> Any:
    return entropatch.prune_(create(name), **{"schedule": BySum()} | setting)


def traced(model: Any, images: Tensor) -> tuple[Tensor, entropatch.Trace]:
    with torch.no_grad(), entropatch.trace(model) as trace:
        return model(images), trace


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", ["deit", "deit distilled", "average", "siglip", "dinov3", "rope mixed", "eva-02"])
def test_a_batch_is_its_images_one_by_one(name: str, kind: str) -> None:
    if kind == "fuse" and name in ("siglip", "average", "dinov3", "rope mixed", "eva-02"):
        pytest.skip("no class token, or no place for a fused token")
    model = pruned(name, **SETTINGS[kind])
    images = photographs(model, batch=9)
    together, trace = traced(model, images)
    alone = [traced(model, image[None]) for image in images]
    torch.testing.assert_close(together, torch.cat([output for output, _ in alone]), atol=1e-5, rtol=1e-5)
    differing = [counts for counts in trace.counts if not isinstance(counts, int)]
    assert differing, "all images kept equally many: nothing was tested"
    for stage, counts in enumerate(trace.counts):
        own = [single.counts[stage] for _, single in alone]
        assert own == (counts if isinstance(counts, list) else [counts] * 9)
    for stage, record in enumerate(trace.stages):
        for image, (_, single) in enumerate(alone):
            kept = [patch for patch in record.kept[image].tolist() if patch >= 0]
            assert kept == [patch for patch in single.kept[stage][0].tolist() if patch >= 0]


@dataclass(frozen=True)
class Meeting(Schedule):
    """Images differ after the first stage, are alike after the second, and go on together."""

    per_image = True

    def count(self, site: Site, mass: Tensor | None) -> Tensor:
        assert mass is not None
        apart = torch.tensor([13, 19, 25])[torch.arange(len(mass)) % 3] if len(mass) > 1 else torch.tensor([25])
        return apart if site.stage == 0 else torch.full((len(mass),), 13 if site.stage == 1 else 7)


def test_groups_that_meet_again_are_in_the_order_of_the_batch() -> None:
    """One group at the end, whose images came together out of several."""
    model = pruned("deit", schedule=Meeting(), blocks=(0, 1, 3), order=2.0)
    images = photographs(model, batch=7)
    with torch.no_grad(), entropatch.trace(model) as trace:
        together = model(images)
        features = model.forward_features(images)
    assert trace.counts == [25, [13, 19, 25, 13, 19, 25, 13], 13, 7]
    dense = entropatch.restore(features, trace)
    for image in range(7):
        # The same count at every stage for this image alone: a batch of it, at its place among three.
        batch = images[[image] * 3]
        own, single = traced(model, batch)
        like = image % 3
        torch.testing.assert_close(together[image], own[like], atol=1e-5, rtol=1e-5)
        for record, other in zip(trace.stages, single.stages, strict=True):
            assert record.kept[image].tolist()[:7] == other.kept[like].tolist()[:7]
        with torch.no_grad(), entropatch.trace(model) as again:
            expected = entropatch.restore(model.forward_features(batch), again)
        torch.testing.assert_close(dense[image], expected[like], atol=1e-5, rtol=1e-5)


def test_at_most_four_sizes_run_after_every_stage() -> None:
    model = entropatch.prune_(create("deit"), schedule=CumulativeImportance(0.6), order=2.0)
    seen: list[set[int]] = [set() for _ in range(4)]
    for i, block in enumerate(model.blocks):  # pyright: ignore[reportArgumentType]
        block.register_forward_pre_hook(lambda module, args, i=i: seen[i].add(args[0].shape[1] - 1))
    images = 3 * torch.randn(32, 3, GRID * 16, GRID * 16) * torch.logspace(-1, 1, 32)[:, None, None, None]
    traced(model, images)
    assert all(len(sizes) <= 4 for sizes in seen)
    assert max(len(sizes) for sizes in seen) > 1


@pytest.mark.parametrize("name", ["deit", "average", "dinov3"])
def test_restore_and_feature_maps(name: str) -> None:
    model = pruned(name)
    images = photographs(model, batch=6)
    with torch.no_grad(), entropatch.trace(model) as trace:
        features = model.forward_features(images)
        dense = entropatch.restore(features, trace)
    with torch.no_grad():
        maps = model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    assert dense.isfinite().all()
    for i, image in enumerate(images):
        with torch.no_grad(), entropatch.trace(model) as single:
            own = model.forward_features(image[None])
        length = own.shape[1]
        torch.testing.assert_close(features[i, :length], own[0], atol=1e-5, rtol=1e-5)
        assert features[i, length:].isnan().all()  # whoever reads the padding notices
        torch.testing.assert_close(dense[i], entropatch.restore(own, single)[0], atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            expected = model.forward_intermediates(image[None], indices=[1, 3], intermediates_only=True)
        for got, want in zip(maps, expected, strict=True):
            torch.testing.assert_close(got[i], want[0], atol=1e-5, rtol=1e-5)


def test_a_head_without_pooling_gives_tokens_that_end_in_nan() -> None:
    model = entropatch.prune_(create("deit", global_pool=""), schedule=BySum())
    images = photographs(model, batch=6)
    with torch.no_grad():
        found = model(images)
        alone = [model(image[None])[0] for image in images]
    assert len({len(own) for own in alone}) > 1
    assert found.shape == (6, max(map(len, alone)), 5)
    for got, own in zip(found, alone, strict=True):
        torch.testing.assert_close(got[: len(own)], own, atol=1e-5, rtol=1e-5)
        assert got[len(own) :].isnan().all()


def test_a_batch_computes_what_its_images_do() -> None:
    """Not a token more: no half of a block runs on padding."""
    pytest.importorskip("fvcore")
    model = pruned("deit", order=2.0)
    images = photographs(model, batch=6)
    together = count_flops(model, images).total
    alone = [count_flops(model, image[None]).total for image in images]
    assert len(set(alone)) > 1
    assert together == pytest.approx(sum(alone) / 6, rel=1e-6)


def test_batch_of_one_runs_its_own_size_alone() -> None:
    """The group's size is the image's: after each stage nothing is padded."""
    model = pruned("deit")
    image = photographs(model)[:1]
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, y: seen.append(y.shape[1] - 1))
    _, trace = traced(model, image)
    assert seen == [25, *trace.counts[1:]]


def test_gradients_are_those_of_the_images_one_by_one() -> None:
    model = pruned("deit").train()
    images = photographs(model, batch=5)
    model(images).square().sum().backward()
    together = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    for image in images:
        model(image[None]).square().sum().backward()
    alone = [weight.grad for weight in model.parameters() if weight.grad is not None]
    for got, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_and_copies() -> None:
    model = pruned("dinov3").train()
    images = photographs(model, batch=5)
    passes = []
    for each in (model, copy.deepcopy(model)):
        each.set_grad_checkpointing(each is not model)
        each(images).square().sum().backward()
        passes.append([weight.grad for weight in each.parameters() if weight.grad is not None])
    for got, expected in zip(*passes, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_share_of_the_importance_keeps_the_patches_that_hold_it() -> None:
    model = entropatch.prune_(
        create("deit"), criterion=ClassAttention(), schedule=CumulativeImportance(0.5), blocks=(1,)
    )
    images = photographs(model, batch=8)
    _, trace = traced(model, images)
    (stage,) = trace.stages
    assert stage.scores is not None
    for image, scores in enumerate(stage.scores):
        kept = [patch for patch in stage.kept[image].tolist() if patch >= 0]
        assert len(kept) in (7, 13, 19, 25)
        assert scores[kept].sum() >= 0.5 * scores.sum()
        smaller = len(kept) - 6
        if smaller >= 7:
            assert scores.sort(descending=True).values[:smaller].sum() < 0.5 * scores.sum()


@dataclass(frozen=True)
class Halves(Schedule):
    """Returns what a schedule must not."""

    per_image = True
    what: str = "floats"

    def count(self, site: Site, mass: Tensor | None) -> Any:
        assert mass is not None
        return {"floats": mass.sum(1), "one": torch.tensor(3), "int": 3}[self.what]


@pytest.mark.parametrize("what", ["floats", "one", "int"])
def test_a_schedule_must_return_a_number_for_each_image(what: str) -> None:
    model = entropatch.prune_(create("deit"), schedule=Halves(what))
    with pytest.raises(ValueError, match=r"Halves.count must return one whole number for each of the 2 images"):
        model(photographs(model))


def test_a_schedule_that_reads_scores_needs_a_reduction_that_has_them() -> None:
    with pytest.raises(ValueError, match="reads the scores of patches, but reduction 'bipartite' has none"):
        entropatch.prune_(create("deit"), PruneConfig(reduction="bipartite", schedule=CumulativeImportance()))


def test_an_empty_batch() -> None:
    model = pruned("deit")
    assert model(photographs(model)[:0]).shape == (0, 5)


@dataclass(frozen=True)
class MeetsAgain(Schedule):
    """Different counts first, the same for all later, so that the groups become one batch again."""

    per_image = True

    def count(self, site: Site, mass: Tensor | None) -> Tensor:
        assert mass is not None
        if site.stage:
            return torch.full_like(mass.argmax(1), 6)
        return torch.tensor([18, 8, 13])[torch.arange(mass.shape[0]) % 3] if mass.shape[0] > 1 else SIZE_ALONE


SIZE_ALONE = torch.tensor([8])


@pytest.mark.parametrize("name", ["deit", "siglip", "dinov3", "rope mixed"])
def test_groups_that_become_one_batch_again_are_in_its_order(name: str) -> None:
    model = pruned(name, schedule=MeetsAgain(), blocks=(0, 1, 2))
    images = photographs(model, batch=6)
    with torch.no_grad(), entropatch.trace(model) as trace:
        features = model.forward_features(images)
    dense = entropatch.restore(features, trace)
    with torch.no_grad():
        together = model(images)
        maps = model.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    assert trace.counts == [25, [19, 13, 13] * 2, 7, 7]  # rounded up to quarters of 25
    for i, image in enumerate(images):
        SIZE_ALONE.fill_([18, 8, 13][i % 3])
        with torch.no_grad(), entropatch.trace(model) as single:
            own = model.forward_features(image[None])
        torch.testing.assert_close(features[i], own[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dense[i], entropatch.restore(own, single)[0], atol=1e-5, rtol=1e-5)
        assert trace.kept[2][i].tolist() == single.kept[2][0].tolist()
        with torch.no_grad():
            torch.testing.assert_close(together[i], model(image[None])[0], atol=1e-5, rtol=1e-5)
            expected = model.forward_intermediates(image[None], indices=[0, 2], intermediates_only=True)
        for got, want in zip(maps, expected, strict=True):
            torch.testing.assert_close(got[i], want[0], atol=1e-5, rtol=1e-5)


class _FixedDropout(torch.nn.Module):
    """Patch dropout as timm's, whose choice is known: each image loses patches of its own."""

    prob = 0.4

    def __init__(self, chosen: Tensor, prefix: int):
        super().__init__()
        self.chosen, self.prefix = chosen, prefix

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = x[:, self.prefix :].gather(1, self.chosen[..., None].expand(-1, -1, x.shape[2]))
        return torch.cat((x[:, : self.prefix], kept), dim=1), self.chosen


@pytest.mark.parametrize("name", ["dinov3", "eva-02"])
def test_each_image_keeps_its_own_rotary_table_after_patch_dropout(name: str) -> None:
    model = pruned(name, blocks=(0, 1, 2)).train()
    images = photographs(model, batch=6)
    chosen = torch.rand(6, 25, generator=torch.Generator().manual_seed(2)).argsort(1)[:, :15].sort(1).values
    model.patch_drop = _FixedDropout(chosen, model.num_prefix_tokens)
    together, trace = traced(model, images)
    assert any(isinstance(counts, list) for counts in trace.counts)
    for i, image in enumerate(images):
        model.patch_drop.chosen = chosen[i : i + 1]
        alone, _ = traced(model, image[None])
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Unbounded(entropatch.Criterion):
    """Infinite for some patches, or no numbers at all."""

    infinite: int = 0
    value: float = float("inf")

    def importance(self, attention: entropatch.BlockAttention) -> Tensor:
        scores = torch.zeros(attention.q.shape[0], attention.num_patches)
        scores[:, : self.infinite] = self.value
        return scores


@pytest.mark.parametrize(
    ("criterion", "kept"), [(Unbounded(12), 13), (Unbounded(3), 7), (Unbounded(20, float("nan")), 25)]
)
def test_scores_that_are_infinite_or_no_numbers(criterion: Unbounded, kept: int) -> None:
    """Infinite ones share everything; of what is no number nothing is known, and all patches stay."""
    model = entropatch.prune_(create("deit"), criterion=criterion, schedule=CumulativeImportance(0.9), blocks=(1,))
    _, trace = traced(model, photographs(model))
    assert trace.counts == [25, kept]


@pytest.mark.slow
def test_gradient_checkpointing_in_a_compiled_model() -> None:
    torch.compiler.reset()
    model = pruned("deit").train()
    images, grads = photographs(model, batch=5), []
    model.set_grad_checkpointing()
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        run(images).square().sum().backward()
        grads.append([weight.grad.clone() for weight in model.parameters()])
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
