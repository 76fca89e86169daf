"""From scores to fewer tokens, against the loops of `reference`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from entropatch import BlockAttention
from entropatch.reductions import Drop, Fuse, Reduction
from entropatch.schedule import exact_rate, kept_count
from entropatch.tokens import Plan, Tokens, gather_tokens, removed_indices, scatter_tokens, select, split


def block_attention(
    batch: int = 3, patches: int = 8, prefix: int = 2, dtype: torch.dtype = torch.float64
) -> BlockAttention:
    q, k, v = torch.randn(3, batch, 3, prefix + patches, 4, dtype=dtype)
    return BlockAttention(q, k, v, scale=0.7, num_prefix_tokens=prefix, has_class_token=True)


def some_places(batch: int = 3, patches: int = 8, k: int = 5) -> Tensor:
    return torch.rand(batch, patches).argsort(1)[:, :k].sort(1).values


def chosen(reduction: Reduction, kept: Tensor, attention: BlockAttention) -> Plan:
    """The plan for scores that single out `kept`."""
    n = attention.num_patches
    scores = torch.zeros(kept.shape[0], n).scatter(1, kept, 1.0)
    return reduction.plan(attention, Tokens(attention.num_prefix_tokens, n, n), scores, kept.shape[1])


def reduced(reduction: Reduction, x: Tensor, kept: Tensor, attention: BlockAttention) -> Tensor:
    """All tokens after the reduction, as a block does it."""
    prefix = attention.num_prefix_tokens
    return torch.cat((x[:, :prefix], chosen(reduction, kept, attention).apply(x[:, prefix:])), 1)


def drop(x: Tensor, kept: Tensor, attention: BlockAttention) -> Tensor:
    return reduced(Drop(), x, kept, attention)


def fuse(x: Tensor, kept: Tensor, attention: BlockAttention) -> Tensor:
    return reduced(Fuse(), x, kept, attention)


# --- select ------------------------------------------------------------------------------------------------------


@st.composite
def scores_and_count(draw: st.DrawFn) -> tuple[list[list[float]], int]:
    """A batch of scores with many ties, or with none, and how many to keep."""
    n = draw(st.integers(1, 12))
    score = draw(
        st.sampled_from(
            [st.integers(-1, 1).map(float), st.floats(-2, 2, width=32), st.sampled_from([-math.inf, 0.0, math.inf])]
        )
    )
    rows = draw(st.lists(st.lists(score, min_size=n, max_size=n), min_size=1, max_size=3))
    return rows, draw(st.integers(0, n))


@given(scores_and_count(), st.sampled_from([torch.float32, torch.float64]))
def test_select_keeps_the_highest_in_raster_order(case: tuple[list[list[float]], int], dtype: torch.dtype) -> None:
    rows, k = case
    assert select(torch.tensor(rows, dtype=dtype), k).tolist() == [reference.kept_places(row, k) for row in rows]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ties_go_to_the_lower_place(dtype: torch.dtype) -> None:
    """On many patches too, where an unstable sort or topk would mix equals."""
    assert select(torch.zeros(2, 5000, dtype=dtype), 7).tolist() == [list(range(7))] * 2
    levels = torch.randint(0, 4, (2, 3000)).to(dtype)
    expected = [reference.kept_places(row, 40) for row in levels.tolist()]
    assert select(levels, 40).tolist() == expected


def test_select_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.5], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert select(scores, 3).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert select(scores, 5).tolist() == [[0, 1, 2, 3, 4]] * 2


# --- places ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_removed_indices_are_the_others_in_raster_order(case: tuple[int, set[int]]) -> None:
    n, kept = case
    gone = removed_indices(torch.tensor([sorted(kept)], dtype=torch.int64).reshape(1, -1), n)
    assert gone.tolist() == [[place for place in range(n) if place not in kept]]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=9).flatmap(
        lambda row: st.tuples(st.just(row), st.integers(0, len(row)))
    )
)
def test_split_is_what_select_keeps_and_the_others(case: tuple[list[int], int]) -> None:
    row, k = case
    scores = torch.tensor([row, row[::-1]], dtype=torch.float32)
    kept, others = split(scores, k)
    assert torch.equal(kept, select(scores, k))
    assert torch.equal(others, removed_indices(kept, len(row)))


@pytest.mark.parametrize("index", [-1, 8])
def test_an_index_out_of_range_is_refused_also_where_the_next_image_has_such_a_row(index: int) -> None:
    with pytest.raises(RuntimeError, match=f"index {index} is out of bounds"):
        gather_tokens(torch.randn(3, 8, 2), torch.tensor([[0, index], [1, 2], [3, 4]]))


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_gather_and_scatter_undo_each_other(shape: tuple[int, ...]) -> None:
    tokens, kept = torch.randn(3, 8, *shape), some_places()
    gone = removed_indices(kept, 8)
    taken = gather_tokens(tokens, kept)
    for b in range(3):
        for i in range(5):
            assert torch.equal(taken[b, i], tokens[b, kept[b, i]])
    canvas = torch.full_like(tokens, math.nan)
    once = scatter_tokens(canvas, taken, kept)
    assert canvas.isnan().all()  # out of place
    assert torch.equal(scatter_tokens(once, gather_tokens(tokens, gone), gone), tokens)
    assert torch.equal(gather_tokens(once, gone).isnan(), torch.ones(3, 3, *shape, dtype=torch.bool))


def test_scatter_takes_the_type_of_the_canvas() -> None:
    canvas = scatter_tokens(torch.zeros(3, 8, 2), torch.ones(3, 5, 2, dtype=torch.float16), some_places())
    assert canvas.dtype == torch.float32
    assert canvas.sum() == 30


# --- drop and fuse -----------------------------------------------------------------------------------------------


def numpy_images(x: Tensor, kept: Tensor, attention: BlockAttention) -> zip:
    return zip(x.numpy(), kept.tolist(), attention.q.numpy(), attention.k.numpy(), strict=True)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("k", [1, 5, 8])
def test_drop_keeps_prefix_and_chosen_patches(prefix: int, k: int) -> None:
    attention, kept = block_attention(prefix=prefix), some_places(k=k)
    x = torch.randn(3, prefix + 8, 6)
    expected = [reference.dropped(image, places, prefix) for image, places, *_ in numpy_images(x, kept, attention)]
    assert torch.equal(drop(x, kept, attention), torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 5, 7])
def test_fuse_appends_the_weighted_sum_of_the_others(prefix: int, k: int) -> None:
    attention, kept = block_attention(prefix=prefix), some_places(k=k)
    x = torch.randn(3, prefix + 8, 6, dtype=torch.float64)
    expected = [
        reference.fused(image, reference.evit_importance(qi, ki, 0.7, prefix), places, prefix)
        for image, places, qi, ki in numpy_images(x, kept, attention)
    ]
    got = fuse(x, kept, attention)
    assert got.shape == (3, prefix + k + 1, 6)
    torch.testing.assert_close(got, torch.from_numpy(np.stack(expected)))


def test_fused_weights_are_not_renormalised() -> None:
    """Of identical tokens the fused one is shorter, by the class attention that the dropped ones hold together."""
    attention, kept = block_attention(), some_places()
    fused = fuse(torch.ones(3, 10, 6, dtype=torch.float64), kept, attention)[:, -1]
    weights = attention.class_attention().mean(1)
    share = weights.sum(1) - gather_tokens(weights, kept).sum(1)
    torch.testing.assert_close(fused, share[:, None].expand(3, 6))
    assert (share < 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", Reduction.kinds())
def test_tokens_keep_their_type(name: str, dtype: torch.dtype) -> None:
    attention, kept = block_attention(dtype=dtype), some_places()
    x = torch.randn(3, 10, 6).to(dtype)
    reduction = Reduction.from_dict({"name": name})
    got = reduced(reduction, x, kept, attention)
    assert got.dtype == dtype
    exact = reduced(reduction, x.double(), kept, attention)
    torch.testing.assert_close(got.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_fuse_needs_a_class_token() -> None:
    q = torch.randn(1, 1, 8, 4)
    with pytest.raises(ValueError, match="needs a class token"):
        fuse(torch.randn(1, 8, 6), torch.tensor([[0, 1]]), BlockAttention(q, q, q))


# --- gradients ---------------------------------------------------------------------------------------------------


def test_drop_passes_gradients_to_what_stays_and_none_to_what_goes() -> None:
    attention, kept = block_attention(), some_places()
    x = torch.randn(3, 10, 6, requires_grad=True)
    drop(x, kept, attention).sum().backward()
    expected = torch.zeros(3, 10, 6)
    expected[:, :2] = 1
    for image, places in zip(expected, kept.tolist(), strict=True):
        image[[2 + place for place in places]] = 1
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


def test_fuse_passes_gradients_to_all_tokens_and_to_the_attention() -> None:
    attention, kept = block_attention(), some_places()
    attention.q.requires_grad_()
    attention.k.requires_grad_()
    x = torch.randn(3, 10, 6, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        weights = attention.class_attention().mean(1)  # scored first, as a stage does
    fuse(x, kept, attention).sum().backward()
    expected = torch.ones(3, 10, 6, dtype=torch.float64)
    expected[:, 2:] = weights.scatter(1, kept, 1.0)[..., None]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected)
    for part in (attention.q, attention.k):
        assert part.grad is not None
        assert part.grad[:, :, 0].abs().sum() > 0


def test_gradients_of_fuse_are_those_of_the_function() -> None:
    kept = some_places()
    x = torch.randn(3, 10, 2, dtype=torch.float64, requires_grad=True)
    q, k = (torch.randn(3, 2, 10, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def fused(x: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return fuse(x, kept, BlockAttention(q, k, k, num_prefix_tokens=2, has_class_token=True))

    assert torch.autograd.gradcheck(fused, (x, q, k))


# --- several stages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusing", [False, True])
@pytest.mark.parametrize("rates", [(0.7, 0.7, 0.7), (0.5, 1.0, 0.3), (1.0, 0.6, 0.6)])
def test_original_patches_after_each_stage(rates: tuple[float, ...], fusing: bool) -> None:
    """Places among the survivors, chained, name the original patches that the twin keeps by other means."""
    n, batch = 30, 4
    table = torch.randn(len(rates), batch, n + 1).round(decimals=1)  # with ties; the last column is a fused token's
    numbers = torch.arange(n).expand(batch, n)
    for stage, rate in enumerate(rates):
        present = numbers.shape[1]
        kept = select(table[stage].gather(1, numbers % (n + 1)), kept_count(exact_rate(rate), present))
        survivors = gather_tokens(numbers, kept)
        for image in range(batch):
            expected = reference.kept_originals(
                lambda at, numbers, image=image: [table[at, image, number].item() for number in numbers],
                n,
                rates,
                fuse=fusing,
            )
            assert survivors[image].tolist() == expected[stage]
        fused = fusing and kept.shape[1] < present
        numbers = torch.cat((survivors, torch.full((batch, 1), reference.FUSED)), 1) if fused else survivors


def test_evit_counts_an_earlier_fused_token() -> None:
    """196 → 138 + 1 → ceil(0.7 · 139) = 98, + 1 → ceil(0.7 · 99) = 70: as EViT's code counts."""
    stages = reference.kept_originals(lambda stage, present: [0.0] * len(present), 196, [0.7] * 3, fuse=True)
    assert [len(stage) for stage in stages] == [138, 98, 70]
    n, counts = 196, []
    for _ in range(3):
        k = kept_count(exact_rate(0.7), n)
        counts.append(k)
        n = k + 1
    assert counts == [138, 98, 70]
