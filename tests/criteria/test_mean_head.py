"""Criteria that read the mean head: column norms, its entropy; and those that read values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference
import reference_methods
import torch
from attention_case import SCALE, block_attention, of_each_image
from small_models import create, photographs
from torch import nn

import entropatch
from entropatch import UnsupportedModelError, prune_
from entropatch.criteria import AttEntropy, ColumnNorm, Mix, Renyi, ValueAttention, ValueNormAttention
from entropatch.tokens import select

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("power", [1, 2, 4.0, 300.0, math.inf])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_column_norm_is_that_of_the_mean_head(power: float, prefix: int) -> None:
    attention = block_attention(prefix=prefix)
    expected = of_each_image(attention, reference_methods.column_norm, power)
    torch.testing.assert_close(ColumnNorm(power).importance(attention), expected)


def test_column_norm_is_mass_times_concentration() -> None:
    """ℓ_p = column sum · exp(-((p-1)/p) H_p) of the column over its sum."""
    attention = block_attention(prefix=1)
    columns = attention.matrix().mean(1)[:, :, 1:].transpose(1, 2)
    total = columns.sum(2)
    entropy = entropatch.renyi_entropy(columns / total[..., None], 4.0)
    torch.testing.assert_close(ColumnNorm(4.0).importance(attention), total * torch.exp(-0.75 * entropy))


@pytest.mark.parametrize("power", [0.5, math.nan, "4", True])
def test_powers_that_are_no_norm_are_refused(power: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="power must be"):
        ColumnNorm(power)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_att_entropy_is_that_of_the_mean_head_not_renormalised(prefix: int) -> None:
    attention = block_attention(prefix=prefix)
    expected = of_each_image(attention, reference_methods.mean_head_entropy)
    torch.testing.assert_close(AttEntropy().importance(attention), -expected)
    hard = block_attention(prefix=prefix, dtype=torch.float32)
    hard.q.mul_(1e4)  # where most of a row is 0
    assert AttEntropy().importance(hard).isfinite().all()


@pytest.mark.parametrize("prefix", [1, 5])
def test_value_norm_attention_is_the_length_of_what_the_projection_makes(prefix: int) -> None:
    weight = torch.randn(7, 12, dtype=torch.float64)
    attention = block_attention(prefix=prefix, projection=weight)
    got = ValueNormAttention().importance(attention)
    for row, q, k, v in zip(got, attention.q.numpy(), attention.k.numpy(), attention.v.numpy(), strict=True):
        expected = reference_methods.value_norm(q, k, SCALE, prefix, v, weight.numpy())
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("prefix", [1, 5])
def test_value_attention_is_the_score_of_ats(prefix: int) -> None:
    attention = block_attention(prefix=prefix)
    got = ValueAttention().mass(ValueAttention().importance(attention))
    for row, q, k, v in zip(got, attention.q.numpy(), attention.k.numpy(), attention.v.numpy(), strict=True):
        torch.testing.assert_close(row, torch.tensor(reference_methods.ats_scores(q, k, SCALE, prefix, v)))


# --- in models ---------------------------------------------------------------------------------------------------


def test_the_projection_is_the_model_s_own() -> None:
    model = prune_(create("deit").double(), method="value-norm", keep_rate=0.5, blocks=(1, 2))
    image = photographs(model)[:1].double()
    with torch.no_grad(), entropatch.trace(model) as trace:
        output = model(image)
    weights = [block.attn.proj.weight.detach().numpy() for block in model.blocks]  # pyright: ignore

    def choose(block: int, q: Any, k: Any, v: Any, present: list[int]) -> list[int] | None:
        if block not in (1, 2):
            return None
        scores = reference_methods.value_norm(q, k, q.shape[-1] ** -0.5, 1, v, weights[block])
        return reference.kept_places(scores, reference.kept_count(0.5, len(present)))

    expected, stages = reference_methods.slow_pass(entropatch.unprune_(model), image, choose)
    torch.testing.assert_close(output, expected)
    assert [kept[0].tolist() for kept in trace.kept] == stages


@pytest.mark.parametrize("name", ["deit distilled", "dinov2 registers", "rope mixed", "dinov3"])
@pytest.mark.parametrize("method", ["col-ln", "value-norm", "head-mad", "att-entropy", "running-class"])
def test_methods_run_on_every_kind_of_model(method: str, name: str) -> None:
    model = prune_(create(name), method=method, keep_rate=0.5)
    with torch.no_grad(), entropatch.trace(model) as trace:
        tokens = model.forward_features(photographs(model))  # pyright: ignore[reportCallIssue]
        assert entropatch.restore(tokens, trace).isfinite().all()
    assert trace.counts == [25, 13, 7, 4]


@pytest.mark.parametrize(("name", "what"), [("eva-02 clip", "a norm"), ("beit3", "a norm"), ("deit", "a gate")])
def test_what_stands_before_the_projection_is_refused_by_name(name: str, what: str) -> None:
    model: Any = create(name)
    if what == "a gate":
        model.blocks[1].attn.gate = nn.Linear(32, 32)
    where = r"block [12]: the attention has .* between its heads"
    with pytest.raises(UnsupportedModelError, match=where.replace(".*", what)):
        prune_(model, method="value-norm")
    with pytest.raises(UnsupportedModelError, match=where):
        prune_(model, criterion=Mix(Renyi(1.0), ValueNormAttention()))
    model.blocks[1].attn.proj = nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"between its heads|is a Identity, but the criterion asks"):
        prune_(model, method="value-norm")


def test_an_attention_alone_has_no_projection() -> None:
    with pytest.raises(ValueError, match="was not given its model's output projection"):
        ValueNormAttention().importance(block_attention())


def test_kept_sets_in_single_precision_are_those_of_the_definition() -> None:
    attention = block_attention(batch=3, patches=30, dtype=torch.float32)
    twin = of_each_image(attention, reference_methods.column_norm, 4.0).tolist()
    kept = select(ColumnNorm().importance(attention), 12).tolist()
    assert kept == [reference.kept_places(row, 12) for row in twin]
