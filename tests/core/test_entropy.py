"""The laws of Rényi entropy, and agreement with the decimal twin at every order."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from entropatch import renyi_entropy
from entropatch.entropy import NEAR_ONE, entropy_from_logits, entropy_gradient

ORDERS = [1e-300, 1e-3, 0.5, 0.74, 0.76, 0.999, 1.0, 1.001, 1.24, 1.26, 2.0, 3.0, 64.0, 1e300, math.inf]

orders = st.one_of(
    st.sampled_from(ORDERS),
    st.floats(1e-3, 40),
    st.floats(-300, 300).map(lambda exponent: 10.0**exponent),
    st.tuples(st.sampled_from([-1, 1]), st.floats(-15.6, -0.4)).map(lambda pair: 1 + pair[0] * 10.0 ** pair[1]),
)


@st.composite
def distributions(draw: st.DrawFn, max_size: int = 9, zeros: bool = True, smallest: float = -40) -> Tensor:
    """A float64 probability vector: even, lopsided over many powers of ten, or with zeros."""
    weight = st.one_of(st.floats(0.1, 1), st.floats(smallest, 0).map(lambda exponent: 10.0**exponent))
    if zeros:
        weight = st.one_of(weight, st.just(0.0))
    weights = draw(st.lists(weight, min_size=1, max_size=max_size).filter(any))
    return torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)


def close(got: Tensor | float, expected: float, tolerance: float) -> bool:
    return abs(float(got) - expected) <= tolerance * (1 + abs(expected))


# --- agreement with the definition -------------------------------------------------------------------------------


@given(distributions(), orders)
def test_equals_the_definition(probs: Tensor, order: float) -> None:
    assert close(renyi_entropy(probs, order), reference.renyi_entropy(probs.tolist(), order), 1e-12)


@given(distributions(), orders)
def test_float32_equals_the_definition(probs: Tensor, order: float) -> None:
    single = probs.float()
    assert close(renyi_entropy(single, order), reference.renyi_entropy(single.tolist(), order), 3e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(probs=distributions(smallest=-4), order=orders)
def test_half_inputs_lose_nothing_beyond_their_own_rounding(dtype: torch.dtype, probs: Tensor, order: float) -> None:
    """Rounded probabilities no longer sum to one; the entropy is that of the same numbers over their sum."""
    half = probs.to(dtype)
    got = renyi_entropy(half, order)
    assert got.dtype == torch.float32
    assert close(got, reference.renyi_entropy(half.tolist(), order), 3e-6)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9), orders)
def test_from_logits_equals_the_definition(logits: list[float], order: float) -> None:
    got = entropy_from_logits(torch.tensor(logits, dtype=torch.float64), order)
    assert close(got, reference.entropy_of_logits(logits, order), 1e-11)


@given(st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=9), orders)
def test_from_float32_logits_of_ten_thousand(logits: list[int], order: float) -> None:
    got = entropy_from_logits(torch.tensor(logits, dtype=torch.float32), order)
    assert close(got, reference.entropy_of_logits(logits, order), 5e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_the_twin_is_right_where_the_answer_is_known(order: float) -> None:
    assert reference.renyi_entropy([0.25] * 4, order) == pytest.approx(math.log(4), abs=1e-14)
    assert reference.renyi_entropy([1.0, 0.0], order) == 0
    assert reference.entropy_of_logits([7.0, 7.0], order) == pytest.approx(math.log(2), abs=1e-14)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (0.5, 2 * math.log(math.sqrt(0.5) + 2 * math.sqrt(0.25))),
        (1.0, 1.5 * math.log(2)),
        (2.0, -math.log(0.375)),
        (3.0, -math.log(0.5**3 + 2 * 0.25**3) / 2),
        (math.inf, math.log(2)),
    ],
)
def test_values_worked_out_by_hand(order: float, expected: float) -> None:
    """p = (½, ¼, ¼), in nats."""
    assert reference.renyi_entropy([0.5, 0.25, 0.25], order) == pytest.approx(expected, abs=1e-15)
    assert renyi_entropy(torch.tensor([0.5, 0.25, 0.25]), order).item() == pytest.approx(expected, abs=1e-6)


# --- laws --------------------------------------------------------------------------------------------------------


@given(distributions(), orders)
def test_lies_between_zero_and_log_n(probs: Tensor, order: float) -> None:
    entropy = renyi_entropy(probs, order).item()
    assert 0 <= entropy <= math.log(len(probs)) + 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 3, 11, 196])
@pytest.mark.parametrize("order", ORDERS)
def test_reaches_its_bounds(dtype: torch.dtype, n: int, order: float) -> None:
    """Even probabilities give log n, a single certain outcome gives 0, for every order and input type."""
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    even = renyi_entropy(torch.full((n,), 1 / n, dtype=dtype), order).item()
    assert even == pytest.approx(math.log(n), abs=tolerance)
    certain = torch.zeros(n, dtype=dtype)
    certain[n // 2] = 1
    assert renyi_entropy(certain, order).item() == 0


@given(distributions(), orders, orders)
def test_never_increases_with_order(probs: Tensor, order: float, other: float) -> None:
    low, high = sorted((order, other))
    assert renyi_entropy(probs, high).item() <= renyi_entropy(probs, low).item() + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_never_increases_with_order_across_the_formulas(dtype: torch.dtype) -> None:
    """The formulas used near order 1, away from it and at ∞ join without a step, for rounded inputs too."""
    probs = torch.rand(64, 11).softmax(-1).to(dtype)
    steps = [0.5, 1 - NEAR_ONE - 1e-6, 1 - NEAR_ONE + 1e-6, 1.0, 1 + NEAR_ONE - 1e-6, 1 + NEAR_ONE + 1e-6, 2, math.inf]
    entropies = torch.stack([renyi_entropy(probs, order) for order in steps])
    assert (entropies.diff(dim=0) <= 2e-6).all()


@given(distributions(), orders, st.randoms())
def test_does_not_depend_on_the_order_of_the_outcomes(probs: Tensor, order: float, random) -> None:
    places = list(range(len(probs)))
    random.shuffle(places)
    assert close(renyi_entropy(probs[places], order), renyi_entropy(probs, order).item(), 1e-12)


@given(distributions(max_size=6), distributions(max_size=6), orders)
def test_adds_up_over_independent_parts(probs: Tensor, others: Tensor, order: float) -> None:
    together = renyi_entropy(torch.outer(probs, others).flatten(), order).item()
    assert close(together, (renyi_entropy(probs, order) + renyi_entropy(others, order)).item(), 1e-12)


@given(distributions(), orders)
def test_impossible_outcomes_do_not_count(probs: Tensor, order: float) -> None:
    padded = torch.cat((probs, torch.zeros(3, dtype=torch.float64)))
    assert close(renyi_entropy(padded, order), renyi_entropy(probs, order).item(), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4, 1e-6, 1e-9, 1e-12, 2.3e-16])
@pytest.mark.parametrize("side", [-1, 1])
def test_is_continuous_through_one(dtype: torch.dtype, distance: float, side: int) -> None:
    """Near 1, H_α = H_1 - (α - 1)/2 · Var(log p) + O((α - 1)²), to rounding: nothing cancels."""
    probs = torch.randn(20, 196, dtype=dtype).mul(3).softmax(-1)
    order = 1 + side * distance
    got = renyi_entropy(probs, order)
    shannon = renyi_entropy(probs, 1.0)
    variance = (probs * (probs.log() + shannon[:, None]) ** 2).sum(-1)
    rounding = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got, shannon - (order - 1) / 2 * variance, rtol=0, atol=rounding + 30 * distance**2)
    expected = [reference.renyi_entropy(row.tolist(), order) for row in probs[:4]]
    torch.testing.assert_close(got[:4], torch.tensor(expected, dtype=dtype), rtol=0, atol=rounding)


@given(distributions(), st.floats(1.01, 1e9))
def test_large_orders_approach_the_min_entropy(probs: Tensor, order: float) -> None:
    """H_∞ ≤ H_α ≤ α/(α - 1) · H_∞."""
    smallest = -math.log(probs.max().item())
    assert renyi_entropy(probs, math.inf).item() == pytest.approx(smallest, abs=1e-14)
    entropy = renyi_entropy(probs, order).item()
    assert smallest - 1e-12 <= entropy <= order / (order - 1) * smallest + 1e-12


@given(distributions(smallest=-3))
def test_small_orders_approach_the_count_of_possible_outcomes(probs: Tensor) -> None:
    possible = int((probs > 0).sum())
    assert renyi_entropy(probs, 1e-6).item() == pytest.approx(math.log(possible), abs=1e-5)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.floats(-1e3, 1e3), orders)
def test_shifted_logits_mean_the_same(logits: list[float], shift: float, order: float) -> None:
    x = torch.tensor(logits, dtype=torch.float64)
    assert close(entropy_from_logits(x + shift, order), entropy_from_logits(x, order).item(), 1e-10)


@pytest.mark.parametrize("order", [0.3, 0.9, 1.0, 1 + 1e-9, 1.2, 2.0, 10.0])
def test_gradients_are_those_of_the_function(order: float) -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: entropy_from_logits(x, order), logits)
    assert torch.autograd.gradcheck(lambda x: renyi_entropy(x.softmax(-1), order), logits)


@pytest.mark.parametrize("order", [0.5, 0.9, 1.0, 1.1, 2.0, 3.0, math.inf])
def test_gradients_where_a_probability_is_0(order: float) -> None:
    """A softmax in float32 underflows; the same logits in float64 do not."""
    logits = torch.tensor([[0.0, -200.0, -1.0], [3.0, 2.0, -400.0]], requires_grad=True)
    (got,) = torch.autograd.grad(renyi_entropy(logits.softmax(-1), order).sum(), logits)
    wide = logits.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(entropy_from_logits(wide, order).sum(), wide)
    torch.testing.assert_close(got, expected.float(), atol=1e-6, rtol=1e-5)


GRADIENT_ORDERS = [0.5, 0.93, 0.94, 0.999, 1 - 1e-6, 1.0, 1 + 1e-9, 1.001, 1.06, 1.07, 1.24, 2.0, 64.0, math.inf]


# Logits that lie no closer than orders beyond 1e30, which are taken for 1e30, can tell apart.
@given(st.lists(st.integers(-100_000, 100_000), min_size=1, max_size=9, unique=True), orders)
def test_its_own_gradient_equals_the_definition(thousandths: list[int], order: float) -> None:
    logits = [value / 1000 for value in thousandths]
    expected = torch.tensor(reference.entropy_gradient(logits, order), dtype=torch.float64)
    got = entropy_gradient(torch.tensor(logits, dtype=torch.float64), order)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("order", GRADIENT_ORDERS)
@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 30.0])
def test_its_own_gradient_keeps_float32_next_to_one(order: float, spread: float) -> None:
    logits = torch.randn(4, 50) * spread
    if spread == 0 and order == math.inf:
        logits[:, 7] = 1e-3  # one largest logit
    expected = [reference.entropy_gradient(row.tolist(), order) for row in logits]
    torch.testing.assert_close(entropy_gradient(logits, order), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_its_own_gradient_shares_the_largest_logit_as_that_of_the_maximum() -> None:
    logits = torch.tensor([[2.0, 2.0, 1.0]], requires_grad=True)
    (expected,) = torch.autograd.grad(entropy_from_logits(logits, math.inf).sum(), logits)
    torch.testing.assert_close(entropy_gradient(logits.detach(), math.inf), expected)


# --- shapes and types --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0.5, 1.0, 1.1, 2.0, math.inf])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_dim_names_the_dimension_that_sums_to_one(order: float, dim: int) -> None:
    probs = torch.randn(2, 3, 4, dtype=torch.float64).softmax(dim)
    got = renyi_entropy(probs, order, dim)
    rows = probs.movedim(dim, -1)
    assert got.shape == rows.shape[:-1]
    expected = [reference.renyi_entropy(row.tolist(), order) for row in rows.reshape(-1, rows.shape[-1])]
    torch.testing.assert_close(got.flatten(), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(entropy_from_logits(probs.log(), order, dim), got)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
def test_result_is_float32_or_wider(dtype: torch.dtype, expected: torch.dtype, order: float) -> None:
    probs = torch.full((2, 4), 0.25, dtype=dtype)
    assert renyi_entropy(probs, order).dtype == expected
    assert entropy_from_logits(probs, order).dtype == expected


def test_no_rows_give_no_entropies() -> None:
    assert renyi_entropy(torch.empty(0, 5), 2.0).shape == (0,)


# --- refusals: the message states rule, value and fix ------------------------------------------------------------

FAIR = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (0, ValueError, r"greater than 0.*got 0.*ranks nothing"),
        (-0.0, ValueError, r"greater than 0.*ranks nothing"),
        (-1.5, ValueError, r"greater than 0.*-1\.5"),
        (-math.inf, ValueError, r"greater than 0.*-inf"),
        (math.nan, ValueError, r"NaN.*1\.0 for Shannon"),
        (True, TypeError, r"real number in \(0, inf\].*True.*bool"),
        ("2", TypeError, r"real number.*'2'.*str"),
        ("shannon", TypeError, r"real number.*'shannon'"),
        (None, TypeError, r"real number.*None"),
        (2j, TypeError, r"real number.*complex"),
    ],
)
def test_orders_outside_the_range_are_refused(order, error: type[Exception], message: str) -> None:
    for call in (renyi_entropy, entropy_from_logits):
        with pytest.raises(error, match=message):
            call(FAIR, order)


@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [
        (torch.tensor([0.5, 0.6]), ValueError, r"sum to 1 along dim=-1.*off by 0\.1.*softmax"),
        (torch.tensor([[0.5, 0.5], [0.5, 0.4]]), ValueError, r"sum to 1"),
        (torch.tensor([3.0, -1.0, -1.0]), ValueError, r"non-negative.*-1"),
        (torch.tensor([0.5, math.nan]), ValueError, r"non-negative.*NaN"),
        (torch.tensor([math.inf, 0.5]), ValueError, r"sum to 1"),
        (torch.tensor([0.0, 0.0]), ValueError, r"sum to 1"),
        (torch.tensor([1, 0]), TypeError, r"floating-point.*int64.*\.float\(\)"),
        (torch.tensor([True, False]), TypeError, r"floating-point.*bool"),
        (torch.tensor([1 + 0j]), TypeError, r"floating-point.*complex64"),
        (torch.empty(3, 0), ValueError, r"at least one.*\(3, 0\)"),
        ([0.5, 0.5], TypeError, r"torch\.Tensor.*list"),
    ],
)
def test_what_is_not_a_distribution_is_refused(probs, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        renyi_entropy(probs, 2.0)


def test_the_sum_is_checked_along_dim() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    renyi_entropy(probs, 2.0, dim=1)
    with pytest.raises(ValueError, match=r"dim=0"):
        renyi_entropy(probs, 2.0, dim=0)
