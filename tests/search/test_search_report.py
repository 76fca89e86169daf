"""Budgets and reports of a search: exact where they are arithmetic, from studies made by hand."""

import csv
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

import entropatch
from entropatch import CumulativeImportance, Method, PruneConfig, register_method
from entropatch.measure.budget import largest, rate_for_gflops, rate_for_speedup
from entropatch.methods import METHODS
from entropatch.records.correct import CorrectImages, aligned, read_correct
from entropatch.records.uncertainty import accuracy, binomial, paired_difference
from entropatch.schedule import exact_rate, kept_count
from entropatch.search import BudgetError, Point, SearchSettings, findings, report, write_report
from entropatch.search.accuracy_tables import table_1, table_2
from entropatch.search.recommendation import recommend, recommended_text
from entropatch.search.study import RECORD, enqueue, open_storage, open_study, quiet, sqlite_address
from entropatch.search.summaries import Summary, summaries_of
from entropatch.train import ModelSpec, Recipe

optuna = pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

# Trials are made here without running them.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used")


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


# ---------------------------------------------------------------------------------------------------------- budgets


def patches(rate, n=196, blocks=12):
    """Patches in all blocks of a model that prunes at ¼, ½ and ¾: the multiply-adds of a toy."""
    total = 0
    for block in range(blocks):
        if block in (3, 6, 9):
            n = kept_count(exact_rate(rate), n)
        total += n
    return total


@pytest.mark.parametrize("target", [600, 1000, 1437, 1500, 1500.5, 2000, 2351])
def test_the_rate_found_is_the_largest_of_all_that_meet_the_budget(target):
    every = [step / 10_000 for step in range(1, 10_000)]
    slow = max(rate for rate in every if patches(rate) <= target)
    found = rate_for_gflops(patches, patches(1.0), target)
    assert found == slow
    assert patches(found) <= target < patches(round(found + 0.0001, 4))


def test_a_budget_that_needs_no_pruning_or_that_nothing_meets_is_refused():
    with pytest.raises(BudgetError, match=r"below the dense model's 2352\.000 GFLOPs, but got 2352"):
        rate_for_gflops(patches, 2352, 2352)
    with pytest.raises(BudgetError, match="still needs 597"):
        rate_for_gflops(patches, 2352, 596)
    assert rate_for_gflops(patches, 2352, 597) == 0.0051  # one patch of 196


