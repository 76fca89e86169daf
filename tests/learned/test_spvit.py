"""SPViT against a slow twin: what each image keeps, the package token, both losses and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import reference_methods
import torch
from small_models import awaken, create, photographs
from small_towers import clip, pictures, torchvision_model
from taught_twin import apart_from, assert_alike, handed_over, hard_share, train_pass

import entropatch
from entropatch import HeadSelector, PruneConfig, UnsupportedModelError, prune_
from entropatch.bench.targets import meeting
from entropatch.criteria.learned import Making
from entropatch.measure.budget import BudgetError
from entropatch.measure.variants import Variant

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCKS = (1, 2, 3)


def pruned(name: str = "deit", **fields: Any) -> Any:
    model: Any = prune_(create(name).double(), method="spvit", keep_rate=0.7, **fields)
    awaken(model.entropatch)
    balance(model)
    return model


def balance(model: Any) -> None:
    """Move the last biases of the selectors, block by block, so that each keeps about half of what it sees."""
    gaps: list[torch.Tensor] = []
    for selector in model.entropatch.values():
        gaps.clear()
        hook = selector.register_forward_hook(lambda _, args, out: gaps.append(out[0][..., 0] - out[0][..., 1]))
        with torch.no_grad():
            model(photographs(model, batch=4).double())
            ranked = torch.cat([gap.flatten() for gap in gaps]).sort().values
            selector.score[4].bias[0] -= ranked[len(ranked) // 2 - 1 : len(ranked) // 2 + 1].mean()  # on no patch's
        hook.remove()


def selectors(model: Any) -> dict[int, Any]:
    return {int(block): part for block, part in model.entropatch.items()}


@pytest.mark.parametrize("name", ["deit", "deit distilled", "deit-iii"])
def test_inference_is_the_slow_twin(name: str) -> None:
    model = pruned(name)
    images = photographs(model, batch=4).double()
    with torch.no_grad(), entropatch.trace(model) as trace:
        output = model(images)
    parts, stock = selectors(model), entropatch.unprune_(model)
    kept_counts = set()
    for i, image in enumerate(images):
        expected, _, stages, _, _ = reference_methods.packaging_pass(stock, image[None], parts, None)
        torch.testing.assert_close(output[i], expected[0].detach())
        assert [[j for j in kept[i].tolist() if j >= 0] for kept in trace.kept] == stages
        kept_counts.add(tuple(map(len, stages)))
    assert len(kept_counts) > 1  # images differ
    assert any(isinstance(count, list) for count in trace.counts)


def test_training_is_the_slow_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = handed_over(monkeypatch)
    teacher: Any = create("deit").double()
    model = pruned().train()
    images = photographs(model).double()
    logits, terms = train_pass(model, images, teacher)
    twin = pruned()
    parts, stock = selectors(twin), entropatch.unprune_(twin)
    outputs, each, apart = [], [], []
    for i, image in enumerate(images):

        def drawn(stage: int, j: int, log_shares: torch.Tensor, i: int = i) -> torch.Tensor:
            return hard_share(log_shares, noise[stage][i, j])

        output, tokens, _, shares, counted = reference_methods.packaging_pass(stock, image[None], parts, drawn)
        outputs.append(output[0])
        each.append(shares)
        apart += apart_from(teacher, image, tokens, counted, 1)
    means = [sum(shares) / len(each) for shares in zip(*each, strict=True)]
    losses = {
        "ratio": 2 * sum((0.7 ** (s + 1) - mean) ** 2 for s, mean in enumerate(means)) / 3,
        "tokens": 0.5 * sum(apart) / len(apart),
    }
    found = assert_alike(model, logits, terms, stock, parts, torch.stack(outputs), losses)
    assert all(found[f"entropatch.{block}.voice.0.weight"].abs().max() > 0 for block in BLOCKS)


def test_a_keep_rate_of_one_is_the_stock_model() -> None:
    model = create("deit")
    images = photographs(model)
    expected = model(images)
    assert torch.equal(prune_(model, method="spvit", keep_rate=1.0)(images), expected)
    assert torch.equal(model.train()(images), expected)


def test_by_name_and_saved() -> None:
    config = PruneConfig(method="spvit", keep_rate=(0.617, 0.598, 0.371), blocks=(3, 6, 9))
    assert PruneConfig.from_json(config.to_json()) == config
    assert [round(stage.share, 3) for stage in config.stages(12)] == [0.617, 0.369, 0.137]


def test_images_do_not_know_of_each_other_on_any_library() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    vit = awaken(transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=80))).eval()
    images = pictures(4)
    for model in (create("deit"), torchvision_model(), clip().visual.eval(), vit):
        prune_(model, method="spvit")
        awaken(next(part for key, part in model.named_modules() if key.endswith("entropatch")))
        with torch.no_grad():
            together = model(images)
            apart = [model(image[None]) for image in images]
        together, *apart = (getattr(output, "logits", output) for output in (together, *apart))
        torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-5)


def test_restore_has_every_patch() -> None:
    model: Any = pruned().float()
    images = photographs(model)
    with torch.no_grad(), entropatch.trace(model) as trace:
        dense = entropatch.restore(model.forward_features(images), trace)
    assert dense.shape == (2, 5, 5, 32)
    assert dense.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="of a width that 2 · 4 heads divide, of at least 4 for each, but theirs is 8"):
        HeadSelector().make(Making(1, 4, 8, 4, 5))
    with pytest.raises(UnsupportedModelError, match="needs a class token"):
        prune_(create("siglip"), method="spvit")
    with pytest.raises(UnsupportedModelError, match="no place of the grid"):
        prune_(create("rope mixed"), method="spvit")


def test_its_cost_depends_on_its_weights_not_on_the_keep_rate() -> None:
    model = create("deit")
    images = photographs(model)
    with pytest.raises(BudgetError, match="since its weights say how many patches stay"):
        meeting(Variant("spvit", target=0.0016), model, images, dense=0.01)
