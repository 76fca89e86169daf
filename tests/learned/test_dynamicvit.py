"""DynamicViT against slow twins: what it keeps, what it trains by, and its gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import reference_methods
import torch
import torch.nn.functional as F
from small_models import awaken, create, photographs
from taught_twin import apart_from, assert_alike, handed_over, hard_share, train_pass

import entropatch
from entropatch import KeepPredictor, PruneConfig, UnsupportedModelError, method_loss, prune_
from entropatch.attention import masked_softmax
from entropatch.deciding import ShareOfTotal
from entropatch.measure import count_flops
from entropatch.schedule import Site

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCKS = (1, 2, 3)


def pruned(name: str = "deit", keep_rate: float = 0.7, **fields: Any) -> Any:
    """A model in float64 whose predictors tell patches apart."""
    model: Any = prune_(create(name).double(), method="dynamicvit", keep_rate=keep_rate, **fields)
    awaken(model.entropatch)
    return model


def predictors(model: Any) -> dict[int, Any]:
    return {int(block): part for block, part in model.entropatch.items()}


@pytest.mark.parametrize("name", ["deit", "deit distilled", "q/k norm", "deit-iii"])
@pytest.mark.parametrize("rate", [0.7, 0.5])
def test_inference_is_the_slow_twin(name: str, rate: float) -> None:
    model = pruned(name, rate)
    images = photographs(model).double()
    with torch.no_grad(), entropatch.trace(model) as trace:
        output = model(images)
    assert trace.counts == [25, *(int(25 * rate**s) for s in (1, 2, 3))]
    parts, stock = predictors(model), entropatch.unprune_(model)
    for i, image in enumerate(images):
        expected, stages = reference_methods.dynamic_pass(stock, parts, image[None], BLOCKS, rate)
        torch.testing.assert_close(output[i], expected[0])
        assert [kept[i].tolist() for kept in trace.kept] == stages


def test_counts_are_cut_off_as_in_the_released_code() -> None:
    config = PruneConfig(method="dynamicvit", keep_rate=0.7)
    stages = config.stages(12)
    assert [stage.block for stage in stages] == [3, 6, 9]
    counts = [s.schedule.count(Site(s.block, s.index, 3, s.rate, 196, 196, s.share), None) for s in stages]
    assert counts == [137, 96, 67]
    assert [int(100 * stage.share) for stage in stages] == [70, 48, 34]  # 0.7 * 0.7 is less than 0.49
    listed = PruneConfig(method="dynamicvit", keep_rate=(0.5, 0.8, 0.5), blocks=(1, 2, 3)).stages(4)
    assert [stage.share for stage in listed] == [0.5, 0.4, 0.2]
    assert ShareOfTotal().count(Site(0, 0, 1, (1, 100), 25, 25, 0.01), None) == 0  # the loop leaves one


@pytest.mark.parametrize("name", ["deit", "deit distilled"])
def test_training_is_the_slow_twin(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, both losses and all gradients, with the Gumbel noise of the run handed to the twin."""
    noise = handed_over(monkeypatch)
    teacher = create(name).double()
    model = pruned(name).train()
    images = photographs(model).double()
    logits, terms = train_pass(model, images, teacher)
    twin = pruned(name)
    parts, stock = predictors(twin), entropatch.unprune_(twin)
    expected, ratio, apart = [], 0, []
    for i, image in enumerate(images):
        shares: list[Any] = []

        def decide(block: int, x: torch.Tensor, counted: list[Any], i: int = i, shares: Any = shares) -> Any:
            if block not in BLOCKS:
                return None
            part = parts[block]
            z = torch.stack([part.embed(row) for row in x])
            half = z.shape[1] // 2
            overall = sum(d * row[half:] for d, row in zip(counted, z, strict=True)) / sum(counted)
            after = []
            for j, d in enumerate(counted):
                log_shares = part.score(torch.cat((z[j, :half], overall))).log_softmax(0)
                after.append(d * hard_share(log_shares, noise[len(shares)][i, j]))
            shares.append(sum(after) / len(after))
            return after

        tokens, counted = reference_methods.masked_pass(stock, image[None], decide, epsilon=1e-6)
        expected.append(stock.forward_head(tokens)[0])
        ratio = ratio + sum((0.7 ** (s + 1) - share) ** 2 for s, share in enumerate(shares)) / 3 / len(images)
        apart += apart_from(teacher, image, tokens, counted, stock.num_prefix_tokens)
    losses = {"ratio": 2 * ratio, "tokens": 0.5 * sum(apart) / len(apart)}
    own = assert_alike(model, logits, terms, stock, parts, torch.stack(expected), losses)
    assert all(own[f"entropatch.{block}.embed.1.weight"].abs().max() > 0 for block in BLOCKS)


