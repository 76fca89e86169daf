"""Criteria that follow the model from block to block: what they hand on goes where the tokens go."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import reference
import reference_methods
import torch
from attention_case import block_attention
from small_models import create, photographs

import entropatch
from entropatch import ClassAttention, CumulativeImportance, Plan, PruneConfig, Tokens, prune_
from entropatch.criteria import AttEntropy, Criterion, Mix, Renyi, RunningClassAttention
from entropatch.criteria.base import show
from entropatch.surgery.sharing import Shared, sharing

pytestmark = pytest.mark.usefixtures("one_thread")
RUNNING = RunningClassAttention(share=0.3, begin=1)


def twin(criterion: str, blocks: tuple[int, ...]) -> Any:
    """What stays in each block, by states kept by the patches' original numbers."""
    state: dict[int, float] = {}

    def choose(block: int, q: Any, k: Any, v: Any, present: list[int]) -> list[int] | None:
        scale = q.shape[-1] ** -0.5
        if criterion == "running":
            heads = reference.class_attention(q, k, scale, 1)
            rows = [sum(head[place] for head in heads) for place in range(len(present))]
            share = 1.0 if block < 1 else 0.3
        else:
            rows, share = [-e for e in reference_methods.mean_head_entropy(q, k, scale, 1)], 1 / (block + 1)
        for place, patch in enumerate(present):
            state[patch] = (1 - share) * state.get(patch, 0.0) + share * rows[place]
        if block not in blocks:
            return None
        return reference.kept_places([state[patch] for patch in present], reference.kept_count(0.6, len(present)))

    return choose


@pytest.mark.parametrize(("name", "criterion"), [("running", RUNNING), ("entropy", AttEntropy())])
def test_the_state_of_a_patch_follows_it(name: str, criterion: Criterion) -> None:
    model = prune_(create("deit").double(), criterion=criterion, keep_rate=0.6, blocks=(1, 3))
    images = photographs(model).double()
    with torch.no_grad(), entropatch.trace(model) as trace:
        output = model(images)
    stock = entropatch.unprune_(model)
    for i, image in enumerate(images):
        expected, stages = reference_methods.slow_pass(stock, image[None], twin(name, (1, 3)))
        torch.testing.assert_close(output[i], expected[0])
        assert [kept[i].tolist() for kept in trace.kept] == stages


def test_the_first_blocks_count_only_themselves() -> None:
    first = block_attention(prefix=1, block=2)
    row = first.class_attention().sum(1)
    torch.testing.assert_close(RunningClassAttention().importance(first), row)
    later = block_attention(prefix=1, block=4)
    with pytest.raises(ValueError, match="looks at every block from the first, but block 4"):
        RunningClassAttention().importance(later)
    before = torch.rand(2, 9, dtype=torch.float64)
    later.carried = {RunningClassAttention().state_key: before}
    got = RunningClassAttention().follow(later)
    torch.testing.assert_close(got, 0.5 * before + 0.5 * later.class_attention().sum(1))


@pytest.mark.parametrize("setting", [{}, {"reduction": "merge"}, {"reduction": "fuse"}, {"coverage": 2}])
@pytest.mark.parametrize("schedule", [None, CumulativeImportance(0.5)])
def test_followers_go_with_every_reduction_and_with_groups(setting: dict[str, Any], schedule: Any) -> None:
    mixed = Mix(RUNNING, AttEntropy(), 0.6)
    fields = setting | ({} if schedule is None else {"schedule": schedule})
    model = prune_(create("deit"), criterion=mixed, blocks=(1, 2, 3), **fields)
    images = photographs(model, batch=5)
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_an_appended_token_begins_with_the_mean_of_its_tokens() -> None:
    kept, weights = torch.tensor([[0, 2]]), torch.tensor([[[0.0, 0.1, 0.0, 0.3]]])
    state = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    after = Tokens(1, 4, 4, carried={"a": state, "b": state[..., None]}).after(Plan(kept, appended=weights))
    torch.testing.assert_close(after.carried["a"], torch.tensor([[1.0, 3.0, 5.0]]))
    torch.testing.assert_close(after.carried["b"], torch.tensor([[[1.0], [3.0], [5.0]]]))


