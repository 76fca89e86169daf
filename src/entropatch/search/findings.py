"""What a search found, from its study alone: records, the tables of the paper, Pareto plots, a recommended setting.

search.md, .csv, .json    one record per finished trial
correct.json              which images came out right in each, where all were tested on the same list
table-1.md                rows methods, columns keep rates
table-2.md                rows orders, columns keep rates
pareto-gflops.png, .svg   accuracy against multiply-adds
pareto-speed.png, .svg    accuracy against images/s
recommended.json          the setting to use, as `PruneConfig.load` and `prune_` take it
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entropatch.figures import accuracy_against, save_figure
from entropatch.figures.accuracy import bars_note
from entropatch.look.naming import pruning_label
from entropatch.methods import DENSE
from entropatch.records.correct import CorrectImages, same_images, write_correct
from entropatch.records.files import write_text
from entropatch.records.tables import write_records
from entropatch.search.accuracy_tables import records_table, table_1, table_2
from entropatch.search.points import blocks_text
from entropatch.search.recommendation import TOLERANCE, budget_text, recommend, recommended_config, recommended_text
from entropatch.search.study import ABOUT, SETTINGS
from entropatch.search.summaries import Summary, correct_of, failures_of, points_and_records, summaries_of

if TYPE_CHECKING:
    from optuna import Study

# Trials were timed at different moments and perhaps on different machines; dense and pruned of one trial in turns.
SPEED_TEXT = "ratio to dense timed in turns with it, times dense's median over the trials, {:.1f}"
UNSTEADY = 0.1  # quartiles of dense's rounds so far apart, as a share of the median, are more than clocks and caches


def write_report(study: Study, folder: str | Path, tolerance: float = TOLERANCE) -> list[Path]:
    """Write all files that this module's head names. The same study gives the same files.

    Args:
        study: of a search.
        folder: made if missing.
        tolerance: as of `entropatch.search.recommendation.recommend`.

    Returns:
        The paths. Without a finished trial, none; without one of a method to recommend, no recommended.json, and one
        from before is removed.
    """
    found, folder = points_and_records(study), Path(folder)
    records = [record for _, record in found]
    if not records:
        return []
    settings, summaries = study.user_attrs[SETTINGS], summaries_of(study)
    busy = _busy_text(records)
    dense_speed = statistics.median(record["dense_images_per_second"] for record in records)
    by_point = {summary.point: summary for summary in summaries}
    records = [_one_speed(record, by_point[replace(point, seed=0)], dense_speed) for point, record in found]
    budget = budget_text(settings)
    chosen, rule = recommend(summaries, settings, tolerance)
    title = f"{settings['model']['name']} on {settings['data']['name']}, {settings['scope']}"
    about = (
        study.user_attrs[ABOUT]
        | ({"budget": budget} if budget else {})
        | {"images/s": SPEED_TEXT.format(dense_speed)}
        | ({"machine busy": busy} if busy else {})
        | _own_text(summaries)
        | recommended_text(chosen, rule)
    )
    about |= {f"failed: {point.name}": reason for point, reason in failures_of(study).items()}
    paths = write_records(
        records, folder, "search", title=f"Search: {title}", about=about, table=records_table(records)
    )
    correct = list(correct_of(study).values())
    if same_images(correct):
        tested = np.logical_and.reduce([run.tested for run in correct])
        merged = {name: bits for run in correct for name, bits in run.correct.items()}
        paths.append(write_correct(folder, CorrectImages(correct[0].listing, tested, merged)))
    for number, table in ((1, table_1(summaries, budget)), (2, table_2(summaries, budget))):
        if table is not None:
            paths.append(folder / f"table-{number}.md")
            write_text(paths[-1], f"# {title}\n\n{_places_text(settings, summaries)}{table}")
    paths += _write_plots(summaries, dense_speed, folder, title)
    path = folder / "recommended.json"
    if chosen is None:
        path.unlink(missing_ok=True)
        return paths
    write_text(path, recommended_config(chosen, settings).to_json() + "\n")
    return [*paths, path]


def _one_speed(record: Mapping[str, Any], summary: Summary, dense_speed: float) -> dict[str, Any]:
    """The record with its setting's one figure of images/s; what its own trial timed is kept under "timed_…"."""
    keys = ("images_per_second", "dense_images_per_second", "vs_dense")
    timed = {f"timed_{key}": record[key] for key in keys}
    speeds = {"images_per_second": summary.vs_dense * dense_speed, "vs_dense": summary.vs_dense}
    return {key: value for key, value in record.items() if key != keys[1]} | speeds | timed


def _busy_text(records: Sequence[Mapping[str, Any]]) -> str | None:
    """In which trials something else kept the machine busy; None for none, as for records that do not say."""
    loaded = [r["load"] for r in records if _number(r, "load") > 1.5 * max(1.0, _number(r, "own_load"))]
    unsteady = [r["spread"] for r in records if _number(r, "spread") > UNSTEADY]
    reasons = []
    if loaded:
        reasons.append(f"in {len(loaded)} the load average was up to {max(loaded):.1f}")
    if unsteady:
        reasons.append(
            f"in {len(unsteady)} the quartiles of dense's rounds were up to {100 * max(unsteady):.0f} % apart"
        )
    if not reasons:
        return None
    return f"of {len(records)} trials {' and '.join(reasons)}; images/s are less sure by so much"


def _places_text(settings: Mapping[str, Any], summaries: Sequence[Summary]) -> str:
    """The study's own blocks, where there are others in the tables."""
    if all(summary.blocks is None for summary in summaries):
        return ""
    own = settings["blocks"]
    return f"The study's own blocks: {'¼, ½, ¾ of the depth' if own is None else blocks_text(own)}.\n\n"


def _own_text(summaries: Sequence[Summary]) -> dict[str, str]:
    """Which blocks stand beside the study's own, and what the settings given as wholes do."""
    sets = dict.fromkeys(blocks_text(s.blocks) for s in summaries if s.blocks is not None)
    about = {"other blocks": "; ".join(sets)} if sets else {}
    for s in summaries:
        if s.setting is not None:
            about[f"setting: {s.label}"] = f"{pruning_label(s.setting)}, keep rate {s.rates_text}"
    return about


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _write_plots(summaries: Sequence[Summary], dense_speed: float, folder: Path, title: str) -> list[Path]:
    points = [
        {
            "label": s.label,
            "keep_rate": s.keep_rate,
            "dense": s.method == DENSE,
            "top1": s.top1,
            "top1_se": None if s.estimate is None else s.estimate.standard_error,
            "top1_std": s.top1_std,
            "gflops": s.gflops,
            "images_per_second": s.vs_dense * dense_speed,
        }
        for s in summaries
    ]
    bars = bars_note(points)
    speed = SPEED_TEXT.format(dense_speed)
    notes = {"gflops": bars, "images_per_second": f"Images/s: {speed}." + (f" {bars}" if bars else "")}
    paths = []
    for x, name in (("gflops", "pareto-gflops"), ("images_per_second", "pareto-speed")):
        figure = accuracy_against(points, x, title=title, note=notes[x])
        paths += [save_figure(figure, folder / f"{name}.{kind}") for kind in ("png", "svg")]
    return paths
