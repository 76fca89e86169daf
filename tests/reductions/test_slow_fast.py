"""Evo-ViT's slow and fast path, against a slow twin of a whole model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import reference_methods
import torch
from small_models import create, photographs

import entropatch
from entropatch import CumulativeImportance, PruneConfig, UnsupportedModelError, prune_
from entropatch.criteria import AttEntropy, ClassAttention, Mix, RunningClassAttention
from entropatch.reductions import SlowFast
from entropatch.schedule import FloorRate, Site, exact_rate
from entropatch.surgery.sharing import Shared, sharing

pytestmark = pytest.mark.usefixtures("one_thread")
SETTING: dict[str, Any] = {"reduction": SlowFast(), "schedule": FloorRate(), "keep_rate": 0.5}
RUNNING = RunningClassAttention(share=0.3, begin=2)


@pytest.mark.parametrize("representative", [False, True])
@pytest.mark.parametrize("blocks", [(1, 2, 3), (1, 3), (2,)])
@pytest.mark.parametrize("name", ["deit", "deit distilled"])
def test_the_chosen_run_the_blocks_and_the_others_come_back(
    name: str, blocks: tuple[int, ...], representative: bool
) -> None:
    setting = SETTING | {"criterion": RUNNING, "reduction": SlowFast(representative)}
    model = prune_(create(name).double(), **setting, blocks=blocks)
    images = photographs(model).double()
    seen: list[int] = []
    hooks = [block.register_forward_hook(lambda _, args, y: seen.append(args[0].shape[1])) for block in model.blocks]  # pyright: ignore
    with torch.no_grad(), entropatch.trace(model) as trace:
        output = model(images)
    prefix, extra = trace.num_prefix_tokens, int(representative)
    assert seen == [prefix + 25] * blocks[0] + [prefix + 12 + extra] * (4 - blocks[0])
    for hook in hooks:
        hook.remove()
    stock = entropatch.unprune_(model)
    for i, image in enumerate(images):
        expected, stages = reference_methods.evo_pass(stock, image[None], blocks, 0.5, 0.3, 2, representative)
        torch.testing.assert_close(output[i], expected[0])
        assert [kept[i].tolist() for kept in trace.kept] == stages
    assert trace.counts == [25] * (len(blocks) + 1)


def test_evo_vit_by_name() -> None:
    config = PruneConfig(method="evo-vit", keep_rate=0.5)
    assert config == PruneConfig(criterion=RunningClassAttention(), **SETTING)
    assert [stage.block for stage in config.stages(12)] == [4, 8]
    assert PruneConfig.from_json(config.to_json()) == config
    assert FloorRate().count(Site(4, 0, 8, (1, 2), 25, 25), None) == 12
    for hundredths in range(1, 101):  # cut off in double precision: 0.29 of 100 are 28
        rate = hundredths / 100
        for n in (25, 100, 196, 400):
            assert FloorRate().count(Site(4, 0, 2, exact_rate(rate), n, n), None) == int(n * rate)
    model = prune_(create("deit"), config)
    images = photographs(model)
    with torch.no_grad(), entropatch.trace(model) as trace:
        tokens = model.forward_features(images)  # pyright: ignore[reportCallIssue]
        dense = entropatch.restore(tokens, trace)
    assert torch.equal(dense.flatten(1, 2), tokens[:, 1:])  # no token is lost
    prune_(model, keep_rate=1.0)
    with torch.no_grad():
        assert torch.equal(model(images), entropatch.unprune_(copy.deepcopy(model))(images))


@pytest.mark.parametrize("name", ["dinov2 registers", "rope mixed", "dinov3", "deit-iii"])
def test_detours_on_other_models(name: str) -> None:
    model = prune_(create(name), method="evo-vit", keep_rate=0.5)
    images = photographs(model, batch=3)
    with torch.no_grad():
        together = model(images)
        torch.testing.assert_close(together, torch.cat([model(image[None]) for image in images]), atol=1e-5, rtol=1e-5)


def test_gradients_checkpointing_and_sharing() -> None:
    setting: dict[str, Any] = SETTING | {"reduction": SlowFast(True)}
    model: Any = prune_(create("deit"), criterion=RUNNING, **setting).train()
    images, found = photographs(model), []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(images).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    model.eval()
    with torch.no_grad():
        alone = model(images)
        with sharing(model, Shared()):
            for _ in range(2):
                torch.testing.assert_close(model(images), alone)


def test_after_another_reduction_and_with_coverage() -> None:
    """Fewer patches came in, and the cells of the grid are those of the original ones."""
    setting: dict[str, Any] = {"criterion": RUNNING, "blocks": (1, 2, 3), "keep_rate": 0.6, "coverage": (None, 2, None)}
    model = prune_(create("deit"), reduction=("merge", SlowFast(), "fuse"), **setting)
    images = photographs(model, batch=4)
    with torch.no_grad(), entropatch.trace(model) as trace:
        together = model(images)
        tokens = model.forward_features(images)  # pyright: ignore[reportCallIssue]
        assert entropatch.restore(tokens, trace).isfinite().all()
    assert trace.counts == [25, 15, 15, 10]
    with torch.no_grad():
        torch.testing.assert_close(together, torch.cat([model(image[None]) for image in images]), atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    for criterion in (ClassAttention(), AttEntropy(), Mix(RUNNING, RUNNING)):
        with pytest.raises(ValueError, match="needs a criterion that remembers the blocks before"):
            PruneConfig(criterion=criterion, reduction="slow-fast")
    with pytest.raises(ValueError, match="takes one number for all images"):
        PruneConfig(criterion=RUNNING, reduction="slow-fast", schedule=CumulativeImportance())
    with pytest.raises(ValueError, match="of which block 0 has none"):
        prune_(create("deit"), criterion=RUNNING, reduction="slow-fast", blocks=(0, 2))
    with pytest.raises(UnsupportedModelError, match="needs a class token"):
        prune_(create("siglip"), method="evo-vit")
    with pytest.raises(UnsupportedModelError, match="no place of the grid"):
        prune_(create("rope mixed"), criterion=RUNNING, reduction=SlowFast(representative=True))