def test_rows_that_attend_to_dropped_tokens_become_even() -> None:
    """As in the released code: the ε stands beside exponentials below the largest logit of all, dropped tokens' too."""
    logits = torch.tensor([[0.0, 1.0, 18.0], [-3.0, 2.0, 25.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    counted, epsilon = [1.0, 0.0, 0.0], 1e-6
    got = masked_softmax(logits[None, None], torch.tensor([counted]), epsilon)[0, 0]
    for i, row in enumerate(logits.tolist()):
        terms = [math.exp(x - max(row)) * (1 if i == j else counted[j]) for j, x in enumerate(row)]
        expected = [(term + epsilon / 3) / (math.fsum(terms) + epsilon) for term in terms]
        torch.testing.assert_close(got[i], torch.tensor(expected, dtype=torch.float64))
    assert (got[1] - 1 / 3).abs().max() < 1e-3
    plain = masked_softmax(logits[None, None], torch.tensor([counted]))[0, 0]
    torch.testing.assert_close(plain[0], torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))


def test_a_seed_draws_as_the_released_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw for each pruning block, of (images, n, 2), in the precision of the model."""
    shapes, drawn = [], F.gumbel_softmax

    def noted(logits: torch.Tensor, *args: Any, **given: Any) -> torch.Tensor:
        shapes.append((tuple(logits.shape), logits.dtype))
        return drawn(logits, *args, **given)

    monkeypatch.setattr(F, "gumbel_softmax", noted)
    model = pruned().train()
    state = torch.random.get_rng_state()
    model(photographs(model).double())
    after = torch.random.get_rng_state()
    assert shapes == [((2, 25, 2), torch.float64)] * 3
    torch.random.set_rng_state(state)
    for shape, dtype in shapes:
        torch.empty(shape, dtype=dtype).exponential_()
    assert torch.equal(torch.random.get_rng_state(), after)


def test_noise_is_off_at_test() -> None:
    model = pruned()
    images = photographs(model).double()
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        model.train()
        assert not torch.equal(model(images), model(images))


def test_a_keep_rate_of_one_is_the_stock_model() -> None:
    stock = create("deit")
    images = photographs(stock)
    expected = stock(images)
    model = prune_(stock, method="dynamicvit", keep_rate=1.0)
    assert torch.equal(model(images), expected)
    with entropatch.trace(model) as trace:
        assert torch.equal(model(images), expected)
    assert trace.stages[0].scores is not None
    logits, terms = train_pass(model.train(), images, create("deit"))
    assert torch.equal(logits, expected)  # in training too, where this model draws nothing
    assert terms["ratio"] == terms["tokens"] == 0


def test_restore_and_dense_maps() -> None:
    model: Any = pruned().float()
    images = photographs(model)
    with torch.no_grad(), entropatch.trace(model) as trace:
        tokens = model.forward_features(images)
        dense = entropatch.restore(tokens, trace)
        maps = model.forward_intermediates(images, intermediates_only=True)
    kept = trace.kept[-1]
    flat = dense.flatten(1, 2)
    assert torch.equal(flat.gather(1, kept[..., None].expand(-1, -1, 32)), tokens[:, 1:])
    assert flat.isfinite().all()
    assert [tuple(one.shape[-2:]) for one in maps] == [(5, 5)] * 4


def test_checkpointing_changes_nothing() -> None:
    model = pruned().train()
    images, found = photographs(model).double(), []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        logits, terms = train_pass(model, images, create("deit").double())
        (logits.square().sum() + sum(terms.values())).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="needs a class token"):
        prune_(create("siglip"), method="dynamicvit")
    with pytest.raises(ValueError, match="decides before a block's attention, which reduction 'merge'"):
        PruneConfig(criterion=KeepPredictor(), reduction="merge")
    with pytest.raises(ValueError, match="criterion of all pruning blocks or of none"):
        PruneConfig(criterion=(KeepPredictor(), entropatch.Renyi(2.0)), blocks=(1, 2))
    with pytest.raises(ValueError, match="cannot be a part of Mix"):
        PruneConfig(criterion=entropatch.Mix(KeepPredictor(), entropatch.Renyi(2.0)))
    with pytest.raises(ValueError, match="ratio_weight must be a weight of at least 0"):
        KeepPredictor(ratio_weight=-1)
    with pytest.raises(ValueError, match="has no loss of its own"), method_loss(prune_(create("deit"))):
        pass
    pooling = prune_(create("deit", global_pool="avg"), method="dynamicvit")
    with pytest.raises(UnsupportedModelError, match="reads patches"), method_loss(pooling):
        pass
    model = pruned()
    with method_loss(model) as own:
        with pytest.raises(RuntimeError, match="none ran"):
            own.value()
        model.train()(photographs(model).double())
        with pytest.raises(ValueError, match="asks for a teacher"):
            own.value()


def test_multiply_adds_include_the_predictors() -> None:
    width, model = 32, prune_(create("deit"), method="dynamicvit", keep_rate=0.7)
    counted = count_flops(model, photographs(model)[:1])
    tokens = (25, 17, 12, 8)
    blocks = sum(12 * width**2 * (1 + n) for n in tokens) + 5 * width
    own = sum(n * (width**2 + width**2 // 2 + width**2 // 8 + width // 2) for n in tokens[:3])
    assert counted.by_operator["linear"] == blocks + own


@pytest.mark.slow
def test_an_exported_file_decides_as_the_model(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = pruned().float()
    lines: list[str] = []
    entropatch.export(model, photographs(model, 3), tmp_path / "model.onnx", on_message=lines.append)
    assert any("kept sets: equal for 4 of 4 images" in line for line in lines)
