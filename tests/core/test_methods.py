"""Named methods: each name means one criterion and reduction, and bad names are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropatch import (
    ClassAttention,
    Criterion,
    CumulativeImportance,
    Merge,
    Method,
    PruneConfig,
    Random,
    RemovePerBlock,
    Renyi,
    register_method,
)
from entropatch.config import method_config
from entropatch.methods import (
    METHODS,
    compared_methods,
    find_method,
    method_label,
    methods_text,
    parse_order,
    pictured_methods,
    renyi_method,
    stand_in,
)


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


@pytest.fixture
def registry(monkeypatch):
    """What is registered in the test is forgotten after it."""
    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))


def test_a_method_of_one_s_own_is_offered_where_its_rank_says(registry):
    before = compared_methods()
    assert before == ["random", "evit", "tome", "shannon", "renyi-2", "renyi-inf"]
    register_method(Method("own", "Own", "", ClassAttention(), Merge(), rank=15))
    register_method(Method("hidden", "Hidden", "", ClassAttention(), Merge(), rank=1, compared=False))
    assert compared_methods() == ["random", "own", *before[1:]]
    assert compared_methods((4.0, 2.0)) == [
        *("random", "own", "evit", "tome", "shannon", "renyi-2", "renyi-4", "renyi-inf")
    ]
    assert pictured_methods((2.0, 1.0)) == ["own", "evit", "renyi-2", "shannon"]
    assert methods_text().startswith("dense, hidden, random, own, evit")


def test_what_a_method_is_follows_from_its_parts():
    orders = [name for name in METHODS if METHODS[name].drops_by_entropy]
    assert orders == ["shannon", "renyi-2", "renyi-inf"]  # merging by entropy is another method
    assert [name for name in METHODS if METHODS[name].is_random] == ["random"]
    assert all(method.takes_keep_rate for method in METHODS.values())
    assert not Method("a", "A", "", schedule=RemovePerBlock(3)).is_random
    assert not Method("a", "A", "", schedule=CumulativeImportance()).takes_keep_rate
    assert {name: stand_in(name) for name in METHODS if stand_in(name)} == {
        "evit": "evit-drop",
        "shannon-merge": "shannon",
    }
    assert all(method.modules == () for method in METHODS.values())

    @dataclass(frozen=True)
    class _Own(Criterion):
        def importance(self, attention):
            return attention.k[..., 0].mean(1)

    assert Method("a", "A", "", _Own()).modules == (__name__,)


@pytest.mark.parametrize("label", ["Dense", "EViT", "Rényi, order 2"])
def test_a_label_belongs_to_one_method(registry, label):
    with pytest.raises(ValueError, match=f"label must be its own, .* is called '{label}' too"):
        register_method(Method("own", label, ""))
    register_method(Method("own", "Own", ""))
    register_method(Method("own", "Own, changed", ""))  # defined anew, as in a notebook
    register_method(Method("own", "Own, changed", ""))
    assert METHODS["own"].label == "Own, changed"
