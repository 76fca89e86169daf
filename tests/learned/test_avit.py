"""A-ViT against a slow twin in which tokens really leave: kept sets, mean-field output, losses and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference_methods
import torch
from small_models import create, photographs
from small_towers import clip, pictures, torchvision_model

import entropatch
from entropatch import Halting, PruneConfig, UnsupportedModelError, method_loss, prune_
from entropatch.deciding import AboveZero, AboveZeroEverywhere

pytestmark = pytest.mark.usefixtures("one_thread")
DEPTH = 6
CRITERION = Halting(scale=1.5, centre=1.0, epsilon=0.05, ponder_weight=0.3, prior_weight=0.7, target_depth=3)


def pruned(name: str = "deit", criterion: Halting = CRITERION) -> Any:
    return prune_(create(name, depth=DEPTH).double(), criterion=criterion, schedule=AboveZeroEverywhere())


def twin(model: Any, image: torch.Tensor, criterion: Halting = CRITERION) -> Any:
    return reference_methods.halting_pass(model, image[None], criterion.scale, criterion.centre, criterion.epsilon)


@pytest.mark.parametrize(("centre", "early"), [(1.0, False), (2.5, False), (-1.0, False), (2.5, True), (1.0, True)])
@pytest.mark.parametrize("name", ["deit", "q/k norm"])
def test_inference_is_the_slow_twin(name: str, centre: float, early: bool) -> None:
    """Where the class token halts early, the patches go on without it."""
    criterion = Halting(scale=1.5, centre=centre, epsilon=0.05)
    model = pruned(name, criterion)
    if early:
        model.cls_token.data[..., 0] += 9
    images = photographs(model, batch=4).double()
    seen: list[int] = []
    hooks = [block.register_forward_hook(lambda _, args, y: seen.append(args[0].shape[1])) for block in model.blocks]
    with torch.no_grad(), entropatch.trace(model) as trace:
        output = model(images)
    for hook in hooks:
        hook.remove()
    assert min(seen) < 26  # tokens are gone, not masked
    stock = entropatch.unprune_(model)
    for i, image in enumerate(images):
        expected, stages, _, _ = twin(stock, image, criterion)
        torch.testing.assert_close(output[i], expected[0].detach())
        for kept, patches in zip(trace.kept, stages, strict=True):
            assert [patch for patch in kept[i].tolist() if patch >= 0] == patches


def test_images_do_not_know_of_each_other() -> None:
    model = pruned().float()
    images = photographs(model, batch=5)
    with torch.no_grad():
        together = model(images)
        apart = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_training_is_the_slow_twin() -> None:
    """Masked, with the same output; and both losses, with all gradients."""
    model = pruned().train()
    images = photographs(model, batch=3).double()
    with method_loss(model) as own:
        logits = model(images)
        terms = own.terms()
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(images))
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    ((logits * weights).sum() + sum(terms.values())).backward()
    found = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    stock = entropatch.unprune_(model)
    stock.zero_grad()
    outputs, ponder, halting = [], [], [0.0] * DEPTH
    for image in images:
        output, _, each, sums = twin(stock, image)
        outputs.append(output[0])
        ponder += each
        halting = [a + b for a, b in zip(halting, sums, strict=True)]
    expected = torch.stack(outputs)
    torch.testing.assert_close(logits, expected)
    total = sum(halting)
    wanted = [math.exp(-((depth - 3) ** 2) / 2) for depth in range(1, DEPTH + 1)]
    prior = sum(
        h / total * ((h / total).log() - math.log(w / sum(wanted))) for h, w in zip(halting, wanted, strict=True)
    )
    losses = {"ponder": 0.3 * sum(ponder) / len(ponder), "prior": 0.7 * prior}
    for key, value in losses.items():
        torch.testing.assert_close(terms[key], value)
    ((expected * weights).sum() + sum(losses.values())).backward()
    for key, grad in found.items():
        torch.testing.assert_close(
            grad, stock.get_parameter(key).grad, rtol=1e-5, atol=1e-8, msg=lambda text, key=key: key + text
        )


def test_gradients_pass_at_inference_too() -> None:
    model = pruned()
    images = photographs(model).double().requires_grad_()
    model(images).sum().backward()
    assert images.grad is not None
    whole = images.grad.clone()
    images.grad = None
    for parameter in model.parameters():
        parameter.grad = None
    model.train()(images).sum().backward()
    torch.testing.assert_close(images.grad, whole)


def test_where_none_halts_it_is_the_stock_model() -> None:
    stock = create("deit")
    images = photographs(stock)
    expected = stock(images)
    model = prune_(stock, method="a-vit")  # γ and β of a model that was trained so
    with torch.no_grad(), entropatch.trace(model) as trace:
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    assert trace.counts == [25] * 4


def test_it_has_no_weights_and_is_saved() -> None:
    config = PruneConfig(method="a-vit")
    assert PruneConfig.from_json(config.to_json()) == config
    model = create("deit")
    keys = model.state_dict().keys()
    assert prune_(model, config).state_dict().keys() == keys


def test_an_empty_batch() -> None:
    model = prune_(create("deit"), method="a-vit")
    assert model(photographs(model)[:0]).shape == (0, 5)


def test_on_other_libraries() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=80)).eval()
    images = pictures(4)
    for model in (torchvision_model(), clip().visual.eval(), vit):
        prune_(model, criterion=Halting(scale=2.0, centre=0.5), schedule=AboveZeroEverywhere())
        found = []
        for training in (False, True):
            model.train(training)
            with torch.no_grad(), entropatch.trace(model) as trace:
                output = model(images)
            found.append(getattr(output, "logits", output))
            if not training:
                counts = [count for one in trace.counts for count in (one if isinstance(one, list) else [one])]
                assert min(counts) < 25
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_full_maps() -> None:
    model: Any = pruned().float()
    images = photographs(model)
    with torch.no_grad(), entropatch.trace(model) as trace:
        tokens = model.forward_features(images)
        assert entropatch.restore(tokens, trace).isfinite().all()
        assert model.forward_intermediates(images, intermediates_only=True)[-1].isfinite().all()


@pytest.mark.slow
def test_compiled() -> None:
    model: Any = pruned().float()
    images = photographs(model)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.compile(model, backend="eager")(images), expected)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="needs a class token"):
        prune_(create("siglip"), method="a-vit")
    for name in ("average", "siglip"):  # patches, or a map of them, are what the head reads
        with pytest.raises(UnsupportedModelError, match="class token"):
            prune_(create(name), PruneConfig(criterion=Halting(), schedule=AboveZeroEverywhere()))
    with pytest.raises(UnsupportedModelError, match=r"^a-vit \(Halting\) makes the class token that the head reads"):
        prune_(create("deit", global_pool="avg"), method="a-vit")
    with pytest.raises(ValueError, match="looks at the tokens before every block but the first"):
        prune_(create("deit"), method="a-vit", blocks=(1, 3))
    with pytest.raises(ValueError, match=r"epsilon must lie in \(0, 1\)"):
        Halting(epsilon=0)
    with pytest.raises(ValueError, match="sizes must be None"):
        AboveZero(sizes=(0.5, 1.0))
    model = prune_(create("deit"), method="a-vit")
    with pytest.raises(ValueError, match="another number of tokens for each image"):
        entropatch.export(model, photographs(model), "never.onnx")
