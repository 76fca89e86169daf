"""The page's calibration, dense beside pruned, and the Python to copy: each against the library called by hand."""

from __future__ import annotations

import base64
import math
import re
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from test_app import load, photograph
from torch import nn

import entropatch
from entropatch import (
    ClassAttention,
    CumulativeImportance,
    Merge,
    Mix,
    Product,
    PruneConfig,
    Random,
    Renyi,
    prune_,
    pruning_config,
)
from entropatch.app import Explorer, Setting, calibrating, interface, panels
from entropatch.app.answering import Said, said_html
from entropatch.app.as_code import config_code
from entropatch.app.calibrating import SHARE, SPEEDUP, views
from entropatch.calibration import Goal, calibrated
from entropatch.data.images import to_tensor
from entropatch.data.preprocessing import Preprocessing, carry
from entropatch.measure import count_flops
from entropatch.models.card import ATTRIBUTE, ModelCard
from entropatch.models.class_names import class_names

GIVEN = PruneConfig(
    (0.9, 0.6),
    criterion=(Renyi(math.inf), Mix(ClassAttention(), Renyi(1.0), 0.25)),
    blocks=(1, 4),
    reduction=("drop", "merge"),
    coverage=(2, None),
)
SETTINGS = [
    GIVEN,
    PruneConfig(),
    PruneConfig(0.5, method="evit"),
    PruneConfig(1.0, order=0.3, blocks=(2,), backend="reference"),
    PruneConfig((0.5,), criterion=Random(3), blocks=(2,)),
    PruneConfig(r=(3, 2), blocks=(1, 2)),
    PruneConfig(method="tome", r=5),
    PruneConfig(schedule=CumulativeImportance(share=0.7), criterion=Product(ClassAttention(), Renyi(math.inf))),
    PruneConfig(0.4, criterion=Renyi(2.0), reduction=Merge(), coverage=3),
]


def headed(name: str) -> tuple[nn.Module, str]:
    model, source = load(name)
    torch.manual_seed(2)
    model.reset_classifier(12)
    nn.init.normal_(model.get_classifier().weight, std=0.5)
    return model, source


@pytest.fixture
def explorer() -> Explorer:
    return Explorer(load, {"one": photograph(0), "two": photograph(1)}, repeats=1)


# --------------------------------------------------------------------------------------------------- Python to copy


@pytest.mark.parametrize("config", SETTINGS, ids=lambda config: config.label)
def test_the_code_makes_an_equal_setting(config: PruneConfig) -> None:
    text, modules = config_code(config)
    assert "from_json" not in text
    space: dict[str, Any] = {}
    exec("".join(f"import {module}\n" for module in ["entropatch", *modules]) + f"config = {text}", space)
    assert space["config"] == config
    assert max(map(len, f"config = {text}".splitlines())) <= 100


def test_what_no_expression_says_is_read_from_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entropatch.app.as_code._literal", lambda value, modules: "0.123")
    text, modules = config_code(GIVEN)
    assert modules == []
    assert eval(text, {"entropatch": entropatch}) == GIVEN


