"""Entropy of attention from queries and keys, and one block's attention as criteria see it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from entropatch import BlockAttention, attention_entropy

BACKENDS = ["reference", "streaming"]  # those that run everywhere
ORDERS = [1e-3, 0.5, 0.9, 1.0, 1 + 1e-9, 1.1, 2.0, 5.0, math.inf]


def expected_entropy(q: Tensor, k: Tensor, order: float, scale: float) -> Tensor:
    """The twin over any leading shape."""
    flat_q, flat_k = q.double().flatten(0, -3).numpy(), k.double().flatten(0, -3).numpy()
    rows = [reference.attention_entropies(qh, kh, order, scale) for qh, kh in zip(flat_q, flat_k, strict=True)]
    return torch.tensor(rows, dtype=torch.float64).reshape(q.shape[:-1])


def block_attention(
    batch: int = 2, heads: int = 3, patches: int = 7, prefix: int = 2, width: int = 4, **settings
) -> BlockAttention:
    """Random attention whose prefix tokens would stand out if anything scored them."""
    q, k, v = torch.randn(3, batch, heads, prefix + patches, width, dtype=torch.float64).mul(2)
    k[:, :, :prefix] *= 5
    return BlockAttention(q, k, v, num_prefix_tokens=prefix, has_class_token=prefix > 0, **settings)


# --- attention_entropy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("leading", [(1,), (2, 3)])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (2, 6), (6, 1)])
def test_equals_the_definition(backend: str, order: float, leading: tuple[int, ...], n: int, m: int) -> None:
    q, k = torch.randn(*leading, n, 4, dtype=torch.float64), torch.randn(*leading, m, 4, dtype=torch.float64)
    got = attention_entropy(q, k, order, scale=1.7, backend=backend)
    assert got.shape == (*leading, n)
    torch.testing.assert_close(got, expected_entropy(q, k, order, 1.7), rtol=1e-12, atol=1e-12)


def test_leading_dimensions_may_be_absent() -> None:
    q, k = torch.randn(2, 1, 5, 4)
    torch.testing.assert_close(attention_entropy(q[0], k[0], 2.0), attention_entropy(q, k, 2.0)[0])


def test_scale_is_one_over_the_root_of_the_width_unless_given() -> None:
    q, k = torch.randn(2, 1, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(attention_entropy(q, k, 2.0), expected_entropy(q, k, 2.0, 0.25))
    torch.testing.assert_close(attention_entropy(q, k, 2.0, scale=1.0), expected_entropy(q, k, 2.0, 1.0))
    even = attention_entropy(q, k, 2.0, scale=0.0)
    torch.testing.assert_close(even, torch.full_like(even, math.log(5)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("order", ORDERS)
def test_computes_in_float32_whatever_the_input(backend: str, dtype: torch.dtype, order: float) -> None:
    """To float32 accuracy for the very numbers given, not to that of half precision, with or without autocast."""
    q, k = torch.randn(2, 2, 9, 8).mul(2).to(dtype)
    expected = expected_entropy(q, k, order, 8**-0.5)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = attention_entropy(q, k, order, backend=backend)
    for got in (attention_entropy(q, k, order, backend=backend), under_autocast):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [1e-300, *ORDERS, 64.0, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_ten_thousand(backend: str, order: float, dtype: torch.dtype) -> None:
    """q·k = ±10 000, and rows whose largest logits are close or equal at that size."""
    q = torch.tensor([[100.0], [-100.0], [1.0], [0.0]], dtype=dtype)
    k = torch.tensor([[100.0], [100.0], [99.9921875], [-100.0], [0.0]], dtype=dtype)
    got = attention_entropy(q[None], k[None], order, scale=1.0, backend=backend)
    assert got.isfinite().all()
    expected = expected_entropy(q[None], k[None], order, 1.0)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6),
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6),
    st.sampled_from([1e-300, *ORDERS, 1e300]),
    st.sampled_from(BACKENDS),
)
def test_finite_and_within_bounds_for_any_logits_up_to_ten_thousand(
    queries: list[float], keys: list[float], order: float, backend: str
) -> None:
    q, k = torch.tensor(queries)[:, None], torch.tensor(keys)[:, None]
    entropy = attention_entropy(q, k, order, scale=1.0, backend=backend)
    assert (entropy >= 0).all()
    assert (entropy <= math.log(len(keys)) + 1e-5).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [1e-300, *ORDERS, 1e300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_patch_and_identical_patches(backend: str, order: float, dtype: torch.dtype) -> None:
    one = torch.randn(2, 3, 1, 4).to(dtype)
    assert (attention_entropy(one, one, order, backend=backend) == 0).all()
    same = one.expand(2, 3, 10, 4) * 3
    entropy = attention_entropy(same, same, order, backend=backend)
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(10)), rtol=0, atol=3e-6)


@pytest.mark.parametrize("order", [0.3, 0.9, 1.0, 1 + 1e-9, 2.0])
def test_gradients_are_those_of_the_function(order: float) -> None:
    q, k = (torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda q, k: attention_entropy(q, k, order), (q, k))


@pytest.mark.parametrize(
    ("q", "k"),
    [
        (torch.zeros(4), torch.zeros(4)),
        (torch.zeros(2, 5, 4), torch.zeros(5, 4)),
        (torch.zeros(2, 5, 4), torch.zeros(3, 5, 4)),
        (torch.zeros(5, 4), torch.zeros(5, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(q: Tensor, k: Tensor) -> None:
    with pytest.raises(ValueError, match=r"same leading shape and width, but got \(.*\) and \(.*\)") as error:
        attention_entropy(q, k, 2.0)
    assert str(tuple(k.shape)) in str(error.value)


def test_empty_keys_and_empty_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one key.*\(0, 4\)"):
        attention_entropy(torch.zeros(5, 4), torch.zeros(0, 4), 2.0)
    with pytest.raises(ValueError, match=r"width.*at least 1.*\(5, 0\)"):
        attention_entropy(torch.zeros(5, 0), torch.zeros(5, 0), 2.0)
    assert attention_entropy(torch.zeros(0, 4), torch.zeros(5, 4), 2.0).shape == (0,)


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (0, ValueError, "ranks nothing"),
        (-1, ValueError, r"greater than 0.*-1"),
        (math.nan, ValueError, "NaN"),
        (False, TypeError, "bool"),
        ("inf", TypeError, "'inf'"),
    ],
)
def test_orders_outside_the_range_are_refused(order, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attention_entropy(torch.zeros(5, 4), torch.zeros(5, 4), order)


@pytest.mark.parametrize("bad", [torch.zeros(5, 4, dtype=torch.int64), torch.zeros(5, 4, dtype=torch.bool)])
def test_integer_queries_and_keys_are_refused(bad: Tensor) -> None:
    for q, k in ((bad, torch.zeros(5, 4)), (torch.zeros(5, 4), bad)):
        with pytest.raises(TypeError, match=rf"floating-point.*{str(bad.dtype).removeprefix('torch.')}"):
            attention_entropy(q, k, 2.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"scale must be finite.*(nan|inf)"):
        attention_entropy(torch.zeros(5, 4), torch.zeros(5, 4), 2.0, scale=scale)


# --- the identities that make it cheap ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0.01, 0.5, 0.9, 1.1, 2.0, 7.5])
def test_two_log_sum_exps(order: float) -> None:
    """H_α = (LSE(αx) - α·LSE(x)) / (1 - α)."""
    q, k = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    x = q @ k.mT * 0.3
    identity = (torch.logsumexp(order * x, -1) - order * torch.logsumexp(x, -1)) / (1 - order)
    torch.testing.assert_close(attention_entropy(q, k, order, scale=0.3), identity, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(identity, expected_entropy(q, k, order, 0.3), rtol=1e-10, atol=1e-10)


def test_shannon_is_attention_whose_values_are_the_keys() -> None:
    """H_1 = LSE(x) - Σ_j p_j x_j, and Σ_j p_j x_j = s · q_i · Σ_j p_j k_j."""
    q, k = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    mean_key = F.scaled_dot_product_attention(q, k, k, scale=0.3)
    identity = torch.logsumexp(q @ k.mT * 0.3, -1) - 0.3 * (q * mean_key).sum(-1)
    torch.testing.assert_close(attention_entropy(q, k, 1.0, scale=0.3), identity, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(identity, expected_entropy(q, k, 1.0, 0.3), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1.1, 1.5, 2.0, 3.0, 10.0, math.inf])
def test_inside_a_head_entropy_ranks_as_the_norm_does(order: float) -> None:
    """For α > 1 entropy falls as ‖p‖_α grows, so both name the same patches."""
    q, k = torch.randn(2, 4, 40, 8, dtype=torch.float64)
    entropy = attention_entropy(q, k, order, scale=1.0)
    for head in range(4):
        rows = reference.patch_attention(q[head : head + 1].numpy(), k[head : head + 1].numpy(), 1.0, 0)[0]
        norms = [max(row) if order == math.inf else math.fsum(p**order for p in row) ** (1 / order) for row in rows]
        by_norm = sorted(range(40), key=lambda patch: -norms[patch])
        assert entropy[head].argsort(stable=True).tolist() == by_norm


# --- BlockAttention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
def test_block_entropy_leaves_prefix_tokens_out_as_queries_and_as_keys(backend: str, prefix: int, order: float) -> None:
    attention = block_attention(prefix=prefix, scale=0.4, backend=backend)
    assert attention.num_patches == 7
    got = attention.entropy(order)
    expected = [
        reference.patch_entropies(q, k, order, 0.4, prefix)
        for q, k in zip(attention.q.numpy(), attention.k.numpy(), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_class_attention_is_softmaxed_over_all_tokens(prefix: int) -> None:
    attention = block_attention(prefix=prefix, scale=0.4)
    got = attention.class_attention()
    expected = [
        reference.class_attention(q, k, 0.4, prefix)
        for q, k in zip(attention.q.numpy(), attention.k.numpy(), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert (got.sum(-1) < 1).all()


def test_class_attention_without_a_class_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a class token.*Renyi"):
        block_attention(prefix=0).class_attention()


def test_class_attention_scored_without_gradients_still_has_them_afterwards() -> None:
    attention = block_attention()
    attention.q.requires_grad_()
    with torch.no_grad():
        scored = attention.class_attention()
        assert attention.class_attention() is scored  # the row is computed once
    with_graph = attention.class_attention()
    torch.testing.assert_close(with_graph, scored)
    with_graph.sum().backward()
    assert attention.q.grad is not None
    assert attention.q.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scored_first", [True, False])
def test_matrix_and_output_are_the_whole_attention(scored_first: bool, backend: str) -> None:
    attention = block_attention(scale=0.4, backend=backend)
    if scored_first:  # the output may then come from the same pass
        attention.entropy(2.0)
    expected = np.array(
        [reference.full_attention(q, k, 0.4) for q, k in zip(attention.q.numpy(), attention.k.numpy(), strict=True)]
    )
    torch.testing.assert_close(attention.matrix(), torch.from_numpy(expected))
    torch.testing.assert_close(attention.output(), torch.from_numpy(expected @ attention.v.numpy()))


def test_default_scale() -> None:
    attention = block_attention(width=16)
    torch.testing.assert_close(attention.matrix(), block_attention_like(attention, 0.25).matrix())
    torch.testing.assert_close(attention.entropy(2.0), block_attention_like(attention, 0.25).entropy(2.0))
    torch.testing.assert_close(attention.output(), block_attention_like(attention, 0.25).output())


def block_attention_like(attention: BlockAttention, scale: float) -> BlockAttention:
    return BlockAttention(attention.q, attention.k, attention.v, scale=scale, num_prefix_tokens=2, has_class_token=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_models_are_float32(dtype: torch.dtype) -> None:
    wide = block_attention()
    half = BlockAttention(
        wide.q.to(dtype), wide.k.to(dtype), wide.v.to(dtype), num_prefix_tokens=2, has_class_token=True
    )
    exact = BlockAttention(half.q.double(), half.k.double(), half.v.double(), num_prefix_tokens=2, has_class_token=True)
    with torch.autocast("cpu", torch.bfloat16):
        for got, expected in (
            (half.entropy(2.0), exact.entropy(2.0)),
            (half.class_attention(), exact.class_attention()),
            (half.matrix(), exact.matrix()),
        ):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=2e-6)
    assert half.output().dtype == dtype


# --- a bias for each key -----------------------------------------------------------------------------------------


def key_bias(batch: int = 2, tokens: int = 9) -> Tensor:
    """Logarithms of sizes for one image, padding among them for the next."""
    bias = torch.randint(1, 9, (batch, tokens)).double().log()
    bias[1::2, -3:] = -math.inf
    return bias


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output_wanted", [True, False])  # from one pass, and each alone
@pytest.mark.parametrize("order", [0.5, 0.9, 1.0, 1.1, 2.0, math.inf])
def test_a_key_bias_is_added_to_every_logit_of_its_key(backend: str, output_wanted: bool, order: float) -> None:
    bias = key_bias()
    attention = block_attention(scale=0.4, backend=backend, key_bias=bias, output_wanted=output_wanted)
    images = list(zip(attention.q.numpy(), attention.k.numpy(), bias.tolist(), strict=True))
    entropies = [reference.patch_entropies(q, k, order, 0.4, 2, b) for q, k, b in images]
    torch.testing.assert_close(attention.entropy(order), torch.tensor(entropies, dtype=torch.float64))
    whole = torch.tensor([reference.full_attention(q, k, 0.4, b) for q, k, b in images], dtype=torch.float64)
    torch.testing.assert_close(attention.output(), whole @ attention.v)
    torch.testing.assert_close(attention.matrix(), whole)
    rows = [reference.class_attention(q, k, 0.4, 2, b) for q, k, b in images]
    torch.testing.assert_close(attention.class_attention(), torch.tensor(rows, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [0.5, 1.0, 1.1, 2.0, math.inf])
def test_padding_is_as_if_it_were_not_there(backend: str, order: float) -> None:
    bias = torch.zeros(2, 9, dtype=torch.float64)
    bias[:, 6:] = -math.inf
    padded = block_attention(backend=backend, key_bias=bias)
    q, k, v = (x[:, :, :6] for x in (padded.q, padded.k, padded.v))
    short = BlockAttention(q, k, v, num_prefix_tokens=2, has_class_token=True, backend=backend)
    torch.testing.assert_close(padded.entropy(order)[:, :, :4], short.entropy(order), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(padded.output()[:, :, :6], short.output(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logarithms_of_sizes_are_as_if_the_key_stood_there_as_often(backend: str) -> None:
    """Proportional attention: a key of size three weighs as three equal keys of size one."""
    q, k, v = torch.randn(3, 1, 2, 5, 4, dtype=torch.float64)
    sizes = torch.tensor([1, 3, 1, 2, 1])
    sized = BlockAttention(q, k, v, key_bias=sizes.double().log()[None], num_prefix_tokens=1, backend=backend)
    repeated = F.scaled_dot_product_attention(q, *(x.repeat_interleave(sizes, 2) for x in (k, v)))
    sized.entropy(2.0)
    torch.testing.assert_close(sized.output(), repeated, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [1e-300, 0.5, 0.9, 1.0, 1.1, 2.0, 1e300, math.inf])
def test_an_image_without_any_patch_key_is_even_and_spoils_no_other(
    dtype: torch.dtype, backend: str, order: float
) -> None:
    q, k, v = torch.randn(3, 2, 3, 9, 4).to(dtype)
    bias = torch.zeros(2, 9, dtype=dtype)
    bias[1, 2:] = -math.inf
    attention = BlockAttention(q, k, v, key_bias=bias, num_prefix_tokens=2, backend=backend)
    entropy, output = attention.entropy(order), attention.output()
    torch.testing.assert_close(entropy[1], torch.full_like(entropy[1], math.log(7)), rtol=0, atol=3e-6)
    other = BlockAttention(q[:1], k[:1], v[:1], num_prefix_tokens=2, backend=backend)
    torch.testing.assert_close(entropy[:1], other.entropy(order), rtol=1e-5, atol=1e-5)
    rounding = 4 * torch.finfo(dtype).eps
    prefix_alone = F.scaled_dot_product_attention(q[1:], k[1:, :, :2], v[1:, :, :2])
    for got in (output, BlockAttention(q, k, v, key_bias=bias).output()):
        torch.testing.assert_close(got[1:], prefix_alone, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_key_bias_and_with_zeros_is_the_same(backend: str) -> None:
    plain = block_attention(backend=backend)
    zeros = BlockAttention(plain.q, plain.k, plain.v, key_bias=torch.zeros(2, 9), num_prefix_tokens=2, backend=backend)
    torch.testing.assert_close(zeros.entropy(2.0), plain.entropy(2.0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(zeros.output(), plain.output(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(9,), (2, 7), (1, 9), (2, 1, 9), (2, 3, 9)])
def test_a_key_bias_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"key_bias must be \(batch, tokens\) = \(2, 9\).*but got \(") as error:
        block_attention(key_bias=torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_a_mask_of_booleans_is_refused() -> None:
    with pytest.raises(TypeError, match=r"key_bias must be a floating-point tensor, but got torch\.bool.*-inf"):
        block_attention(key_bias=torch.zeros(2, 9, dtype=torch.bool))


@pytest.mark.parametrize("backend", ["auto", "reference", "streaming"])
@pytest.mark.parametrize("kinds", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_queries_and_keys_of_two_types_take_the_wider(backend: str, kinds: tuple[torch.dtype, torch.dtype]) -> None:
    q, k = (torch.randn(2, 3, 5, 4).to(kind) for kind in kinds)
    found = attention_entropy(q, k, 2.0, backend=backend)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, attention_entropy(q.double(), k.double(), 2.0, backend="reference"))
