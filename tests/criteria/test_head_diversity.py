"""Diversity of class attention over the heads."""

from __future__ import annotations

import pytest
import reference
import reference_methods
import torch
from attention_case import block_attention, of_each_image
from small_models import create, photographs

from entropatch import PruneConfig, prune_
from entropatch.criteria import HeadDiversity
from entropatch.tokens import select


@pytest.mark.parametrize("measure", ["variance", "mad"])
@pytest.mark.parametrize("heads", [2, 3, 6])
@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_head_diversity_is_the_spread_over_heads(measure: str, heads: int, prefix: int) -> None:
    attention = block_attention(heads=heads, prefix=prefix)
    expected = of_each_image(attention, reference_methods.head_diversity, measure)
    torch.testing.assert_close(HeadDiversity(measure).importance(attention), expected)
    single = block_attention(batch=3, heads=heads, prefix=prefix, patches=30, dtype=torch.float32)
    kept = select(HeadDiversity(measure).importance(single), 12).tolist()
    twin = of_each_image(single, reference_methods.head_diversity, measure).tolist()
    assert kept == [reference.kept_places(row, 12) for row in twin]


def test_an_even_number_of_heads_has_a_true_median() -> None:
    """Of 0, 1, 2, 6 it is 1.5, not the lower middle 1: then the deviations are .5, .5, 1.5, 4.5, and theirs is 1."""
    attention = block_attention(heads=4)
    attention._class_attention = torch.tensor([[[0.0], [1.0], [2.0], [6.0]]])
    with torch.no_grad():
        assert HeadDiversity("mad").importance(attention).item() == 1.0


def test_mass_is_the_share_of_the_sum() -> None:
    scores = HeadDiversity("mad").importance(block_attention())
    torch.testing.assert_close(HeadDiversity("mad").mass(scores), (scores / scores.sum(1, keepdim=True)).float())


def test_what_has_no_diversity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"measure must be one of variance, mad, but got 'std'"):
        HeadDiversity("std")
    with pytest.raises(ValueError, match="needs at least two heads"):
        HeadDiversity().importance(block_attention(heads=1))
    with pytest.raises(ValueError, match="needs a class token"):
        HeadDiversity().importance(block_attention(prefix=0))


@pytest.mark.parametrize(("method", "measure"), [("head-variance", "variance"), ("head-mad", "mad")])
def test_head_diversity_by_name(method: str, measure: str) -> None:
    assert PruneConfig(method=method) == PruneConfig(criterion=HeadDiversity(measure))
    model = prune_(create("deit"), method=method, keep_rate=0.5)
    assert model(photographs(model)).isfinite().all()
