"""Token Cropr against a slow twin: scores, parked patches, auxiliary losses and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import reference_methods
import torch
import torch.nn.functional as F
from small_models import awaken, create, photographs
from small_towers import pictures, torchvision_model

import entropatch
from entropatch import Park, PruneConfig, QueryScore, RemoveBetweenBlocks, method_loss, prune_
from entropatch.criteria.learned import Making

pytestmark = pytest.mark.usefixtures("one_thread")


def pruned(name: str = "deit", **fields: Any) -> Any:
    given: dict[str, Any] = {
        "criterion": QueryScore(queries=2),
        "reduction": Park(),
        "schedule": RemoveBetweenBlocks(4),
    }
    model: Any = prune_(create(name, depth=5).double(), **(given | fields))
    awaken(model.entropatch)
    return model


@pytest.mark.parametrize("reduction", ["park", "drop"])
@pytest.mark.parametrize("name", ["deit", "deit distilled", "average", "siglip"])
def test_it_is_the_slow_twin(name: str, reduction: str) -> None:
    model = pruned(name, reduction=reduction)
    images, labels = photographs(model).double(), torch.tensor([1, 3])
    with torch.no_grad(), entropatch.trace(model) as trace:
        tokens = model.forward_features(images)
        output = model.forward_head(tokens)
    counts = [25, 20, 16, 12] if reduction == "drop" else [25, 20, 16, 12, 25]  # one more the first time
    assert trace.counts == counts
    model.train()
    with method_loss(model) as own:
        logits = model(images)
        loss = F.cross_entropy(logits, labels) + own.value(labels)
    loss.backward()
    grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    scorers = {int(block): part for block, part in model.entropatch.items()}
    model.eval()
    stock = entropatch.unprune_(model)
    for part in (stock, *scorers.values()):
        part.zero_grad()
    outputs, auxiliary = [], []
    for i, image in enumerate(images):
        expected, whole, stages, predicted = reference_methods.cropr_pass(
            stock, scorers, image[None], (5, 4, 4), reduction == "park"
        )
        torch.testing.assert_close(output[i], expected[0].detach())
        torch.testing.assert_close(tokens[i], whole[0].detach())
        assert [kept[i].tolist() for kept in trace.kept[:3]] == stages
        outputs.append(expected[0])
        auxiliary.append(predicted)
    aux = sum(F.cross_entropy(torch.stack(one), labels) for one in zip(*auxiliary, strict=True))
    expected_loss = F.cross_entropy(torch.stack(outputs), labels) + aux
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    expected_loss.backward()
    for key, grad in grads.items():
        block = key.split(".")
        of = scorers[int(block[1])] if block[0] == "entropatch" else stock
        twin = of.get_parameter(".".join(block[2:]) if block[0] == "entropatch" else key).grad
        torch.testing.assert_close(grad, twin, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: key + text)
    assert grads["entropatch.1.query"].abs().max() > 0


def test_how_many_leave() -> None:
    """R of a single number, one more the first time; of several numbers, and by a keep rate, as many as they say."""
    images = photographs(create("deit"))
    numbers = {4: [25, 20, 16, 12], 0: [25, 25, 25, 25], (1, 2, 3): [25, 24, 22, 19], None: [25, 20, 15, 10]}
    for r, counts in numbers.items():
        rate = {"keep_rate": 0.7} if r is None else {}
        model = pruned(reduction="drop", schedule=RemoveBetweenBlocks(r), **rate).float()
        with torch.no_grad(), entropatch.trace(model) as trace:
            model(images)
        assert trace.counts == counts


def test_queries_begin_as_long_as_the_tokens_are_wide() -> None:
    query = QueryScore(queries=500).make(Making(1, 4, 64, 2, 5)).query  # pyright: ignore[reportAttributeAccessIssue]
    assert query.std().item() == pytest.approx(0.88 / 8, rel=0.02)  # 0.88: of a normal distribution cut at ±2
    assert query.abs().max() <= 2 / 8


def test_the_auxiliary_loss_teaches_the_queries_alone() -> None:
    model = pruned().train()
    with method_loss(model) as own:
        model(photographs(model).double())
        own.value(torch.tensor([0, 1])).backward()
    taught = {key for key, p in model.named_parameters() if p.grad is not None}
    assert taught
    assert all(key.startswith("entropatch.") for key in taught)


def test_full_maps() -> None:
    model = pruned().float()
    images = photographs(model)
    with torch.no_grad(), entropatch.trace(model) as trace:
        tokens = model.forward_features(images)
        dense = entropatch.restore(tokens, trace)
    assert torch.equal(dense.flatten(1, 2), tokens[:, 1:])


def test_by_name_and_saved() -> None:
    config = PruneConfig(method="cropr", keep_rate=0.7)
    assert PruneConfig.from_json(config.to_json()) == config
    assert [stage.block for stage in config.stages(12)] == list(range(1, 11))
    assert PruneConfig(method="cropr", r=3).schedule == RemoveBetweenBlocks(3)
    model = create("deit")
    images = photographs(model)
    expected = model(images)
    prune_(model, method="cropr", keep_rate=1.0)
    assert torch.equal(model(images), expected)
    assert model.entropatch["1"].head[1].out_features == 5  # pyright: ignore[reportIndexIssue,reportAttributeAccessIssue]


def test_rotary_embeddings_follow_the_patches() -> None:
    """A patch that was parked is turned as it stands: with a removal of none it is the stock model."""
    for name in ("rope mixed", "dinov3"):
        model: Any = prune_(create(name), criterion=QueryScore(), reduction="park", schedule=RemoveBetweenBlocks(5))
        images = photographs(model, batch=3)
        with torch.no_grad():
            together = model(images)
            apart = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_on_torchvision_and_transformers_it_is_what_it_is_on_timm_s_loop() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=80)).eval()
    for one in (torchvision_model(), model):
        prune_(one, method="cropr", r=4)
        with torch.no_grad(), entropatch.trace(one) as trace:
            one(pictures())
        assert trace.counts[-1] == 25
        assert trace.counts[1] == 20


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="is for criteria that decide before a block"):
        PruneConfig(reduction="park")
    with pytest.raises(ValueError, match="queries must be a whole number"):
        QueryScore(queries=0)
    model = pruned()
    with method_loss(model) as own:
        model(photographs(model).double())
        with pytest.raises(ValueError, match="no auxiliary prediction was made"):
            own.value()
        model.train()(photographs(model).double())
        with pytest.raises(ValueError, match="learn from the labels"):
            own.value()
