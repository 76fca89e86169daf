"""`watch`: a look at the attention of blocks, that changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import reference
import timm
import torch
from small_models import create, photographs

import entropatch
from entropatch import BlockAttention, Tokens
from entropatch.schedule import CumulativeImportance

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["deit", "dinov3", "siglip"])
def test_a_stock_model_is_seen_and_stays_as_it_is(name: str) -> None:
    model = create(name)
    images, kind = photographs(model), type(model)
    seen: dict[int, BlockAttention] = {}
    with torch.no_grad():
        expected = model(images)
        with entropatch.watch(model, None, lambda a, tokens: seen.update({a.block: a})) as watching:
            assert torch.equal(model(images), expected)
        assert watching.grid == (5, 5)
        assert type(model) is kind
        assert torch.equal(model(images), expected)
    assert sorted(seen) == [0, 1, 2, 3]
    first = seen[0]
    q, k = (x[0].numpy() for x in (first.q, first.k))
    wanted = reference.patch_entropies(q, k, 2.0, q.shape[-1] ** -0.5, first.num_prefix_tokens)
    torch.testing.assert_close(first.entropy(2.0)[0], torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_a_pruned_model_is_seen_as_it_prunes() -> None:
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    images, seen = photographs(model), []

    def look(attention: BlockAttention, tokens: Tokens) -> None:
        seen.append((attention.block, attention.num_patches, tokens.n))

    with torch.no_grad():
        expected = model(images)
        with entropatch.watch(model, (0, 2, 3), look), entropatch.trace(model) as trace:
            assert torch.equal(model(images), expected)
    assert seen == [(0, 25, 25), (2, 13, 13), (3, 7, 7)]
    assert trace.counts == [25, 13, 7, 4]
    assert entropatch.pruning_config(model).keep_rate == 0.5
    model(images)
    assert len(seen) == 3  # closed


def test_tokens_say_what_is_seen() -> None:
    model, positions = entropatch.prune_(create("deit"), keep_rate=0.5), {}
    with (
        torch.no_grad(),
        entropatch.trace(model) as trace,
        entropatch.watch(model, None, lambda a, tokens: positions.update({a.block: tokens.original_positions(a.q)})),
    ):
        model(photographs(model))
    assert torch.equal(positions[2], trace.stages[0].kept)
    assert torch.equal(positions[3], trace.stages[1].kept)


def test_gradients_reach_the_weights_through_what_was_seen() -> None:
    """As an entropy regulariser wants it; in every block, also in those that keep all."""
    model: Any = create("deit").train()
    terms: list[Any] = []
    with entropatch.watch(model, (1, 3), lambda a, tokens: terms.append(a.entropy(1.0).mean()), gradients=True):
        logits = model(photographs(model))
        loss = logits.square().mean() + sum(terms)
        loss.backward()
    assert len(terms) == 2
    by_entropy = model.blocks[3].attn.qkv.weight.grad.clone()
    model.zero_grad()
    model(photographs(model)).square().mean().backward()
    assert not torch.allclose(by_entropy, model.blocks[3].attn.qkv.weight.grad)


def test_without_gradients_what_was_seen_carries_none() -> None:
    model, terms = create("deit").train(), []
    with entropatch.watch(model, None, lambda a, tokens: terms.append(a.entropy(1.0))):
        model(photographs(model))
    assert all(not term.requires_grad for term in terms)


def test_gradients_of_a_watched_model_are_those_of_the_stock_one() -> None:
    passes = []
    for watched in (False, True):
        model = create("deit").train()
        with entropatch.watch(model, None, lambda a, tokens: a.entropy(2.0)) if watched else torch.enable_grad():
            model(photographs(model)).square().sum().backward()
        passes.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))


def test_a_look_that_fails_leaves_the_model_as_it_was() -> None:
    model = create("deit")
    kind = type(model)
    with pytest.raises(ZeroDivisionError), entropatch.watch(model, None, lambda a, tokens: 1 / 0):
        model(photographs(model))
    assert type(model) is kind


def test_what_cannot_be_watched() -> None:
    with (
        pytest.raises(ValueError, match=r"blocks must lie in 0 … 3, but got \(4,\)"),
        entropatch.watch(create("deit"), (4,), print),
    ):
        pass
    with pytest.raises(TypeError, match=r"look must be a function .* but got None"):
        entropatch.watch(create("deit"), None, None).__enter__()  # type: ignore[arg-type]
    with (
        pytest.raises(entropatch.UnsupportedModelError, match="Linear is not supported"),
        entropatch.watch(torch.nn.Linear(2, 2), None, print),
    ):
        pass


def test_a_model_run_again_inside_its_own_pass_leaves_the_outer_record() -> None:
    """A hook or a criterion may do so; the trace holds the pass it was opened for."""
    model: Any = entropatch.prune_(create("deit"), keep_rate=0.5)
    images, inner = photographs(model, batch=3), []

    def again(module: Any, args: Any) -> None:
        if not inner:
            inner.append(True)
            model(images[:1])

    model.blocks[2].register_forward_pre_hook(again)
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
    assert [kept.shape[0] for kept in trace.kept] == [3, 3, 3]


def test_nothing_is_scored_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(entropatch.Renyi, "importance", lambda self, attention: asked.append(attention.block))
    model = create("deit")
    with torch.no_grad(), entropatch.watch(model, None, lambda a, tokens: None):
        model(photographs(model))
    assert asked == []


def test_a_model_pruned_while_it_is_watched_stays_pruned() -> None:
    model, seen = create("deit"), []
    with entropatch.watch(model, None, lambda a, tokens: seen.append(tokens.n)):
        entropatch.prune_(model, keep_rate=0.5)
        with torch.no_grad():
            model(photographs(model))
    assert seen == [25, 25, 13, 7]
    assert entropatch.pruning_config(model).keep_rate == 0.5


def test_watches_that_close_in_another_order() -> None:
    model, first, second = create("deit"), [], []
    kind = type(model)
    outer = entropatch.watch(model, (0,), lambda a, tokens: first.append(a.block))
    inner = entropatch.watch(model, (1,), lambda a, tokens: second.append(a.block))
    with torch.no_grad():
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        model(photographs(model))
        inner.__exit__(None, None, None)
    assert (first, second) == ([], [1])
    assert type(model) is kind


def test_threads_that_watch_one_stock_model() -> None:
    model, kind, images = create("deit"), None, photographs(create("deit"))
    kind = type(model)
    started, seen = threading.Barrier(4), [[] for _ in range(4)]

    def work(number: int) -> None:
        with torch.no_grad(), entropatch.watch(model, None, lambda a, tokens: seen[number].append(a.block)):
            started.wait()
            for _ in range(number + 1):  # they close one after another
                model(images)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[0, 1, 2, 3] * (number + 1) for number in range(4)]
    assert type(model) is kind


@pytest.fixture
def reentrant() -> Iterator[None]:
    timm.layers.set_reentrant_ckpt(True)
    yield
    timm.layers.set_reentrant_ckpt(False)


def checkpointed_pass(**watching: Any) -> list[int]:
    model, seen = entropatch.prune_(create("deit").train(), keep_rate=0.5), []
    model.set_grad_checkpointing()  # pyright: ignore[reportCallIssue]
    with entropatch.watch(model, None, lambda a, tokens: seen.append(a.block), **watching):
        model(photographs(model).requires_grad_()).square().sum().backward()
    return seen


def test_gradient_checkpointing_looks_once() -> None:
    assert checkpointed_pass() == [0, 1, 2, 3]


@pytest.mark.usefixtures("reentrant")
def test_reentrant_checkpointing_looks_once_and_refuses_gradients() -> None:
    assert checkpointed_pass() == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="sees no gradients under reentrant gradient checkpointing"):
        checkpointed_pass(gradients=True)


@pytest.mark.parametrize("place", ["patch_embed", "blocks.2", "norm", "fc_norm", "head_drop", "head"])
@pytest.mark.parametrize("setting", [{"keep_rate": 0.5}, {"schedule": CumulativeImportance(0.5)}])
def test_a_hook_anywhere_that_runs_the_model_on_another_size_leaves_the_outer_record(place: str, setting: Any) -> None:
    model: Any = create("deit", dynamic_img_size=True).eval()
    entropatch.prune_(model, **setting)
    images, inner, grids = photographs(model, batch=3), [], []
    small = photographs(model, batch=1, size=(48, 48))
    with torch.no_grad(), entropatch.trace(model) as expected:
        tokens = model.forward_features(images)

    def again(module: Any, args: Any, output: Any) -> None:
        if not inner:
            inner.append(True)
            with entropatch.trace(model):
                model(small)
            model(small)

    model.get_submodule(place).register_forward_hook(again)
    with (
        torch.no_grad(),
        entropatch.trace(model) as trace,
        entropatch.watch(model, None, lambda attention, _: grids.append((attention.q.shape[0], watch.grid))) as watch,
    ):
        model(images)
    assert inner
    assert trace.grid == expected.grid != (3, 3)
    assert all(torch.equal(a, b) for a, b in zip(trace.kept, expected.kept, strict=True))
    if "keep_rate" in setting:
        assert torch.equal(entropatch.restore(tokens, trace), entropatch.restore(tokens, expected))
        assert {grid for batch, grid in grids if batch == 3} == {expected.grid}
