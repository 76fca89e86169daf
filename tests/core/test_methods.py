"""Named methods: each name means one criterion and reduction, and bad names are refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropatch import ClassAttention, PruneConfig, Random, Renyi
from entropatch.config import method_config
from entropatch.methods import METHODS, find_method, method_label, parse_order, renyi_method


@pytest.mark.parametrize(
    ("name", "criterion", "reduction", "order"),
    [
        ("random", Random(seed=0), "drop", None),
        ("evit", ClassAttention(), "fuse", None),
        ("evit-drop", ClassAttention(), "drop", None),
        ("shannon", Renyi(1.0), "drop", 1.0),
        ("renyi-2", Renyi(2.0), "drop", 2.0),
        ("renyi-2.0", Renyi(2.0), "drop", 2.0),
        ("renyi-0.5", Renyi(0.5), "drop", 0.5),
        ("renyi-inf", Renyi(math.inf), "drop", math.inf),
        ("renyi-1e-05", Renyi(1e-5), "drop", 1e-5),
    ],
)
def test_a_name_is_a_criterion_and_a_reduction(name, criterion, reduction, order):
    config = method_config(name, 0.6, (1, 2))
    assert config == PruneConfig(keep_rate=0.6, criterion=criterion, blocks=(1, 2), reduction=reduction)
    assert find_method(name).order == order


def test_defaults_and_one_rate_per_block():
    assert method_config("shannon", 0.7).blocks is None
    assert method_config("shannon", [0.9, 0.5], [3, 6]).keep_rate == (0.9, 0.5)


def test_keys_are_the_names_and_labels_are_all_different():
    assert all(find_method(name).name == name for name in METHODS)
    assert len({method_label(name) for name in METHODS}) == len(METHODS)
    assert method_label("renyi-inf") == "Rényi, order ∞"
    assert method_label("renyi-2.0") == "Rényi, order 2"


@given(st.floats(min_value=0, exclude_min=True))
def test_the_name_of_an_order_leads_back_to_it(order):
    method = renyi_method(order)
    assert find_method(method.name) == method
    assert find_method(method.name).order == order


@pytest.mark.parametrize(
    "name", ["", "Evit", "renyi", "renyi-", "renyi-x", "renyi-0", "renyi--1", "renyi-nan", "dense"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError):
        method_config(name, 0.7)


def test_the_refusal_lists_what_there_is():
    with pytest.raises(ValueError, match=r"random, evit, evit-drop, tome, shannon, .* but got 'foo'"):
        find_method("foo")
    with pytest.raises(ValueError, match="\"inf\", but got 'two'"):
        parse_order("two")


@pytest.mark.parametrize("rate", [0, 1.1, math.nan])
def test_bad_keep_rates_are_refused(rate):
    with pytest.raises(ValueError, match="keep_rate"):
        method_config("evit", rate)