def test_states_are_followed_only_as_far_as_they_are_asked_for() -> None:
    model = prune_(create("deit"), criterion=(RUNNING, Renyi(2.0)), blocks=(1, 2), keep_rate=0.5)
    pruning = vars(model)["_entropatch"]
    assert [list(pruning.followers_of(block)) for block in range(4)] == [[RUNNING.state_key]] * 2 + [[]] * 2
    prune_(model, keep_rate=1.0)
    images = photographs(model)
    with torch.no_grad():
        assert torch.equal(model(images), entropatch.unprune_(copy.deepcopy(model))(images))


def test_passes_share_no_state_that_another_setting_lacks() -> None:
    """A pass of a criterion that follows must not begin behind blocks that it has not seen."""
    model = prune_(create("deit"), order=2.0, blocks=(1, 2), keep_rate=0.6)
    images = photographs(model)
    settings = [
        PruneConfig(criterion=(ClassAttention(), criterion), blocks=(1, 2), keep_rate=0.6)
        for criterion in (Renyi(2.0), RUNNING, AttEntropy())
    ]
    with torch.no_grad(), sharing(model, Shared()):
        shared = [prune_(model, setting)(images) for setting in settings]
    with torch.no_grad():
        for setting, output in zip(settings, shared, strict=True):
            torch.testing.assert_close(prune_(model, setting)(images), output)


def test_gradients_and_checkpointing() -> None:
    model = prune_(create("deit"), criterion=RUNNING, blocks=(1, 2), keep_rate=0.6).train()
    images = photographs(model)
    found = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)  # pyright: ignore[reportCallIssue]
        model.zero_grad()
        model(images).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_settings_save_and_come_back() -> None:
    for criterion in (RUNNING, AttEntropy(), Mix(RUNNING, AttEntropy())):
        config = PruneConfig(criterion=criterion)
        assert PruneConfig.from_json(config.to_json()) == config
    assert RunningClassAttention().label == "running class attention"
    for share, error in ((0, ValueError), ("1", TypeError), (1.5, ValueError)):
        with pytest.raises(error, match="share must"):
            RunningClassAttention(share)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="begin must be"):
        RunningClassAttention(begin=-1)


@pytest.mark.parametrize("criterion", [RUNNING, AttEntropy()])
def test_who_looks_at_a_block_sees_the_state_behind_it(criterion: Criterion) -> None:
    """In a model that it prunes as in one that keeps all; behind the last block it scores nobody has one."""
    model = prune_(create("deit"), criterion=criterion, blocks=(1, 2), keep_rate=0.6)
    images = photographs(model)
    seen: dict[int, Any] = {}

    def look(attention: Any, tokens: Tokens) -> None:
        seen[attention.block] = criterion.importance(attention) if attention.block < 3 else dict(attention.carried)

    with torch.no_grad(), entropatch.watch(model, None, look), entropatch.trace(model) as trace:
        model(images)
    for block, scores in zip((1, 2), trace.scores, strict=True):
        assert scores is not None
        assert torch.equal(seen[block], scores)
    assert seen[3] == {}
    carried: dict[str, Any] = {}

    def follow(attention: Any, tokens: Tokens) -> None:
        nonlocal carried
        carried = show([criterion], attention, carried)
        seen[attention.block] = criterion.importance(attention)

    prune_(model, keep_rate=1.0)
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
    with torch.no_grad(), entropatch.watch(entropatch.unprune_(model), None, follow):
        model(images)
    for block, scores in zip((1, 2), trace.scores, strict=True):
        torch.testing.assert_close(seen[block], scores)
