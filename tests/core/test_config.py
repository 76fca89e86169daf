"""Pruning settings: what is refused, the schedule, exact counts, and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropatch import (
    AboveZero,
    ClassAttention,
    CumulativeImportance,
    Drop,
    Fuse,
    Merge,
    Mix,
    Product,
    PruneConfig,
    Random,
    RemovePerBlock,
    Renyi,
)
from entropatch.schedule import default_blocks, exact_rate, kept_count

rates = st.one_of(
    st.floats(0, 1, exclude_min=True),
    st.integers(1, 10_000).map(lambda n: n / 10_000),
    st.sampled_from([0.7, 0.5, 0.3, 0.55, 0.1, 1 / 3, 5e-324, 1.0]),
)


# --- how many stay -----------------------------------------------------------------------------------------------


@given(rates, st.integers(1, 1_000_000))
def test_kept_count_is_the_exact_ceiling(rate: float, n: int) -> None:
    k = kept_count(exact_rate(rate), n)
    assert k == reference.kept_count(rate, n)
    assert 1 <= k <= n
    assert k - 1 < Fraction(str(rate)) * n <= k


def test_kept_count_is_exact_for_every_whole_percentage() -> None:
    """Where ρ · n is a whole number, floating point is right or one too many."""
    for percent in range(1, 101):
        rate = exact_rate(percent / 100)
        for n in range(1, 301):
            assert kept_count(rate, n) == reference.kept_count(percent / 100, n) == -(-percent * n // 100)


@pytest.mark.parametrize(
    ("rate", "n", "k"), [(0.55, 100, 55), (0.07, 100, 7), (0.3, 10, 3), (0.7, 10, 7), (0.29, 100, 29)]
)
def test_rates_are_the_decimals_that_were_written(rate: float, n: int, k: int) -> None:
    """In floating point 0.55 · 100 is 55.000000000000007, whose ceiling is 56."""
    assert kept_count(exact_rate(rate), n) == k


@pytest.mark.parametrize(
    ("rate", "counts"),
    [(0.7, [138, 97, 68]), (0.5, [98, 49, 25]), (0.3, [59, 18, 6]), (1.0, [196, 196, 196]), (0.001, [1, 1, 1])],
)
def test_the_rate_compounds_over_the_blocks(rate: float, counts: list[int]) -> None:
    n, got = 196, []
    for _ in counts:
        n = kept_count(exact_rate(rate), n)
        got.append(n)
    assert got == counts
    stages = reference.kept_originals(lambda stage, present: [0.0] * len(present), 196, [rate] * 3)
    assert [len(stage) for stage in stages] == counts


def test_no_patches_keep_none() -> None:
    assert kept_count(exact_rate(0.7), 0) == 0


# --- where -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (12, (3, 6, 9)),
        (24, (6, 12, 18)),
        (32, (8, 16, 24)),
        (40, (10, 20, 30)),
        (6, (1, 3, 4)),
        (4, (1, 2, 3)),
        (3, (0, 1, 2)),
        (2, (0, 1)),
        (1, (0,)),
    ],
)
def test_default_blocks_stand_at_the_quarters_of_the_depth(depth: int, blocks: tuple[int, ...]) -> None:
    assert default_blocks(depth) == blocks
    assert rates_of(PruneConfig(keep_rate=0.6), depth) == dict.fromkeys(blocks, 0.6)


def rates_of(config: PruneConfig, depth: int) -> dict[int, float]:
    return {stage.block: stage.keep_rate for stage in config.stages(depth)}


def test_stages_pair_blocks_with_rates() -> None:
    assert rates_of(PruneConfig(keep_rate=(0.9, 0.5), blocks=(2, 11)), 12) == {2: 0.9, 11: 0.5}
    assert rates_of(PruneConfig(keep_rate=(0.9, 0.8, 0.7)), 12) == {3: 0.9, 6: 0.8, 9: 0.7}
    assert list(rates_of(PruneConfig(blocks=(0, 5, 11)), 12)) == [0, 5, 11]


@pytest.mark.parametrize(
    ("config", "depth", "message"),
    [
        (PruneConfig(blocks=(3, 12)), 12, r"0 … 11 for a model of depth 12, but got \(3, 12\)"),
        (PruneConfig(keep_rate=(0.9, 0.8)), 12, r"one per block \(3, 6, 9\), but got 2 rates"),
        (PruneConfig(keep_rate=()), 12, r"but got 0 rates"),
        (PruneConfig(), 0, r"depth 0"),
    ],
)
def test_schedules_that_do_not_fit_the_model_are_refused(config: PruneConfig, depth: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.stages(depth)


# --- the fields --------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert PruneConfig() == PruneConfig(keep_rate=0.7, criterion=Renyi(2.0), blocks=None, reduction="drop")


def test_is_frozen_comparable_and_hashable() -> None:
    config = PruneConfig(keep_rate=[0.9, 0.8], blocks=[3, 6])  # type: ignore[arg-type]
    assert config == PruneConfig(keep_rate=(0.9, 0.8), blocks=(3, 6))
    assert hash(config) == hash(PruneConfig(keep_rate=(0.9, 0.8), blocks=(3, 6)))
    assert config != PruneConfig(keep_rate=(0.9, 0.7), blocks=(3, 6))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.keep_rate = 0.5  # type: ignore[misc]
    assert isinstance(PruneConfig(keep_rate=1).keep_rate, float)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"keep_rate": 0}, ValueError, r"keep_rate must lie in \(0, 1\], 1 keeping every patch, but got 0"),
        ({"keep_rate": -0.1}, ValueError, r"but got -0\.1"),
        ({"keep_rate": 1.0000001}, ValueError, r"but got 1\.0000001"),
        ({"keep_rate": 70}, ValueError, r"but got 70"),
        ({"keep_rate": 10**400}, ValueError, r"but got 10000"),
        ({"keep_rate": math.nan}, ValueError, r"but got nan"),
        ({"keep_rate": math.inf}, ValueError, r"but got inf"),
        ({"keep_rate": True}, TypeError, r"number in \(0, 1\], or one per block, but got True"),
        ({"keep_rate": "0.7"}, TypeError, r"but got '0\.7'"),
        ({"keep_rate": None}, TypeError, r"but got None"),
        ({"keep_rate": torch.tensor(0.7)}, TypeError, r"but got tensor"),
        ({"keep_rate": (0.7, 1.5)}, ValueError, r"but got 1\.5"),
        ({"keep_rate": (0.7, "0.5")}, TypeError, r"but got '0\.5'"),
        ({"keep_rate": (0.7, 0.5), "blocks": (3, 6, 9)}, ValueError, r"2 rates for 3 blocks \(3, 6, 9\)"),
        ({"criterion": 2.0}, TypeError, r"criterion must be a Criterion such as Renyi\(order=2\.0\), but got 2\.0"),
        ({"criterion": "renyi"}, TypeError, r"but got 'renyi'"),
        ({"criterion": Renyi}, TypeError, r"but got <class"),
        ({"blocks": 3}, TypeError, r"blocks must be a sequence of block indices such as \(3, 6, 9\), but got 3"),
        ({"blocks": "369"}, TypeError, r"but got '369'"),
        ({"blocks": {3, 6}}, TypeError, r"but got \{3, 6\}"),
        ({"blocks": ()}, ValueError, r"one or more different 0-based indices in ascending order, but got \(\)"),
        ({"blocks": (3, -1)}, ValueError, r"but got \(3, -1\)"),
        ({"blocks": (-3, 6)}, ValueError, r"but got \(-3, 6\)"),
        ({"blocks": (6, 3)}, ValueError, r"ascending order, but got \(6, 3\)"),
        ({"blocks": (3, 3)}, ValueError, r"different.*\(3, 3\)"),
        ({"blocks": (3.0, 6)}, TypeError, r"integers, but got 3\.0"),
        ({"blocks": (True,)}, TypeError, r"integers, but got True"),
        ({"reduction": "melt"}, ValueError, r"reduction must be one of .*bipartite, .*drop, .*fuse, .* but got 'melt'"),
        ({"reduction": None}, ValueError, r"reduction must be one of .*bipartite, .*drop, .*fuse, .* but got None"),
        ({"reduction": ["melt"]}, ValueError, r"but got 'melt'"),
        ({"reduction": ()}, ValueError, r"reduction must be one or one per block, but got none"),
        ({"criterion": ()}, ValueError, r"criterion must be one or one per block, but got none"),
        ({"criterion": (Renyi(), 2.0)}, TypeError, r"criterion must be a Criterion .*, but got 2\.0"),
        ({"order": (1.0, 0.0)}, ValueError, "ranks nothing"),
        ({"order": (1.0, 2.0), "blocks": (3, 6, 9)}, ValueError, r"criterion .* but got 2 criteria for 3 blocks"),
        ({"order": (1.0, 2.0), "reduction": ("drop",) * 3}, ValueError, r"2 of criterion, 3 of reduction"),
        ({"keep_rate": (0.5, 0.5), "coverage": (2,) * 3}, ValueError, r"2 of keep_rate, 3 of coverage"),
        ({"coverage": 1}, ValueError, r"at least 2, since in a cell of one patch each is the best, but got 1"),
        ({"coverage": 2.0}, TypeError, r"side of a cell in patches, or None for none, but got 2\.0"),
        ({"coverage": True}, TypeError, "but got True"),
        ({"coverage": (2, 0)}, ValueError, "but got 0"),
        ({"coverage": 2, "reduction": "bipartite"}, ValueError, "coverage=2 would have no effect"),
        ({"criterion": (Renyi(1.0),) * 2, "reduction": ("drop", "bipartite")}, ValueError, "would have no effect"),
        ({"method": ("evit", "tome")}, ValueError, "evit, tome have 2 of them"),
        ({"method": ()}, ValueError, "one name or one per block, but got none"),
        ({"method": ("evit", "shannon"), "order": 2.0}, TypeError, "own criterion"),
    ],
)
def test_fields_out_of_range_or_of_the_wrong_type_are_refused(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PruneConfig(**fields)


def test_one_value_per_block() -> None:
    config = PruneConfig(0.5, order=(math.inf, 1.0, 2.0), reduction=("drop", "merge", "fuse"), coverage=(None, 2, 3))
    assert [(stage.block, stage.criterion, stage.reduction, stage.coverage) for stage in config.stages(12)] == [
        (3, Renyi(math.inf), Drop(), None),
        (6, Renyi(1.0), Merge(), 2),
        (9, Renyi(2.0), Fuse(), 3),
    ]
    with pytest.raises(ValueError, match=r"3 criteria for 1 blocks \(0,\)"):
        config.stages(1)
    assert PruneConfig(order=(1.0, 2.0), blocks=[1, 2]).stages(4)[1].criterion == Renyi(2.0)  # type: ignore[arg-type]
    assert [stage.coverage for stage in PruneConfig(coverage=2).stages(12)] == [2, 2, 2]


def test_one_method_per_block() -> None:
    config = PruneConfig(method=("renyi-inf", "evit", "shannon-merge"), blocks=(1, 3, 6))
    assert config.criterion == (Renyi(math.inf), ClassAttention(), Renyi(1.0))
    assert config.reduction == ("drop", "fuse", "merge")
    assert config.named is None
    assert config.label == "Rényi, order ∞ → EViT → Shannon, merging"
    assert PruneConfig(method=("evit", "evit")).label == PruneConfig(method="evit").label == "EViT"


def test_what_covers_is_no_named_method() -> None:
    assert PruneConfig(method="evit", coverage=2).named is None
    assert PruneConfig(method="evit", coverage=2).label == "EViT, the best of each 2 × 2"


def test_a_named_method_is_that_method_alone() -> None:
    assert PruneConfig(order=(1.0, 2.0), coverage=2).changed(method="evit") == PruneConfig(method="evit")
    assert PruneConfig(coverage=2).changed(reduction="bipartite") == PruneConfig(reduction="bipartite")
    assert PruneConfig(coverage=2).changed(order=1.0) == PruneConfig(coverage=2, order=1.0)


# --- JSON --------------------------------------------------------------------------------------------------------

configs = st.builds(
    PruneConfig,
    keep_rate=st.one_of(rates, st.lists(rates, min_size=2, max_size=2).map(tuple)),
    criterion=st.one_of(
        st.builds(Renyi, st.one_of(st.floats(1e-300, 1e300), st.just(math.inf), st.integers(1, 9))),
        st.just(ClassAttention()),
        st.builds(Random, st.one_of(st.none(), st.integers())),
        st.builds(Mix, st.just(ClassAttention()), st.builds(Renyi, st.floats(0.1, 9)), st.floats(0, 1)),
        st.just((Renyi(math.inf), Mix(Product(ClassAttention(), Renyi(2.0)), Random(3), 0.3))),
    ),
    blocks=st.one_of(st.none(), st.sampled_from([(3, 6), (0, 11)])),
    reduction=st.sampled_from(["drop", "fuse", ("merge", "fuse"), (Merge(proportional=False), "drop")]),
    coverage=st.sampled_from([None, 2, (None, 3)]),
)


@given(configs)
def test_json_round_trip(config: PruneConfig) -> None:
    again = PruneConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)


def test_json_is_plain(tmp_path: Path) -> None:
    config = PruneConfig(keep_rate=(0.9, 0.5), criterion=Renyi(math.inf), blocks=(3, 6), reduction="fuse")
    data = json.loads(config.to_json(), parse_constant=pytest.fail)
    assert set(data) == {field.name for field in dataclasses.fields(PruneConfig)} | {"version"}
    assert data["version"] == 2
    assert data["keep_rate"] == [0.9, 0.5]
    assert data["criterion"] == {"name": "Renyi", "order": "inf"}
    assert data["blocks"] == [3, 6]
    assert data["reduction"] == "fuse"
    path = tmp_path / "prune.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert PruneConfig.load(path) == config
    assert PruneConfig.load(str(path)) == config


def test_a_dictionary_is_read_as_its_json_is() -> None:
    config = PruneConfig(keep_rate=(0.9, 0.5), criterion=Renyi(math.inf), blocks=(3, 6), reduction="fuse")
    saved = config.to_dict()
    assert saved == json.loads(config.to_json())
    assert PruneConfig.from_dict(saved) == config
    assert saved == config.to_dict()  # reading it left it as it was
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"order|nested too deep"):
        PruneConfig.from_dict({"criterion": {"name": "Renyi", "order": deep}})


def test_json_fields_left_out_take_their_defaults() -> None:
    assert PruneConfig.from_json("{}") == PruneConfig()
    assert PruneConfig.from_json('{"criterion": {"name": "Renyi"}, "blocks": null}') == PruneConfig()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "Expecting value"),
        ('{"keep_rate": 0.7', ValueError, "delimiter"),
        ("[0.7]", ValueError, r"must be a JSON object, but got list"),
        ("null", ValueError, r"must be a JSON object, but got NoneType"),
        (
            '{"keep_rates": 0.7, "alpha": 2}',
            ValueError,
            r"fields keep_rate, criterion, blocks, reduction, schedule, backend, coverage, method, r, order, but got "
            r"\['alpha', 'keep_rates'\]",
        ),
        ('{"criterion": {"name": "Entropy"}}', ValueError, r"one of .*Renyi.*but got 'Entropy'"),
        ('{"criterion": "Renyi"}', ValueError, r"object such as"),
        ('{"criterion": null}', ValueError, r"object such as"),
        ('{"criterion": {"name": "Renyi", "alpha": 2}}', ValueError, r"fields order, but got alpha"),
        ('{"keep_rate": NaN}', ValueError, r"but got nan"),
        ('{"keep_rate": "0.7"}', TypeError, r"but got '0\.7'"),
        ('{"blocks": 3}', TypeError, r"but got 3"),
    ],
)
def test_json_that_is_not_a_setting_is_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PruneConfig.from_json(text)


def test_numpy_numbers_are_numbers() -> None:
    config = PruneConfig(keep_rate=np.float64(0.5), criterion=Renyi(np.float32(2)), blocks=(np.int64(3),))
    assert config == PruneConfig(keep_rate=0.5, criterion=Renyi(2.0), blocks=(3,))
    assert PruneConfig.from_json(config.to_json()) == config
    assert Random(np.int64(7)) == Random(7)


# --- what would have no effect ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 3, "keep_rate": 0.5}, r"RemovePerBlock\(r=3, .* would have no effect; .*schedule=RemovePerBlock\(\)"),
        ({"r": 3, "keep_rate": 1.0}, "keep_rate=1.0 would have no effect"),
        ({"schedule": CumulativeImportance(), "keep_rate": 0.5}, r"would have no effect; .* schedule=KeepRate\(\)"),
        ({"reduction": "bipartite", "order": 3.0}, "'bipartite' asks no criterion"),
        ({"method": "tome", "order": 2.0}, "'bipartite' asks no criterion, so order=2.0"),
        ({"method": "ats", "coverage": 2}, "InverseTransform.* says which patches stay, so coverage=2"),
        ({"method": "ats@2"}, "ats says itself which patches stay"),
        ({"method": "a-vit", "coverage": 2}, "AboveZeroEverywhere.* says which patches stay"),
        ({"order": 2.0, "schedule": AboveZero()}, r"AboveZero\(.*decides to keep, and Renyi\(order=2.0\) only ranks"),
        ({"reduction": "bipartite", "schedule": CumulativeImportance()}, "reads the scores .* 'bipartite' has none"),
        ({"method": "evit", "order": 2.0}, "has its own criterion"),
        ({"method": "evit", "r": 3}, "has its own schedule"),
        ({"method": "evit", "reduction": "drop"}, "give one of the two"),
    ],
)
def test_what_would_have_no_effect_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        PruneConfig(**fields)


@pytest.mark.parametrize("method", ["tome", "spvit", "a-vit"])
def test_an_order_that_the_rest_of_a_setting_would_not_ask_is_refused_in_a_change(method: str) -> None:
    """Even the default one: `prune_(model, order=2.0)` after such a method would change nothing, or prune nothing."""
    with pytest.raises(ValueError, match=r"would have no effect|only ranks them"):
        PruneConfig(method=method).changed(order=2.0)
    assert PruneConfig(method=method).changed(method="renyi-2") == PruneConfig(order=2.0)


def test_a_keep_rate_beside_a_schedule_of_its_own_is_refused_in_a_change_too() -> None:
    """Even the default one, which in a whole setting cannot be told from none."""
    config = PruneConfig(method="tome", r=13)
    for rate in (0.5, 0.7):
        with pytest.raises(ValueError, match="would have no effect"):
            config.changed(keep_rate=rate)
    assert config.changed(keep_rate=0.5, schedule=RemovePerBlock()).keep_rate == 0.5
    assert config.changed(keep_rate=0.5, method="evit") == PruneConfig(0.5, method="evit")


def test_another_kind_of_schedule_chooses_its_own_blocks() -> None:
    """However it is spelt; the same kind keeps those that were given."""
    config = PruneConfig(blocks=(1, 2))
    changes = [{"method": "tome"}, {"method": "tome", "r": 2}, {"r": 2}, {"schedule": RemovePerBlock(2)}]
    for change in changes:
        assert config.changed(**change).blocks is None
        assert config.changed(**change, blocks=(3,)).blocks == (3,)
    assert config.changed(method="evit").blocks == (1, 2)
    assert PruneConfig(r=2, blocks=(1, 2)).changed(r=3).blocks == (1, 2)


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"order": 1.0}, "Shannon"),
        ({"order": 3.0, "reduction": "fuse"}, "Rényi, order 3, fused"),
        ({"method": "tome", "keep_rate": 0.5}, "ToMe"),
        ({"method": "tome", "r": 3}, "ToMe, 3 tokens per block"),
        ({"method": "tome", "r": (1, 2)}, "ToMe, 1, 2 tokens in its blocks"),
        ({"schedule": CumulativeImportance(0.8)}, "Rényi, order 2, 0.8 of each image's importance"),
        ({"criterion": Random(3), "reduction": "merge"}, "Random (seed 3), merged"),
    ],
)
def test_labels_tell_settings_apart(fields: dict[str, Any], label: str) -> None:
    assert PruneConfig(**fields).label == label