@pytest.mark.parametrize("steps", [2, 3, 10, 10_000])
def test_bisection_finds_every_edge(steps):
    for edge in {0, 1, steps // 3, steps - 1}:
        for near in (None, 1, edge, edge + 1, steps // 2, steps - 1, steps):
            assert largest(lambda rate, edge=edge: round(rate * steps) <= edge, steps, near) == edge


def test_a_speedup_is_confirmed_by_a_fresh_measurement():
    draw = random.Random(0)
    asked = []

    def speedup(rate):  # dense 1, all pruned 3, and much noise
        asked.append(rate)
        return (3 - 2 * rate) * draw.gauss(1, 0.05)

    rate, measured = rate_for_speedup(speedup, 2.0)
    assert measured >= 2.0
    assert 0.4 <= rate <= 0.56  # 0.5 without the noise
    assert asked[-3:] == [rate] * 3
    assert rate == round(rate, 2)


def test_a_lucky_measurement_is_not_taken_at_its_word():
    first = {}

    def speedup(rate):  # the first three measurements at each rate flatter it
        first[rate] = first.get(rate, 0) + 1
        return (3 - 2 * rate) + (0.4 if first[rate] <= 3 else 0.0)

    rate, measured = rate_for_speedup(speedup, 2.0)
    assert rate < 0.7  # which is where luck alone would lead
    assert measured == pytest.approx(2.0, abs=0.4)


def test_a_speedup_in_no_reach_is_found_out_at_the_smallest_keep_rate_and_told():
    asked, said = [], []

    def speedup(rate):
        asked.append(rate)
        return 3 - 2 * rate

    with pytest.raises(BudgetError, match=r"but got 50 times .* the smallest keep rate, 0\.01, gives 2\.98"):
        rate_for_speedup(speedup, 50.0, said.append)
    assert asked == [0.01] * 6  # measured twice, since a target just in reach may be missed once
    assert said == ["keep rate 0.01 gives 2.98 times the speed of dense; 50 is asked for"] * 2
    said.clear()
    rate, _ = rate_for_speedup(speedup, 2.0, said.append)
    assert rate == 0.5
    assert len(said) >= 7
    assert said[-1] == "keep rate 0.5 gives 2.00 times the speed of dense; 2 is asked for"


def test_multiply_adds_in_no_reach_are_found_out_at_the_smallest_keep_rate():
    asked = []
    with pytest.raises(BudgetError, match="still needs 597"):
        rate_for_gflops(lambda rate: asked.append(rate) or patches(rate), 2352, 596)
    assert asked == [0.0001]


# --------------------------------------------------------------------------------------------------------- settings


def settings(**fields):
    return SearchSettings(**({"spec": ModelSpec("test_vit")} | fields))


def test_settings_are_completed_and_given_their_one_name():
    found = settings(methods=("dense", "renyi-1", "shannon", "renyi-2.0"), seeds=(0, 0, 1))
    assert found.methods == ("dense", "shannon", "renyi-2")
    assert found.keep_rates == (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
    assert found.seeds == (0, 1)
    assert settings(target_gflops=2).keep_rates == ()
    free, trained = settings().compared(), settings(scope="finetuned").compared()
    assert free["recipe"] == {"image_size": 224, "precision": "float32"}
    assert trained["recipe"]["epochs"] == 100
    assert not {"methods", "keep_rates", "seeds"} & free.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scope": "trained"}, "scope must be one of training-free, finetuned, but got 'trained'"),
        ({"methods": ()}, "methods must hold at least one entry"),
        ({"methods": ("best",)}, "a method is one of"),
        ({"seeds": (-1,)}, "a seed must lie in 0"),
        ({"keep_rates": (1.2,)}, "keep_rate must lie in"),
        ({"target_gflops": 1.0, "target_speedup": 2.0}, "exclude each other"),
        ({"target_gflops": 1.0, "keep_rates": (0.5,)}, "the keep rates follow"),
        ({"target_gflops": -1.0}, "target_gflops must be a number above 0, but got -1.0"),
        ({"target_speedup": 1.0}, "target_speedup must be a number above 1, but got 1.0"),
        ({"target_gflops": 1.0, "methods": ("dense",)}, "needs a method that prunes"),
        ({"recipe": Recipe(distillation=0.5)}, "trains without a teacher"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        settings(**fields)


# ----------------------------------------------------------------------------------------------------------- tables

GFLOPS = {None: 4.6, 0.7: 3.0, 0.5: 2.3, 0.3: 1.8}


def made(folder, results, waiting=(), *, images=0, about=(), more=(), also=(), **fields):
    """A study in which the settings of `results`, {(method, keep rate): top-1 of each seed}, are finished; in memory
    if no folder is given.

    `also` are further points and their top-1. With `images` it is known which came out right: the easier ones, but for
    a few that each run has by chance.
    """
    compared = settings(**fields).compared() | {"data": {"name": "digits"}}
    known = {"model": "test_vit"} | dict(about)
    storage = (
        optuna.storages.InMemoryStorage() if folder is None else open_storage(sqlite_address(folder / "search.db"))
    )
    study = open_study(storage, "search", compared, known)
    rng = np.random.default_rng(0)
    for point, values in [
        *((Point(*key), values) for key, values in results.items()),
        *((point, (top1,)) for point, top1 in dict(also).items()),
    ]:
        rate = point.keep_rate
        for seed, top1 in enumerate(values):
            record = {
                "top1": top1,
                "top5": 99.0,
                "gflops": GFLOPS.get(rate, 2.5),
                "vs_dense": 5 / GFLOPS.get(rate, 2.5),
            }
            record |= {"images_per_second": 10.0, "dense_images_per_second": 8.0, "seconds": 1.0} | dict(more)
            if images:
                ease = np.argsort(np.arange(images) + rng.normal(0, 0.02 * images, images))
                right = np.isin(np.arange(images), ease[: round(top1 * images / 100)])
                run = CorrectImages("a" * 64, np.ones(images, bool), {"any": right})
                record["correct"] = run.to_dict()
            enqueue(study, [replace(point, seed=seed)])
            trial = study.ask()
            trial.set_user_attr(RECORD, record)
            study.tell(trial, top1)
    enqueue(study, waiting)
    return study


RESULTS = {
    ("dense", None): (86.0, 86.2),
    ("random", 0.7): (80.0, 82.0),
    ("random", 0.5): (70.0, 74.0),
    ("evit", 0.7): (85.5, 85.7),
    ("evit", 0.5): (84.0, 84.4),
    ("shannon", 0.5): (85.2, 85.4),
    ("renyi-inf", 0.7): (85.8, 85.4),
    ("renyi-0.5", 0.7): (85.0, 85.2),
    ("renyi-0.5", 0.5): (85.3, 85.3),
}

TABLE_1 = """\
Dense: 86.10 ± 0.14 at 4.600 GFLOPs.

| method           | 0.7              | 0.5                     |
| ---------------- | ---------------- | ----------------------- |
| Random           | 81.00 ± 1.41     | 72.00 ± 2.83            |
| EViT             | 85.60 ± 0.14     | 84.20 ± 0.28            |
| Rényi, order 0.5 | 85.10 ± 0.14     | 85.30 ± 0.00            |
| Shannon          | —                | 85.30 ± 0.14            |
| Rényi, order ∞   | 85.60 ± 0.28     | 84.00 (1 of 2)          |
| best             | —                | —                       |
"""


def squeezed(text):
    """The text with all runs of blanks as one, since the padding of a table is not its content."""
    return [" ".join(line.split()) for line in text.replace("-" * 4, "").splitlines() if set(line) - set("|- :")]


def test_table_1_of_an_older_study_is_methods_by_keep_rates_and_calls_none_the_best():
    study = made(None, RESULTS | {("renyi-inf", 0.5): (84.0,)}, [Point("renyi-inf", 0.5, 1)])
    text = table_1(summaries_of(study))
    assert squeezed(text)[1:] == squeezed(TABLE_1)
    first = text.splitlines()[0]
    assert first.startswith("Top-1 accuracy in percent. ± is one standard deviation over the seeds. It is not known of")


def test_one_seed_of_an_older_study_has_no_spread_but_for_the_binomial_error():
    results = {("dense", None): (86.0,), ("evit", 0.7): (85.0,)}
    text = table_1(summaries_of(made(None, results)))
    assert "Dense: 86.00 at 4.600 GFLOPs." in text
    assert "| EViT   | 85.00 |" in text
    about = {"images": "600 for training, 1000 for testing, 10 classes"}
    text = table_1(summaries_of(made(None, results, about=about, more={"damaged": 100})))
    assert f"± {100 * (0.85 * 0.15 / 900) ** 0.5:.2f} |" in text
    assert "± is one binomial standard error of a single run. It is not known of every setting which images" in text
    assert "**" not in text


CLEAR = {
    ("dense", None): (86.0, 86.3),
    ("random", 0.7): (70.0, 71.0),
    ("evit", 0.7): (80.0, 80.5),
    ("shannon", 0.7): (85.5, 85.6),
    ("random", 0.5): (60.0, 61.0),
    ("evit", 0.5): (75.0, 75.5),
    ("shannon", 0.5): (75.2, 75.1),
}


def test_bold_is_what_is_ahead_and_several_best_are_not_told_apart():
    summaries = summaries_of(made(None, CLEAR, images=1000))
    by_key = {(s.method, s.keep_rate): s for s in summaries}

    def shown(method, rate):
        bits = aligned(list(by_key[method, rate].correct.values()))[0]
        return f"{100 * bits.mean():.2f} ± {accuracy(bits).standard_error:.2f}"

    def less(method, rate, other):
        found = [aligned(list(by_key[key].correct.values()))[0] for key in ((method, rate), other)]
        one = paired_difference(*found)
        return f"{one.value:+.2f} ± {one.standard_error:.2f}"

    text = table_1(summaries)
    assert squeezed(text) == squeezed(
        f"""
{text.splitlines()[0]}
Dense: {shown("dense", None)} at 4.600 GFLOPs.
| method | 0.7 | 0.5 |
| Random | {shown("random", 0.7)} | {shown("random", 0.5)} |
| EViT | {shown("evit", 0.7)} | {shown("evit", 0.5)} |
| Shannon | **{shown("shannon", 0.7)}** | {shown("shannon", 0.5)} |
| best | Shannon | EViT, Shannon |
Top-1 less that of random, in points, on the same images:
| method | 0.7 | 0.5 |
| EViT | **{less("evit", 0.7, ("random", 0.7))}** | **{less("evit", 0.5, ("random", 0.5))}** |
| Shannon | **{less("shannon", 0.7, ("random", 0.7))}** | **{less("shannon", 0.5, ("random", 0.5))}** |
Top-1 less that of dense, in points, on the same images:
| method | 0.7 | 0.5 |
| Random | {less("random", 0.7, ("dense", None))} | {less("random", 0.5, ("dense", None))} |
| EViT | {less("evit", 0.7, ("dense", None))} | {less("evit", 0.5, ("dense", None))} |
| Shannon | {less("shannon", 0.7, ("dense", None))} | {less("shannon", 0.5, ("dense", None))} |
"""
    )
    assert text.splitlines()[0].startswith("Top-1 accuracy in percent. ± is one standard error over images and seeds.")


def test_settings_are_compared_on_the_seeds_and_images_they_share():
    study = made(
        None, {("dense", None): (86.0,), ("random", 0.5): (60.0, 62.0, 61.0), ("evit", 0.5): (75, 76)}, images=200
    )
    dense, random_, evit = summaries_of(study)
    assert (evit.less(random_).seeds, dense.less(random_).seeds) == (2, 3)
    assert evit.less(random_).value == pytest.approx(75.5 - 61.0)
    assert dense.less(random_).value == pytest.approx(86.0 - 61.0)
    assert evit.less(replace(random_, correct={})) is None
    other = {seed: replace(run, listing="b" * 64) for seed, run in random_.correct.items()}
    assert evit.less(replace(random_, correct=other)) is None
    assert evit.less_unpaired(replace(random_, correct=other)).standard_error > evit.less(random_).standard_error


def test_a_record_whose_images_are_damaged_counts_as_of_an_older_version(tmp_path):
    study = made(None, {("evit", 0.5): (75.0,)}, more={"correct": {"listing": "a", "images": 5}})
    (only,) = summaries_of(study)
    assert (only.correct, only.estimate) == ({}, None)
    assert write_report(study, tmp_path)


def test_table_2_is_orders_by_keep_rates_and_names_the_best():
    results = {
        ("shannon", 0.7): (85.5,),
        ("renyi-2", 0.7): (80.0,),
        ("renyi-0.5", 0.5): (70.2,),
        ("shannon", 0.5): (70,),
    }
    text = table_2(summaries_of(made(None, results, images=1000)))
    assert [line.replace("*", "").split("±")[0].strip() for line in squeezed(text)[1:]] == [
        "| order | 0.7 | 0.5 |",
        "| 0.5 | — | 70.20",
        "| 1 (Shannon) | 85.50",
        "| 2 | 80.00",
        "| best order | 1 | 0.5, 1 |",
    ]
    assert text.count("**") == 2
    assert "| 1 (Shannon) | **85.50 ± 1.11** |" in " ".join(text.split())
    assert table_2([summary for summary in summaries_of(made(None, {})) if summary.order is None]) is None


def test_merging_by_entropy_is_a_method_and_no_order():
    results = {("shannon", 0.5): (85.0,), ("shannon-merge", 0.5): (86.0,), ("tome", 0.5): (84.0,)}
    summaries = summaries_of(made(None, results))
    assert [one.method for one in summaries] == ["tome", "shannon", "shannon-merge"]  # by their ranks
    assert squeezed(table_2(summaries))[2:] == ["| 1 (Shannon) | 85.00 |", "| best order | — |"]
    assert "| Shannon, merging | 86.00 |" in squeezed(table_1(summaries))


def test_a_method_with_a_schedule_of_its_own_has_a_column_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))
    register_method(Method("easy-first", "Easy first", "", schedule=CumulativeImportance(share=0.8)))
    study = made(None, {("dense", None): (86.0,), ("easy-first", None): (85.5,), ("evit", 0.5): (84.0,)})
    assert squeezed(table_1(summaries_of(study)))[-4:] == [
        "| method | 0.5 | own |",
        "| EViT | 84.00 | — |",
        "| Easy first | — | 85.50 |",
        "| best | — | — |",
    ]
    write_report(study, tmp_path)
    config = PruneConfig.load(tmp_path / "recommended.json")
    assert config.schedule == CumulativeImportance(share=0.8)
    assert "recommended: Easy first: top-1 85.50" in (tmp_path / "search.md").read_text()


def test_a_report_without_the_module_that_a_method_came_from_says_so(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(METHODS, "_methods", dict(METHODS._methods))
        register_method(Method("own", "Own", "", schedule=CumulativeImportance(share=0.8)))
        made(tmp_path, {("dense", None): (86.0,), ("own", None): (85.5,)})
    with pytest.raises(ValueError, match="has the method own, which no imported module registers"):
        report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["search.db"]


def test_with_a_budget_there_is_one_column_and_each_method_s_own_keep_rate(tmp_path):
    results = {("dense", None): (86.0,), ("evit", 0.49): (84.0,), ("shannon", 0.5): (85.0,), ("renyi-2", 0.5): (84.5,)}
    study = made(None, results, target_gflops=2.4)
    write_report(study, tmp_path)
    assert squeezed((tmp_path / "table-1.md").read_text())[-5:] == [
        "| method | keep rate | at most 2.4 GFLOPs |",
        "| EViT | 0.49 | 84.00 |",
        "| Shannon | 0.5 | 85.00 |",
        "| Rényi, order 2 | 0.5 | 84.50 |",
        "| best | | — |",
    ]
    assert squeezed((tmp_path / "table-2.md").read_text())[-1] == "| best order | | — |"
    # EViT's 2.5 GFLOPs do not meet the budget; of those that do, Shannon is best.
    assert PruneConfig.load(tmp_path / "recommended.json").criterion == entropatch.Renyi(1.0)


# -------------------------------------------------------------------------------------------------- recommendations


def summary(method, rate, top1, gflops, speed=None, images=0):
    correct = {}
    if images:  # of the easy ones first
        correct = {0: CorrectImages("a", np.ones(images, bool), {"": np.arange(images) < round(top1 * images / 100)})}
    estimate = binomial(round(top1 * images / 100), images) if images else None
    speed = 4.6 / gflops if speed is None else speed
    return Summary(method, method, rate, 1, 1, top1, None, gflops, speed, estimate, correct)


FREE = {"target_gflops": None, "target_speedup": None}


@pytest.mark.parametrize(
    ("tolerance", "chosen"),
    [(0.5, ("evit", 0.7)), (1.0, ("renyi-2", 0.5)), (5.0, ("shannon", 0.3)), (0.1, ("evit", 0.7))],
)
def test_without_a_budget_the_cheapest_that_is_good_enough(tolerance, chosen):
    tried = [
        summary("dense", None, 86.0, 4.6),
        summary("random", 0.7, 85.7, 2.9),  # never chosen, however good
        summary("random", 0.3, 80.0, 1.8),
        summary("evit", 0.7, 85.8, 3.0),
        summary("shannon", 0.5, 85.0, 2.3),
        summary("renyi-2", 0.5, 85.2, 2.3),
        summary("shannon", 0.3, 81.0, 1.8),
    ]
    found, rule = recommend(tried, FREE, tolerance)
    assert (found.method, found.keep_rate) == chosen
    if tolerance == 0.1:  # none is that good: the best
        assert rule.startswith("the highest mean top-1, since none faster than dense is within 0.1 % (absolute) of it;")
    assert recommend(tried[1:], FREE)[0] == tried[3]
    assert recommend(tried[:3], FREE) == (None, "no method but dense and random has been tried")
    assert "better than random pruning at the same cost by its mean, of which no error is known" in rule


def test_what_is_no_better_than_random_is_not_recommended():
    """32 images: random as good as dense, the entropy one image behind."""
    tried = [summary("dense", None, 37.5, 4.6), summary("random", 0.7, 37.5, 3.0), summary("renyi-2", 0.7, 34.375, 3.0)]
    reason = "no setting faster than dense is better than random pruning at the same cost"
    assert recommend(tried, FREE) == (None, reason)
    assert recommend(tried, FREE, 5.0) == (
        None,
        reason.replace("dense ", "dense with a mean top-1 no more than 5 % (absolute) below dense "),
    )
    assert recommended_text(None, reason) == {"recommended": f"nothing: {reason}"}
    # EViT's fused token costs a little more than random pruning at the same keep rate.
    assert recommend([*tried[:2], summary("evit", 0.7, 37.0, 3.04)], FREE)[0] is None
    assert recommend([*tried[:2], summary("evit", 0.7, 40.0, 3.04)], FREE)[0].method == "evit"
    # Random at a higher cost is no rival.
    assert (
        recommend([tried[0], summary("random", 0.9, 37.5, 4.0), summary("evit", 0.7, 37.0, 3.04)], FREE)[0].method
        == "evit"
    )


def test_ahead_of_random_is_by_the_error_of_the_pairs():
    dense = summary("dense", None, 86.0, 4.6, images=1000)
    random_ = summary("random", 0.5, 85.2, 2.3, images=1000)
    close, clear = (summary("evit", 0.5, top1, 2.3, images=1000) for top1 in (85.6, 86.4))
    assert recommend([dense, random_, close], FREE)[0] is None  # 4 images
    chosen, rule = recommend([dense, random_, clear], FREE)  # 12
    assert chosen is clear
    difference = clear.less(random_)
    assert rule.endswith(f"; 1.20 ± {difference.standard_error:.2f} ahead of random pruning at the same cost")
    apart = [replace(one, correct={}) for one in (dense, random_, clear)]  # with the errors of single runs alone
    assert recommend(apart, FREE)[0] is None
    assert recommend([*apart[:2], replace(apart[2], top1=90.0, estimate=binomial(900, 1000))], FREE)[0] is not None


def test_what_is_not_faster_than_dense_is_not_recommended():
    tried = [summary("dense", None, 86.0, 4.6), summary("evit", 0.7, 86.0, 3.0, speed=0.98)]
    assert recommend(tried, FREE) == (None, "no setting is faster than dense")
    tried.append(summary("shannon", 0.5, 83.0, 2.3, speed=1.4))
    chosen, rule = recommend(tried, FREE)
    assert chosen is tried[2]
    assert rule.startswith("the highest mean top-1, since none faster than dense is within 1 %")


def test_with_a_budget_the_best_that_meets_it():
    tried = [summary("evit", 0.7, 85.8, 3.0), summary("shannon", 0.5, 85.0, 2.3), summary("renyi-2", 0.5, 85.0, 2.2)]
    assert recommend(tried, FREE | {"target_gflops": 2.5})[0] == tried[2]
    assert recommend(tried, FREE | {"target_gflops": 1.5}) == (None, "no setting meets the budget (at most 1.5 GFLOPs)")
    slow, random_ = summary("renyi-4", 0.5, 86.0, 2.2, speed=0.9), summary("random", 0.5, 85.5, 2.2)
    assert recommend([*tried, slow], FREE | {"target_gflops": 2.5})[0] == tried[2]  # passed over for one that is faster
    chosen, rule = recommend([summary("evit", 0.5, 85.0, 2.2, speed=0.9), random_], FREE | {"target_gflops": 2.5})
    assert chosen.method == "evit"
    assert rule.endswith(
        "; but it is not faster than dense; but it is no better than random pruning within the budget (85.50 %)"
    )
    alike = [summary(name, 0.5, top1, 2.2, images=1000) for name, top1 in (("evit", 85.0), ("shannon", 85.2))]
    assert recommend(alike, FREE | {"target_gflops": 2.5})[1].endswith("; not told apart from evit at keep rate 0.5")
    found, rule = recommend(tried, FREE | {"target_speedup": 1.5})
    assert found == tried[0]
    assert "at least 1.5× the images/s of dense" in rule


# ------------------------------------------------------------------------------------------------------------ files


def test_the_report_is_made_of_the_study_alone_and_is_the_same_each_time(tmp_path):
    study = made(tmp_path, RESULTS, blocks=(1,))
    files = write_report(study, tmp_path / "one")
    names = [path.name for path in files]
    assert names == [
        *("search.md", "search.csv", "search.json", "table-1.md", "table-2.md"),
        *("pareto-gflops.png", "pareto-gflops.svg", "pareto-speed.png", "pareto-speed.svg", "recommended.json"),
    ]
    again = report(tmp_path / "two", storage=sqlite_address(tmp_path / "search.db"))
    assert [path.name for path in again] == names
    for one, two in zip(files, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
    data = json.loads((tmp_path / "one/search.json").read_text())
    assert data["about"]["recommended"].startswith("Rényi, order 0.5 at keep rate 0.5: top-1 85.30")
    assert "machine busy" not in data["about"]
    first = data["records"][0]
    assert (first["method"], first["keep_rate"], first["seed"], first["top1"], first["trial"]) == (
        "dense",
        None,
        0,
        86,
        0,
    )
    assert [record["order"] for record in data["records"]][-2:] == ["inf", "inf"]
    with (tmp_path / "one/search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert {row["label"] for row in rows if row["method"] == "renyi-inf"} == {"Rényi, order ∞"}


def test_the_recommended_setting_prunes(tmp_path):
    write_report(made(None, RESULTS, blocks=(1,)), tmp_path)
    config = PruneConfig.load(tmp_path / "recommended.json")
    assert config == PruneConfig(keep_rate=0.5, criterion=entropatch.Renyi(0.5), blocks=(1,))
    model = timm.create_model("test_vit", img_size=64).eval()
    entropatch.prune_(model, config)
    with entropatch.trace(model) as trace, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert trace.stages[0].kept.shape[-1] == math.ceil(0.5 * 16)


def test_what_failed_is_told_and_a_recommendation_that_no_longer_holds_is_removed(tmp_path):
    study = made(None, {("dense", None): (86.0,), ("random", 0.5): (80.0,)}, [Point("evit", 0.5, 0)])
    trial = study.ask()
    trial.set_user_attr("error", "DivergedError: the loss is nan")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    (tmp_path / "recommended.json").write_text("{}")
    files = write_report(study, tmp_path)
    assert not (tmp_path / "recommended.json").exists()
    assert tmp_path / "recommended.json" not in files
    text = (tmp_path / "search.md").read_text()
    assert "failed: evit-0.5-seed-0: DivergedError: the loss is nan" in text
    assert "nothing: no method but dense and random" in text


def test_there_is_one_figure_of_images_per_second_for_a_setting(tmp_path, monkeypatch):
    """In the table, the files and the plot, though each trial was timed on a machine of its own."""
    study = made(None, {("dense", None): (86.0,), ("evit", 0.7): (85.0,)}, images=100)
    for seed, (speed, dense) in enumerate(((30.0, 20.0), (55.0, 50.0)), start=1):
        enqueue(study, [Point("evit", 0.7, seed)])
        trial = study.ask()
        record = dict(next(t for t in study.get_trials() if t.number == 1).user_attrs[RECORD])
        speeds = {"images_per_second": speed, "dense_images_per_second": dense, "vs_dense": speed / dense}
        trial.set_user_attr(RECORD, record | speeds | {"load": 7.5, "own_load": 2, "spread": 0.34})
        study.tell(trial, 85.0)
    drawn = []
    monkeypatch.setattr(findings, "accuracy_against", lambda points, x, **k: drawn.append((x, points)) or _figure())
    write_report(study, tmp_path)
    data = json.loads((tmp_path / "search.json").read_text())
    evit = [record for record in data["records"] if record["method"] == "evit"]
    expected = (5 / 3 + 1.5 + 1.1) / 3 * 14  # dense: 8, 8, 20, 50
    assert [record["images_per_second"] for record in evit] == [pytest.approx(expected)] * 3
    assert [record["timed_images_per_second"] for record in evit] == [10.0, 30.0, 55.0]
    points = dict(drawn)["images_per_second"]
    assert [point["images_per_second"] for point in points] == [pytest.approx(5 / 4.6 * 14), pytest.approx(expected)]
    assert all(point["top1_se"] > 0 for point in points)
    assert f"| {expected:.1f} |" in " ".join((tmp_path / "search.md").read_text().split())
    busy = "of 4 trials in 2 the load average was up to 7.5 and in 2 the quartiles of dense's rounds were up to"
    assert data["about"]["machine busy"].startswith(busy)
    assert "correct" not in evit[0]
    known = read_correct(tmp_path)
    assert list(known.correct) == ["dense-seed-0", "evit-0.7-seed-0", "evit-0.7-seed-1", "evit-0.7-seed-2"]
    assert known.correct["evit-0.7-seed-0"].sum() == 85


def _figure():
    from matplotlib.figure import Figure

    return Figure()


def test_nothing_finished_is_nothing_to_report(tmp_path):
    assert write_report(made(tmp_path, {}), tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["search.db"]


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no search\.db"):
        report(tmp_path)
    made(tmp_path, RESULTS)
    with pytest.raises(ValueError, match="there is no study 'other'; there are: search"):
        report(tmp_path, study="other")


def test_within_a_budget_random_that_meets_it_is_the_rival_of_what_spends_less():
    """A whole setting may fall short of the budget, where no random pruning costs as little."""
    budget = {"target_gflops": 3.0, "target_speedup": None}
    tried = [summary("dense", None, 60.0, 4.6), summary("random", 0.7, 50.0, 2.99)]
    short, evit = summary("shannon", 0.5, 50.0, 2.8), summary("evit", 0.7, 52.0, 2.98)
    chosen, rule = recommend([*tried, short, evit], budget)
    assert chosen == evit
    assert "no better than random" not in rule
    chosen, rule = recommend([*tried, short], budget)
    assert chosen == short
    assert rule.endswith("it is no better than random pruning within the budget (50.00 %)")
    _, rule = recommend([tried[0], short], budget)
    assert "random pruning within it was not tried" in rule
