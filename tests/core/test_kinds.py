"""What is saved by kind: private kinds, and kinds that belong to two classes, are refused and never mixed up."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import entropatch.surgery.check  # noqa: F401  # which has a private criterion
from entropatch import BipartiteMerge, BlockAttention, Criterion, Merge, PruneConfig, Reduction, RemovePerBlock, Renyi
from entropatch.schedule import Schedule


def made(module: str, name: str = "Twice", **attributes: Any) -> Any:
    """A criterion as some module would define it."""
    space = {"__module__": module, "__qualname__": name, "importance": lambda self, attention: attention.q[:, 0, :, 0]}
    return dataclass(frozen=True)(type(name, (Criterion,), space | attributes))


def test_two_classes_of_one_name_are_both_of_use_but_not_saved() -> None:
    """None overwrites the other in silence: what is ambiguous is refused when it is saved or loaded."""
    first, second = made("one_place"), made("another_place")
    for kind in (first, second):
        PruneConfig(criterion=kind())
        with pytest.raises(TypeError, match=r"criterion Twice is defined twice, by another_place.Twice and one_place"):
            PruneConfig(criterion=kind()).to_json()
    with pytest.raises(ValueError, match=r"defined twice.* give one of them another kind"):
        PruneConfig.from_json('{"criterion": {"name": "Twice"}}')


def test_another_kind_tells_them_apart() -> None:
    first, second = made("one_place", "Thrice"), made("another_place", "Thrice", kind="thrice-other")
    for kind in (first, second):
        config = PruneConfig(criterion=kind())
        assert PruneConfig.from_json(config.to_json()) == config
        assert type(PruneConfig.from_json(config.to_json()).criterion) is kind


def test_a_class_defined_anew_in_its_place_replaces_itself() -> None:
    made("notebook", "Again")
    again = made("notebook", "Again")
    assert type(PruneConfig.from_json(PruneConfig(criterion=again()).to_json()).criterion) is again


@pytest.mark.parametrize("name", ["_EveryOther", "_", "__class__"])
def test_private_kinds_are_neither_loaded_nor_offered(name: str) -> None:
    with pytest.raises(ValueError, match=f"criterion must be one of .*but got '{name}'") as error:
        PruneConfig.from_json(json.dumps({"criterion": {"name": name}}))
    assert "_EveryOther" not in str(error.value).split("but got")[0]


def test_private_kinds_are_not_saved() -> None:
    with pytest.raises(TypeError, match="begins with an underscore is private"):
        made("somewhere", "_Hidden")().to_dict()


def test_the_names_of_ours_stay_ours_in_every_family() -> None:
    for family, name in ((Criterion, "Renyi"), (Reduction, "drop"), (Schedule, "KeepRate")):
        with pytest.raises(TypeError, match=f"must not be called {name}, as entropatch's own"):
            type(name, (family,), {"__module__": "elsewhere", "kind": name})


@dataclass(frozen=True)
class Nested(Criterion):
    """Holds other criteria, as a mixture does."""

    kind: ClassVar[str] = "test-nested"
    parts: tuple[Criterion, ...] = (Renyi(1.0),)

    def importance(self, attention: BlockAttention) -> Tensor:
        return torch.stack([part.importance(attention) for part in self.parts]).mean(0)


def test_criteria_inside_criteria_are_saved() -> None:
    config = PruneConfig(criterion=Nested((Renyi(2.0), Renyi(float("inf")))))
    assert PruneConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("reduction", ["drop", "fuse", "merge", Merge(proportional=False), BipartiteMerge()])
def test_reductions_are_saved_by_their_names_or_with_their_fields(reduction: Any) -> None:
    config = PruneConfig(reduction=reduction)
    saved = config.to_dict()["reduction"]
    assert PruneConfig.from_json(config.to_json()) == config
    assert isinstance(saved, str) == (reduction != Merge(proportional=False))


def test_files_of_the_first_version_load() -> None:
    """As 0.1.0 wrote them: without a version and without a schedule."""
    text = '{"keep_rate": [0.9, 0.5], "criterion": {"name": "Renyi", "order": "inf"}, "blocks": [3, 6], '
    text += '"reduction": "fuse", "backend": "auto"}'
    expected = PruneConfig((0.9, 0.5), Renyi(float("inf")), (3, 6), "fuse")
    assert PruneConfig.from_json(text) == expected


def test_short_forms_in_a_file() -> None:
    assert PruneConfig.from_json('{"method": "evit", "keep_rate": 0.5}') == PruneConfig(0.5, method="evit")
    assert PruneConfig.from_json('{"order": "inf"}') == PruneConfig(order=float("inf"))
    assert PruneConfig.from_json('{"r": [1, 2]}') == PruneConfig(schedule=RemovePerBlock((1, 2)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 3}', "version of a pruning config must be 1 or 2, but got 3"),
        ('{"version": "1"}', "but got '1'"),
        ('{"criterion": {"name": "Renyi", "order": 1' + "0" * 400 + "}}", "order"),
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"criterion": {"name": "Renyi", "order": ' + "[" * 1000 + "]" * 1000 + "}}", "order|nested too deep"),
        ('{"keep_rate": 0.5', "delimiter"),
        ('{"reduction": {"name": "drop", "proportional": true}}', "fields"),
        ('{"schedule": {"name": "KeepRates"}}', "schedule must be one of .*CumulativeImportance.*KeepRate"),
        ('{"method": "renyi-x"}', "an order must be a number"),
        ('{"r": -1}', "at least 0 tokens per block"),
        ('{"r": 1' + "0" * 400 + "}", "at most 1000000000 tokens per block, but got one of 401 digits"),
        ('{"schedule": {"name": "RemovePerBlock", "r": [2, 1' + "0" * 400 + "]}}", "at most 1000000000 tokens"),
        ('{"method": {"name": "evit"}}', "a method is one of .*, but got {'name': 'evit'}"),
    ],
)
def test_errors_of_load_name_the_file(text: str, message: str, tmp_path: Any) -> None:
    path = tmp_path / "prune.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        PruneConfig.load(path)
    assert str(error.value).startswith(f"{path} holds no pruning config: ")
    assert len(str(error.value).splitlines()) == 1


@given(st.data())
def test_damaged_files_give_the_promised_error(data: st.DataObject) -> None:
    """Whatever stands in a place of the file."""
    saved = PruneConfig(0.5, method="tome").to_dict() | {"order": None, "method": None, "r": None}
    values = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.just(10**400),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
        max_leaves=5,
    )
    saved[data.draw(st.sampled_from(sorted(saved)))] = data.draw(values)
    with contextlib.suppress(ValueError, TypeError):
        PruneConfig.from_json(json.dumps(saved))


def test_saving_is_whole_or_not_at_all(tmp_path: Any) -> None:
    path = tmp_path / "settings" / "prune.json"
    config = PruneConfig(keep_rate=(0.9, 0.5), blocks=(3, 6), order=1.0)
    config.save(path)
    assert PruneConfig.load(path) == config
    with pytest.raises(TypeError, match="must be a dataclass"):
        PruneConfig(criterion=_bare()).save(path)
    assert PruneConfig.load(path) == config
    assert [entry.name for entry in path.parent.iterdir()] == ["prune.json"]


def _bare() -> Criterion:
    class Bare(Criterion):
        def importance(self, attention: BlockAttention) -> Tensor:
            return attention.q[:, 0, :, 0]

    return Bare()
