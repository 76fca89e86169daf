"""Sets of blocks, and settings given as wholes, in a search: tried, noted, budgeted, shown, recommended."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_search import command, free, records, weights  # noqa: F401
from test_search_report import made, squeezed
from test_search_study import COMPARED, opened
from training_case import CPU, SPEC, data, recipe

import entropatch
from entropatch import CumulativeImportance, PruneConfig, Random, Renyi
from entropatch.config import method_config
from entropatch.measure import count_flops
from entropatch.measure.evaluation import Speed, evaluate
from entropatch.search import BudgetError, SearchSettings, StudyMismatchError, findings, search, write_report
from entropatch.search.accuracy_tables import table_1, table_2
from entropatch.search.points import Point
from entropatch.search.recommendation import recommend, recommended_config
from entropatch.search.scaling import is_scalable, scaled
from entropatch.search.study import enqueue, point_of, quiet
from entropatch.search.summaries import summaries_of
from entropatch.train import ModelSpec

optuna = pytest.importorskip("optuna")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

CALIBRATED = PruneConfig((0.8, 0.5), criterion=(Renyi(math.inf), Renyi(1.0)), blocks=(1, 2), coverage=(2, None))
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used")


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


def gflops(settings, config):
    model = entropatch.prune_(settings.spec.build(None, 16, strict=True), config)
    return count_flops(model, torch.zeros(1, 3, 16, 16)).total / 1e9


# ------------------------------------------------------------------------------------------------------ whole searches


def test_each_set_and_each_config_is_what_evaluate_says_and_a_study_of_before_goes_on_with_them(
    weights,  # noqa: F811
    tmp_path,
    one_thread,
):
    common = {"methods": ("dense", "random", "shannon"), "keep_rates": (0.4,), "blocks": (1,)}
    assert search(free(weights, **common), data(), tmp_path, runtime=CPU).tried == 3
    settings = free(weights, **common, more_blocks=((2,), (1, 3)), configs={"calibrated": CALIBRATED})
    assert search(settings, data(), tmp_path, runtime=CPU).tried == 5  # what is new
    assert search(settings, data(), tmp_path, runtime=CPU).tried == 0
    expected = {"dense": None, "calibrated": CALIBRATED}
    for blocks in ((1,), (2,), (1, 3)):
        expected |= {f"{name} {blocks}": method_config(name, 0.4, blocks) for name in ("random", "shannon")}
    model = settings.spec.build(None, 16, strict=True)
    slow = {record["name"]: record for record in evaluate(model, data(), expected, image_size=16)}
    assert len({record["top1"] for record in slow.values()}) > 2
    found = records(tmp_path)
    assert len(found) == 8
    for record in found:
        own = record.get("blocks") or "1"
        key = f"{record['method']} ({own}{',' * (len(own) == 1)})"
        twin = slow[record["method"] if record["method"] in slow else key]
        assert [record[name] for name in ("top1", "top5", "gflops")] == [twin[k] for k in ("top1", "top5", "gflops")]
    table = (tmp_path / "table-1.md").read_text()
    assert "The study's own blocks: 1." in table
    assert "At the study's own blocks:" in table
    assert "At blocks 1, 3:" in table
    about = json.loads((tmp_path / "search.json").read_text())["about"]
    assert set(about["other blocks"].split("; ")) == {"1, 3", "2"}
    assert about["setting: calibrated"].endswith("keep rate 0.8/0.5")
    with pytest.raises(StudyMismatchError, match="blocks"):
        search(free(weights, **(common | {"blocks": (2,)}), more_blocks=((1,),)), data(), tmp_path, runtime=CPU)
    other = PruneConfig((0.8, 0.4), blocks=(1, 2))
    with pytest.raises(StudyMismatchError, match="has another setting called calibrated; a setting is called by its"):
        search(free(weights, **common, configs={"calibrated": other}), data(), tmp_path, runtime=CPU)


@pytest.mark.parametrize("more", [(), pytest.param(((2,),), marks=pytest.mark.slow)], ids=["one set", "two sets"])
def test_under_a_budget_each_set_has_its_own_rate_and_a_config_is_scaled_to_it(weights, tmp_path, one_thread, more):  # noqa: F811
    target = 0.0021
    fields = {"methods": ("dense", "shannon"), "blocks": (1,), "more_blocks": more, "target_gflops": target}
    settings = free(weights, **fields, configs={"calibrated": CALIBRATED})
    search(settings, data(), tmp_path, runtime=CPU)
    dense, *named, given = records(tmp_path)
    assert (dense["method"], given["method"]) == ("dense", "calibrated")
    assert [one["method"] for one in named] == ["shannon"] * (1 + len(more))
    rates = [one["keep_rate"] for one in named]
    assert rates == sorted(set(rates), reverse=True)  # later, so more must go
    for record, blocks in zip(named, ((1,), *more), strict=True):
        assert record["gflops"] == gflops(settings, method_config("shannon", record["keep_rate"], blocks)) <= target
        assert gflops(settings, method_config("shannon", round(record["keep_rate"] + 0.0001, 4), blocks)) > target
    rates = tuple(float(text) for text in given["keep_rates"].split("/"))
    assert given["gflops"] == gflops(settings, PruneConfig(rates, blocks=(1, 2))) <= target
    # The proportions in log ρ stay, and no larger rates with them meet the budget.
    powers = [math.log(rate) / math.log(before) for rate, before in zip(rates, (0.8, 0.5), strict=True)]
    assert powers[0] == pytest.approx(powers[1], abs=0.01)
    larger = tuple(round(rate**0.97, 3) for rate in rates)
    assert gflops(settings, PruneConfig(larger, blocks=(1, 2))) > target
    table = " ".join((tmp_path / "table-1.md").read_text().split())
    assert not more or f"| Shannon at 2 | {named[1]['keep_rate']:.6g} |" in table
    assert f"| calibrated | {given['keep_rates']} |" in table
    assert search(settings, data(), tmp_path, runtime=CPU).tried == 0
    less = free(weights, **(fields | {"target_gflops": 1e-5, "methods": ("dense",)}), configs=settings.configs)
    with pytest.raises(BudgetError, match="calibrated: the budget must be one that some keep rate meets"):
        search(less, data(), tmp_path / "b", runtime=CPU)


def test_a_config_is_fine_tuned_as_it_is(tmp_path, one_thread):
    settings = SearchSettings(
        SPEC,
        scope="finetuned",
        methods=("dense",),
        keep_rates=(0.6,),
        recipe=recipe(epochs=1),
        speed=Speed(batch_size=2, repeats=1, warmup=0),
        configs={"calibrated": CALIBRATED},
    )
    search(settings, data(), tmp_path, runtime=CPU)
    run = json.loads((tmp_path / "runs/calibrated-seed-0/run.json").read_text())
    assert PruneConfig.from_json(json.dumps(run["prune"])) == CALIBRATED
    assert [record["label"] for record in records(tmp_path)] == ["Dense", "calibrated"]


def test_from_the_command_line_with_blocks_and_a_calibration(weights, tmp_path, one_thread):  # noqa: F811
    CALIBRATED.save(tmp_path / "calibrated.json")
    output = ["--output", tmp_path / "out", "--weights", weights, "--test-limit", "40", "--device", "cpu"]
    output += ["--workers", "0", "--speed-batch-size", "2", "--repeats", "1"]
    options = ["--methods", "dense,shannon", "--keep-rates", "0.5", "--blocks", "1", "--blocks", "1,2"]
    options += ["--config", tmp_path / "calibrated.json"]
    shown = command(*output, *options)
    assert shown.exit_code == 0, shown.output
    assert "4 of 4 settings are finished" in shown.output
    assert "| calibrated" in shown.output
    for more, message in (
        (["--blocks", "1,2"], "but (1, 2) is there twice"),
        (["--blocks", "default"], "the default ones stand first or not at all"),
        (["--config", tmp_path / "none.json"], "none.json"),
        (["--config", tmp_path / "calibrated.json"], "where files have one name, but two are called"),
    ):
        shown = command(*output, *options, *more)
        assert (shown.exit_code, message in shown.output) == (2, True), shown.output
    shown = command("--report", "--output", tmp_path / "out")
    assert shown.exit_code == 0, shown.output


# --------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": (1,), "more_blocks": ((1,),)}, r"but \(1,\) is there twice"),
        ({"more_blocks": ((2, 1),)}, "ascending order"),
        ({"more_blocks": ((1, 2),), "methods": ("evit_shannon_shannon",)}, "per block"),
        ({"configs": {"evit": CALIBRATED}}, "otherwise than a method, but got 'evit'"),
        ({"configs": {"../a": CALIBRATED}}, "letters, digits"),
        ({"configs": {"a": PruneConfig(r=3)}, "target_gflops": 1.0}, "a has none below 1 or another schedule"),
        ({"configs": {"a": PruneConfig(1.0)}, "target_gflops": 1.0}, "a has none below 1"),
    ],
)
def test_sets_and_configs_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(ModelSpec("test_vit"), **({"methods": ("dense", "shannon")} | fields))
    with pytest.raises(TypeError, match="configs must hold PruneConfigs"):
        SearchSettings(ModelSpec("test_vit"), configs={"a": 0.5})


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.6324555, 0.9])
def test_scaling_keeps_proportions_and_has_that_geometric_mean(rate):
    moved = scaled(CALIBRATED, 4, rate)
    assert (moved.blocks, moved.criterion, moved.coverage) == ((1, 2), CALIBRATED.criterion, (2, None))
    power = math.log(rate) / math.log(math.sqrt(0.8 * 0.5))
    assert moved.keep_rate == pytest.approx((0.8**power, max(0.5**power, 0.02)), abs=6e-4)
    assert scaled(CALIBRATED, 4, math.sqrt(0.8 * 0.5)) == CALIBRATED
    assert not is_scalable(PruneConfig(schedule=CumulativeImportance(share=0.9)))


# ------------------------------------------------------------------------------------------------------- the study

MORE = [
    Point("evit", 0.5, 0),
    Point("evit", 0.5, 0, (1, 2)),
    Point("calibrated", None, 3, setting=CALIBRATED),
    Point("drawn", None, 0, setting=PruneConfig(0.5, criterion=Random())),
]


def test_a_trial_says_its_blocks_and_its_setting(tmp_path):
    study = opened(tmp_path)
    enqueue(study, [*MORE, Point("shannon", 0.5, 0, (1, 2))])
    trials = study.get_trials()
    assert [point_of(trial) for trial in trials[:4]] == MORE
    assert "blocks" not in trials[0].user_attrs  # as of any study before
    assert [trial.params.get("blocks_number") for trial in trials] == [None, 0, None, None, 0]
    assert study.user_attrs["block_sets"] == [[1, 2]]
    assert [point.name for point in MORE[:3]] == ["evit-0.5-seed-0", "evit-0.5-at-1-2-seed-0", "calibrated-seed-3"]
    assert [point.label for point in MORE[:3]] == ["EViT", "EViT at 1, 2", "calibrated"]
    assert [point.is_random for point in MORE] == [False, False, False, True]
    assert sorted(MORE, key=lambda point: point.sort_key) == MORE
    assert MORE[1].pruning((3,), "finetuned").blocks == (1, 2)
    assert MORE[0].pruning((3,), "finetuned").blocks == (3,)
    assert MORE[3].pruning(None, "training-free").criterion.seed == 0
    assert MORE[3].pruning(None, "finetuned").criterion.seed is None


@pytest.mark.parametrize("attributes", [{"blocks": "3"}, {"blocks": [2, 1]}, {"setting": "{"}, {"setting": 3}])
def test_damaged_blocks_and_settings_are_of_elsewhere(tmp_path, attributes):
    study = opened(tmp_path)
    enqueue(study, MORE[:1])
    (trial,) = study.get_trials()
    trial.user_attrs = trial.user_attrs | attributes
    assert point_of(trial) is None


def test_a_setting_with_a_criterion_of_elsewhere_is_refused_by_name(tmp_path):
    study = opened(tmp_path, compared=COMPARED | {"blocks": None, "target_gflops": None, "target_speedup": None})
    enqueue(study, MORE[2:3])
    trial = study.get_trials()[0]
    text = trial.user_attrs["setting"].replace('"Renyi"', '"Elsewhere"')
    assert text != trial.user_attrs["setting"]
    trial_of_elsewhere = opened(tmp_path, "other")
    parts = {"params": trial.params, "distributions": trial.distributions}
    about = trial.user_attrs | {"setting": text}
    trial_of_elsewhere.add_trial(
        optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, user_attrs=about, **parts)
    )
    with pytest.raises(
        ValueError, match=r"has the setting calibrated, which cannot be read here: .*--import my_module"
    ):
        summaries_of(trial_of_elsewhere)


# ----------------------------------------------------------------------------------------------------------- reports

FIRST = {("dense", None): (86.0,), ("random", 0.5): (70.0,), ("shannon", 0.5): (80.0,), ("renyi-2", 0.5): (81.0,)}
AT = (4, 8)
OTHERS = {
    Point("random", 0.5, 0, AT): 75.0,
    Point("shannon", 0.5, 0, AT): 85.5,
    Point("calibrated", None, 0, setting=CALIBRATED): 84.0,
}


def test_tables_set_by_set_and_the_best_of_all_is_recommended(tmp_path):
    study = made(None, FIRST, also=OTHERS, images=1000)
    summaries = summaries_of(study)
    assert [one.label for one in summaries] == [
        *("Dense", "Random", "Random at 4, 8", "Shannon", "Shannon at 4, 8", "Rényi, order 2", "calibrated")
    ]
    text = squeezed(table_1(summaries))
    first, second = text.index("At the study's own blocks:"), text.index("At blocks 4, 8:")
    assert [line.split(" | ")[0] for line in text[first:second] if line.startswith("|")][:6] == [
        *("| method", "| Random", "| Shannon", "| Rényi, order 2", "| calibrated", "| best")
    ]
    assert any("84.00 ± 1.16 at 4.600 GFLOPs" in line for line in text[:second])
    assert any("+10.00" in line for line in text[first:second])
    assert any("+10.50" in line for line in text[second:])  # to random at the same blocks
    orders = squeezed(table_2(summaries))
    assert [line.split(" | ")[0] for line in orders if line.startswith("| 1")] == ["| 1 (Shannon)"] * 2
    settings = {"blocks": [3, 6], "scope": "training-free", "target_gflops": None, "target_speedup": None}
    chosen, _ = recommend(summaries, settings, 1.0)
    assert chosen.label == "Shannon at 4, 8"
    assert recommended_config(chosen, settings) == method_config("shannon", 0.5, AT)
    chosen, _ = recommend([one for one in summaries if one.blocks is None], settings, 3.0)
    assert recommended_config(chosen, settings) == CALIBRATED
    write_report(study, tmp_path)
    assert PruneConfig.load(tmp_path / "recommended.json") == method_config("shannon", 0.5, AT)
    svg = (tmp_path / "pareto-gflops.svg").read_text()
    assert "Shannon at 4, 8" in svg
    assert "calibrated" in svg
    found = json.loads((tmp_path / "search.json").read_text())["records"]
    assert [record.get("blocks") for record in found] == [None, None, "4, 8", None, "4, 8", None, None]


def test_what_takes_no_keep_rate_is_no_dense_model_in_the_plots(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(findings, "save_figure", lambda figure, path: drawn.append(figure) or path)
    write_report(made(None, FIRST, also=OTHERS), tmp_path)
    (axes,) = drawn[0].axes
    assert [line.get_label() for line in axes.lines if line.get_marker() == "*"] == ["Dense"] or [
        bars.get_label() for bars in axes.containers if bars[0].get_marker() == "*"
    ] == ["Dense"]
    assert "calibrated" in [bars.get_label() for bars in axes.containers]


def test_with_a_budget_all_sets_stand_in_one_table():
    study = made(None, FIRST, also=OTHERS, target_gflops=3.0, images=1000, keep_rates=None)
    text = squeezed(table_1(summaries_of(study), "at most 3 GFLOPs"))
    assert "| Shannon at 4, 8 | 0.5 | 85.50 ± 1.11 |" in "\n".join(text).replace("*", "")
    assert "| calibrated | 0.8/0.5 | 84.00 ± 1.16 |" in text
    assert "| Shannon at 4, 8 | +10.50" in "\n".join(text).replace("*", "")


# ------------------------------------------------------------------------------------------------ groups of methods


def test_of_a_group_what_cannot_be_tried_is_left_out_with_its_reason(weights, tmp_path, one_thread):  # noqa: F811
    """Under half the multiply-adds ToMe, spread over few blocks, cannot go; nor can what takes no keep rate or needs
    training. Named alone each is an error."""
    said: list[str] = []
    dense = gflops(free(weights), None)
    names = ("dense", "random", "dynamicvit", "dtop")
    settings = free(weights, methods=names, keep_rates=None, target_gflops=0.6 * dense, leave_out=True)
    found = search(settings, data(), tmp_path, runtime=CPU, on_text=said.append)
    kept = {record["method"] for record in records(tmp_path)}
    assert {"dense", "random"} <= kept
    assert "dynamicvit" not in kept
    assert "dtop" not in kept
    assert any(line.startswith("dynamicvit is left out: it does nothing good before") for line in said)
    assert found.standing.finished == len(kept)
    with pytest.raises(BudgetError, match="tome: the budget must be one that some keep rate meets"):
        search(
            free(weights, methods=("dense", "tome"), keep_rates=None, target_gflops=0.3 * dense),
            data(), tmp_path / "alone", runtime=CPU,
        )  # fmt: skip


def test_where_images_keep_their_own_numbers_the_cost_is_that_of_test_images(weights, tmp_path, one_thread):  # noqa: F811
    settings = free(weights, methods=("dense", "ats"), keep_rates=(0.5,))
    search(settings, data(), tmp_path, runtime=CPU)
    (record,) = [record for record in records(tmp_path) if record["method"] == "ats"]
    (row,) = evaluate(
        settings.spec.build(None, 16, strict=True), data(), {"ats": PruneConfig(method="ats", keep_rate=0.5)},
        image_size=16,
    )  # fmt: skip
    assert record["gflops"] == pytest.approx(row["gflops"])
