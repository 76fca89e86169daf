"""Named methods: each name means one criterion and reduction, and bad names are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import timm
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
    UnsupportedModelError,
    prune_,
    register_method,
)
from entropatch.config import method_config
from entropatch.methods import (
    METHODS,
    compared_methods,
    expanded_methods,
    find_method,
    method_label,
    methods_text,
    needs_text,
    parse_order,
    pictured_methods,
    renyi_method,
    stand_in,
)
from entropatch.named_method import composed


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
    assert "Need a class token: hidden, own, evit, " in needs_text()


def test_what_methods_need_is_said(registry):
    assert needs_text().splitlines() == [
        "Need training: dynamicvit, cropr, a-vit, spvit, dtop. Need a class token: evit, evit-drop, class-renyi-2, "
        "head-variance, head-mad, value-norm, running-class, ats, evo-vit, dynamicvit, a-vit, spvit. "
        "In a Segmenter only: dtop."
    ]
    METHODS._methods = {"random": METHODS["random"]}
    assert needs_text() == ""


@pytest.mark.parametrize("name", METHODS)
def test_who_needs_a_class_token_is_refused_without_one(name):
    """What is said of a method is what `prune_` does: with mean pooling, and no class token, it refuses."""
    shape = {"img_size": 32, "embed_dim": 24, "depth": 4, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", **shape, class_token=False, global_pool="avg")
    try:
        prune_(model, method=name)
        refused = ""
    except UnsupportedModelError as error:
        refused = str(error)
    assert METHODS[name].needs_class_token == ("class token" in refused)


def test_what_a_method_is_follows_from_its_parts():
    orders = [name for name in METHODS if METHODS[name].drops_by_entropy]
    assert orders == ["shannon", "renyi-2", "renyi-inf"]  # merging by entropy is another method
    assert [name for name in METHODS if METHODS[name].is_random] == ["random"]
    assert [name for name, method in METHODS.items() if not method.takes_keep_rate] == ["a-vit", "dtop"]
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


# --- names of several parts --------------------------------------------------------------------------------------


def test_a_name_with_a_side_covers() -> None:
    method = find_method("evit@2")
    assert (method.name, method.coverage) == ("evit@2", 2)
    assert method.label == "EViT, the best of each 2 × 2" == PruneConfig(method="evit@2").label
    assert PruneConfig(method="evit@2") == PruneConfig(method="evit", coverage=2)
    assert find_method("renyi-1.0@3").name == "shannon@3"
    assert not find_method("shannon@3").drops_by_entropy
    assert find_method("shannon@3").order == 1.0
    with pytest.raises(TypeError, match="its own coverage"):
        PruneConfig(method="evit@2", coverage=3)


def test_a_name_of_several_is_one_for_each_block() -> None:
    method = find_method("renyi-inf_evit@2_shannon-merge")
    config = PruneConfig(method=method.name, blocks=(1, 2, 3))
    assert config == PruneConfig(method=("renyi-inf", "evit@2", "shannon-merge"), blocks=(1, 2, 3))
    assert config.coverage == (None, 2, None)
    assert config.label == method.label == "Rényi, order ∞ → EViT, the best of each 2 × 2 → Shannon, merging"
    assert (method.order, method.drops_by_entropy, method.takes_keep_rate) == (None, False, True)
    assert stand_in(method.name) is None
    assert find_method("random_evit").is_random
    assert find_method("shannon_shannon").needs_scores
    methods = {"own": Method("own", "Own", "Learns.", trained=True), "shannon": find_method("shannon")}
    trained = {
        name: composed(name, methods.__getitem__).trained for name in ("shannon_own", "own_shannon", "shannon_shannon")
    }
    assert trained == {"shannon_own": True, "own_shannon": True, "shannon_shannon": False}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("evit@", "side of a cell"),
        ("evit@1", "at least 2"),
        ("evit@2@2", "side of a cell"),
        ("tome@2", "does not choose by scores"),
        ("evit_tome", "must share a schedule"),
        ("evit_", "a method is one of"),
        ("evit_nothing", "but got 'nothing'"),
    ],
)
def test_names_whose_parts_do_not_fit_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_method(name)


def test_a_registered_name_has_no_parts() -> None:
    with pytest.raises(ValueError, match="join the parts of a name"):
        register_method(Method("a_b", "A and b", ""))


def test_groups_stand_for_the_registered_methods(monkeypatch):
    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))
    register_method(Method("taught", "Taught", "", trained=True))
    every = expanded_methods(["all"])
    assert every == ("dense", *(name for name in METHODS if name != "dtop"))  # which is for maps
    trained = {"dynamicvit", "cropr", "a-vit", "spvit", "taught"}
    assert expanded_methods(["evit", "training-free", "renyi-4"]) == (
        "evit", *(name for name in every if name not in {"evit", *trained}), "renyi-4",
    )  # fmt: skip
    for name in ("all", "training-free"):
        with pytest.raises(ValueError, match="has a meaning already"):
            register_method(Method(name, "Mine", ""))
