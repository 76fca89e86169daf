"""Plans carried out, and what the tokens stand for afterwards, against loops over single tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from entropatch.surgery.streams import join
from entropatch.tokens import Plan, Tokens, gather_tokens, removed_indices


def drawn(n: int, k: int, extra: int, merged: int, batch: int = 2, seed: int = 0) -> Plan:
    """A plan at random: k of n stay in any order, `merged` of the others become part of them, `extra` are appended."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    order = uniform(batch, n).argsort(1)
    kept, sources = order[:, :k], order[:, k : k + merged]
    appended = uniform(batch, extra, n) if extra else None
    if not merged:
        return Plan(kept, appended=appended)
    targets = torch.randint(0, k, (batch, merged), generator=generator)
    return Plan(kept, sources, targets, uniform(batch, k), uniform(batch, merged), appended)


plans = st.tuples(st.integers(1, 8), st.integers(0, 4), st.integers(0, 2), st.integers(0, 9)).map(
    lambda case: drawn(case[0] + case[1] + 2, case[0], case[2], case[1], seed=case[3])
)


@given(plans)
def test_a_plan_carried_out_is_its_sum_token_by_token(plan: Plan) -> None:
    n = int(max(plan.kept.max(), -1 if plan.sources is None else plan.sources.max())) + 2
    n = max(n, 0 if plan.appended is None else plan.appended.shape[2])
    x = torch.randn(2, n, 3, dtype=torch.float64)
    if plan.appended is not None:
        x = x[:, : plan.appended.shape[2]]
    got = plan.apply(x)
    for b in range(2):
        rows = []
        for j, i in enumerate(plan.kept[b].tolist()):
            weight = 1.0 if plan.weights is None else plan.weights[b, j].item()
            row = weight * x[b, i]
            if plan.sources is not None and plan.targets is not None and plan.shares is not None:
                for source, target, share in zip(plan.sources[b], plan.targets[b], plan.shares[b], strict=True):
                    if target == j:
                        row = row + share * x[b, source]
            rows.append(row)
        rows += [
            sum((weights[i] * x[b, i] for i in range(x.shape[1])), torch.zeros(3, dtype=torch.float64))
            for weights in ([] if plan.appended is None else plan.appended[b])
        ]
        torch.testing.assert_close(got[b], torch.stack(rows))
    assert plan.n == got.shape[1]


def follow(tokens: list[set[int]], plan: Plan, b: int) -> list[set[int]]:
    """Which patches each token stands for after a plan; appended ones stand for none."""
    after = [set(tokens[i]) for i in plan.kept[b].tolist()]
    if plan.sources is not None and plan.targets is not None:
        for source, target in zip(plan.sources[b].tolist(), plan.targets[b].tolist(), strict=True):
            after[target] |= tokens[source]
    return after + [set()] * plan.extra


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), min_size=1, max_size=4), st.integers(0, 9)
)
def test_what_tokens_stand_for_follows_the_plans(steps: list[tuple[int, int, bool]], seed: int) -> None:
    """Through several plans: places, positions and sizes, by sets of patches."""
    total, batch = 16, 2
    tokens = Tokens(1, total, total, followed=True)
    sets = [[{i} for i in range(total)] for _ in range(batch)]
    names = [list(range(total)) for _ in range(batch)]
    sizes = [[1] * total for _ in range(batch)]
    for step, (gone, merged, fused) in enumerate(steps):
        if tokens.n - gone - merged < 1:
            break
        plan = drawn(tokens.n, tokens.n - gone - merged, int(fused), merged, batch, seed + step)
        for b in range(batch):
            kept = plan.kept[b].tolist()
            names[b] = [names[b][i] for i in kept] + [-1] * plan.extra
            own = [sizes[b][i] for i in kept]
            if plan.sources is not None and plan.targets is not None:
                for source, target in zip(plan.sources[b].tolist(), plan.targets[b].tolist(), strict=True):
                    own[target] += sizes[b][source]
            sizes[b] = own + [1] * plan.extra
            sets[b] = follow(sets[b], plan, b)
        tokens = tokens.after(plan)
    like = torch.zeros(batch, 1)
    assert tokens.original_positions(like).tolist() == names
    for b, row in enumerate(tokens.original_places(like).tolist()):
        for patch, place in enumerate(row):
            holders = [i for i, held in enumerate(sets[b]) if patch in held]
            assert [place] == (holders or [-1])
    if tokens.sizes is not None:
        assert tokens.sizes.tolist() == sizes


def test_places_are_kept_up_to_date_only_for_those_who_ask() -> None:
    plan = drawn(9, 4, 0, 0)
    assert Tokens(1, 9, 9).after(plan).places is None
    assert Tokens(1, 9, 9, followed=True).after(plan).places is not None


def test_what_a_method_carries_goes_with_the_kept_tokens() -> None:
    plan, values = drawn(9, 4, 0, 0), torch.randn(2, 9, 5)
    after = Tokens(1, 9, 9, carried={"scores": values}).after(plan)
    assert torch.equal(after.carried["scores"], gather_tokens(values, plan.kept))


def test_the_key_bias_is_the_logarithm_of_sizes() -> None:
    sizes = torch.tensor([[1.0, 3.0, 2.0]])
    bias = Tokens(2, 3, 6, sizes=sizes).key_bias()
    assert bias is not None
    torch.testing.assert_close(bias, torch.tensor([[0.0, 0.0, 0.0, 3.0, 2.0]]).clamp_min(1).log())
    assert Tokens(2, 3, 6).key_bias() is None


def test_groups_are_joined_with_what_each_leaves_unsaid() -> None:
    """One group has lost patches and holds a merged token, the other stands as it entered."""
    merged = Tokens(1, 5, 5, followed=True).after(drawn(5, 3, 0, 1, batch=2))
    whole = Tokens(1, 3, 5, followed=True, places=torch.tensor([[0, 1, 2, -1, -1]]))
    x = torch.zeros(2, 4, 1)
    both = join([merged, whole], [x, x[:1]])
    assert both.sizes is not None
    assert both.sizes[2].tolist() == [1, 1, 1]
    assert both.sizes[:2].sum(1).tolist() == [4, 4]
    assert both.original_positions(x).tolist()[2] == [0, 1, 2]
    assert both.original_places(x).tolist()[2] == [0, 1, 2, -1, -1]
    assert both.take(torch.tensor([2, 0])).original_places(x).tolist()[0] == [0, 1, 2, -1, -1]


@pytest.mark.parametrize("k", [0, 3, 7])
def test_removed_indices_and_targets_say_the_same(k: int) -> None:
    kept = torch.stack([torch.randperm(7)[:k] for _ in range(3)])
    target = Plan(kept).target(7)
    for b in range(3):
        gone = [i for i, place in enumerate(target[b].tolist()) if place < 0]
        assert gone == removed_indices(kept, 7)[b].tolist()
        assert [target[b, i].item() for i in kept[b].tolist()] == list(range(k))