def test_code_and_file_of_a_calibrated_setting_are_the_setting(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = panels.use("m", explorer.crop("m", "one"), Setting("Calibrated: 50%", None, GIVEN))
    model = load("m")[0]
    monkeypatch.setattr(timm, "create_model", lambda *given, **how: model)
    space: dict[str, Any] = {}
    exec(unescape(re.findall(r"<code>(.*?)</code>", html, re.DOTALL)[0]), space)
    assert pruning_config(space["model"]) == space["config"] == GIVEN
    data = re.findall(r'href="data:application/json;base64,(.*?)"', html)[0]
    assert PruneConfig.from_json(base64.b64decode(data).decode()) == GIVEN
    assert 'download="calibrated.json"' in html


# ------------------------------------------------------------------------------------------------ dense beside pruned


def test_the_five_classes_are_those_of_the_models() -> None:
    explorer = Explorer(headed, {"one": photograph(0)}, repeats=1)
    said = explorer.say("m", "one", Setting("renyi-2", 0.3))
    model = headed("m")[0]
    images = to_tensor(photograph(0), model)[None]
    with torch.no_grad():
        dense = model(images)[0].softmax(-1)
        pruned = prune_(model, PruneConfig(0.3))(images)[0].softmax(-1)
    for got, expected in ((said.dense, dense), (said.pruned, pruned)):
        places = expected.argsort(descending=True)[:5].tolist()
        assert [name for name, _ in got] == [f"class {place}" for place in places]
        assert [value for _, value in got] == pytest.approx([float(expected[place]) for place in places], abs=1e-5)
    assert said.loss == pytest.approx(float((dense * (dense / pruned).log()).sum()), rel=1e-3)
    assert said.loss > 0.01
    html = said_html(said)
    assert f"<td>{100 * said.pruned[0][1]:.1f}</td>" in html
    assert html.count("<tr>") == 6


def test_without_a_head_it_is_the_change_of_the_feature(explorer: Explorer) -> None:
    said = explorer.say("m", "one", Setting("renyi-2", 0.3))
    model = load("m")[0]
    images = to_tensor(photograph(0), model)[None]
    with torch.no_grad():
        dense, pruned = model(images), prune_(model, PruneConfig(0.3))(images)
    assert said.dense == said.pruned == ()
    assert said.loss == pytest.approx(1 - float(F.cosine_similarity(dense, pruned)), abs=1e-5)
    assert f"changes by {said.loss:.4f}" in said_html(said)


def test_names_of_classes_are_no_html_and_come_from_the_model() -> None:
    assert "<b>" not in said_html(Said((("<b>x", 0.5),), (("y", 0.4),), 0.1))
    assert class_names(timm.create_model("test_vit"))(281) == "tabby, tabby cat"
    assert class_names(timm.create_model("test_vit", num_classes=7))(3) == "class 3"
    other = nn.Module()
    other.config = type("C", (), {"id2label": {0: "hen", 1: "fox"}})()  # pyright: ignore
    assert [class_names(other)(i) for i in (1, 2)] == ["fox", "class 2"]
    other.config.id2label = {0: "LABEL_0"}  # pyright: ignore
    assert class_names(other)(0) == "class 0"


# -------------------------------------------------------------------------------------------------------- calibrating


def test_few_images_are_seen_in_crops_and_many_as_they_are() -> None:
    images = [photograph(i) for i in range(3)]
    seen = views(images, 10)
    assert len(seen) == 10
    assert seen[:3] == images
    assert all(one.width < 200 and one.height < 150 for one in seen[3:])
    assert [one.tobytes() for one in seen] == [one.tobytes() for one in views(images, 10)]
    assert views(images, 2) == images
    assert len(views(images * 100)) == calibrating.MOST_IMAGES
    assert views([]) == []


def test_a_calibration_of_the_page_is_the_library_s_and_joins_the_menu(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entropatch.calibration.calibrating.offered_criteria", lambda: [Renyi(1.0), Renyi(2.0)])
    monkeypatch.setattr("entropatch.calibration.comparing.compared_methods", lambda: ["evit"])
    monkeypatch.setattr("entropatch.calibration.comparing.spread_within", lambda *_: {})
    told: list[tuple[str, int, int]] = []
    settings: dict[str, Any] = {"effort": 0.0, "blocks": (1, 4), "most_blocks": 1}
    extra = [photograph(5)]
    label, html = explorer.calibrate("m", SHARE, 0.6, pictures=extra, on_step=lambda *one: told.append(one), **settings)
    assert label == "Calibrated: 60% of the GFLOPs"
    model = load("m")[0]
    dense = count_flops(model, torch.zeros(1, 3, 96, 96)).total / 1e9
    seen = views([*extra, photograph(0), photograph(1)])
    expected = calibrated(model, seen, Goal(gflops=0.6 * dense), batch_size=8, **settings)
    assert explorer.calibrations("m") == {label: expected.config}
    assert "<caption>m, 96×96 pixels</caption>" in html
    assert {what for what, _, _ in told} >= {"single blocks", "judging schedules", "held out"}
    for row in expected.rows:
        assert f"<td>{row.label}</td><td>{row.cost:.3g}</td>" in html
    assert "with 3 images 21 are crops of them" in html
    assert interface.offered(explorer, "m")[0] == label
    setting = interface.setting_of(explorer, "m", 0.7, label, 3)
    assert setting.pruning() == expected.config
    shown = explorer.see("m", "two", setting)
    assert shown.stages.blocks == expected.config.blocks
    assert shown.gflops == expected.rows[0].cost
    assert shown.gflops <= 0.6 * dense
    both = (setting, Setting("random", 0.5))
    *_, last = interface.answers(explorer, "m", "two", both)
    assert label in last[1]
    assert "calibrated.json" in last[2]
    assert "block" in shown.method.description
    assert interface.setting_of(explorer, "m", 0.7, interface.RENYI, 3) == Setting("shannon", 0.7)


def found(monkeypatch: pytest.MonkeyPatch, explorer: Explorer, model: str, config: PruneConfig) -> str:
    """What the menu calls a calibration at 80 % that found this setting."""
    monkeypatch.setattr("entropatch.app.explorer.calibrated", lambda *_, **__: SimpleNamespace(config=config))
    monkeypatch.setattr("entropatch.app.explorer.result_html", lambda *_: "")
    return explorer.calibrate(model, SHARE, 0.8)[0]


def test_a_calibration_is_offered_for_its_own_model_only(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    by_class, other = PruneConfig(0.8, criterion=ClassAttention()), PruneConfig(0.7, order=1.0)
    label = found(monkeypatch, explorer, "m", by_class)
    usual = interface.criteria()
    assert interface.offered(explorer, "plain") == usual  # it has no class token
    with pytest.raises(ValueError, match=f"'{label}' is none of 'plain'; choose another criterion"):
        interface.setting_of(explorer, "plain", 0.7, label, 3)
    assert found(monkeypatch, explorer, "plain", other) == label
    for model, expected in (("m", by_class), ("plain", other)):
        assert interface.offered(explorer, model) == [label, *usual]
        assert interface.setting_of(explorer, model, 0.7, label, 3).pruning() == expected


@pytest.mark.parametrize("change", ["weights", "source", "size", "library"])
def test_a_calibration_is_not_offered_for_a_model_of_its_name_that_is_another(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = False

    def loading(name: str) -> tuple[nn.Module, str]:
        model, source = load(name)
        if name == "m" and changed:
            source += ", another file" if change == "source" else ""
            if change == "weights":
                next(model.parameters()).data += 0.5
            elif change == "size":
                carry(model, Preprocessing(lambda image: torch.zeros(3, 96, 80), (96, 80), (0.5,) * 3, (0.5,) * 3))
            elif change == "library":
                vars(model)[ATTRIBUTE] = ModelCard("another", name, "")
        return model, source

    explorer = Explorer(loading, {"one": photograph(0)}, repeats=1)
    label = found(monkeypatch, explorer, "m", GIVEN)
    for name in ("plain", "a", "b", "m"):  # more than are held
        explorer.source(name)
    assert interface.offered(explorer, "m")[0] == label  # it is the same again
    changed = True
    for name in ("plain", "a", "b"):
        explorer.source(name)
    assert label not in interface.offered(explorer, "m")


def test_each_block_s_map_is_by_its_own_criterion_and_one_that_asks_for_none_has_none(explorer: Explorer) -> None:
    given = PruneConfig((0.6, 0.5), criterion=(Renyi(1.0), Renyi()), reduction=("merge", "bipartite"), blocks=(1, 4))
    seen = explorer.see("m", "one", Setting("given", None, given))
    alone = explorer.see("m", "one", Setting("given", None, PruneConfig(0.6, order=1.0, blocks=(1,))))
    assert seen.importance is not None
    assert alone.importance is not None
    assert (seen.importance[0] == alone.importance[0]).all()
    assert not seen.importance[1].any()
    html = panels.panel(explorer.crop("m", "one"), seen, None)
    assert re.findall(r"<figcaption>(.*?)</figcaption>", html)[:2] == ["block 1", "block 4: no scores"]


def test_a_budget_that_nothing_meets_leaves_the_menu_as_it_was(explorer: Explorer) -> None:
    with pytest.raises(ValueError, match="the budget must be one that some setting meets"):
        explorer.calibrate("m", SHARE, 0.001, effort=0.0, blocks=(6,))
    assert explorer.calibrations("m") == {}
    assert calibrating.goal_of(SPEEDUP, 1.5, 4.0) == Goal(speedup=1.5)
    assert calibrating.goal_of(SHARE, 0.5, 4.0) == Goal(gflops=2.0)
