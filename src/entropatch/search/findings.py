"""What a search found, from its study alone: records, the tables of the paper, Pareto plots, a recommended setting.

search.md, .csv, .json    one record per finished trial
table-1.md                rows methods, columns keep rates
table-2.md                rows orders, columns keep rates
pareto-gflops.png, .svg   accuracy against multiply-adds
pareto-speed.png, .svg    accuracy against images/s
recommended.json          the setting to use, as `PruneConfig.load` and `prune_` take it

The paper's Table 1 compares methods over keep rates. Its Table 2 is not described where this package could read it; the
layout of table-2.md is this package's own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropatch.config import PruneConfig
from entropatch.figures import accuracy_against, save_figure
from entropatch.methods import find_method
from entropatch.records.files import write_text
from entropatch.records.tables import MISSING, markdown_table, write_records
from entropatch.search.points import DENSE, RANDOM, Point
from entropatch.search.study import ABOUT, ERROR, RECORD, SETTINGS, is_live, trials_by_point

if TYPE_CHECKING:
    from optuna import Study

TOLERANCE = 1.0


@dataclass(frozen=True)
class Summary:
    """One method at one keep rate, over its seeds.

    Attributes:
        method, label, keep_rate: as in `Point`; dense has no keep rate.
        runs, expected: trials finished, and how many there are to be.
        top1, top1_std: mean in percent, and sample standard deviation; None for one run.
        gflops: 10⁹ multiply-adds per image.
        vs_dense: images/s over those of the dense model timed in turns with it, mean over the runs.
    """

    method: str
    label: str
    keep_rate: float | None
    runs: int
    expected: int
    top1: float
    top1_std: float | None
    gflops: float
    vs_dense: float

    @property
    def order(self) -> float | None:
        """Of the entropy; None for a method that uses none."""
        return None if self.method == DENSE else find_method(self.method).order


def records_of(study: Study) -> list[dict[str, Any]]:
    """One record per finished trial, by method and keep rate as they were asked for: trial, method, label, order,
    keep_rate, seed and what `Experiment.measure` returned."""
    from optuna.trial import TrialState

    records = []
    for point, trials in trials_by_point(study.get_trials(deepcopy=False)).items():
        for trial in trials:
            if trial.state == TrialState.COMPLETE:
                order = None if point.method == DENSE else find_method(point.method).order
                head = {"trial": trial.number, "method": point.method, "label": point.label, "order": order}
                records.append(head | {"keep_rate": point.keep_rate, "seed": point.seed} | trial.user_attrs[RECORD])
                break  # should a setting ever be complete twice, the first counts
    return sorted(records, key=lambda record: _place(record["method"], record["keep_rate"], record["seed"]))


def failures_of(study: Study) -> dict[Point, str]:
    """The settings that have failed and are neither finished nor waiting to be tried again, with the last reason."""
    failed = {}
    for point, trials in trials_by_point(study.get_trials(deepcopy=False)).items():
        reasons = [trial.user_attrs.get(ERROR, "its worker died") for trial in trials if trial.state.name == "FAIL"]
        if reasons and not any(map(is_live, trials)):
            failed[point] = reasons[-1]
    return failed


def summaries_of(study: Study) -> list[Summary]:
    """The records of each method and keep rate as one."""
    expected: dict[tuple[str, float | None], int] = {}
    for point in trials_by_point(study.get_trials(deepcopy=False)):
        key = point.method, point.keep_rate
        expected[key] = expected.get(key, 0) + 1
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for record in records_of(study):
        groups.setdefault((record["method"], record["keep_rate"]), []).append(record)
    found = []
    for (method, keep_rate), records in groups.items():
        top1 = [record["top1"] for record in records]
        found.append(
            Summary(
                method,
                records[0]["label"],
                keep_rate,
                runs=len(records),
                expected=expected[method, keep_rate],
                top1=statistics.fmean(top1),
                top1_std=statistics.stdev(top1) if len(top1) > 1 else None,
                gflops=statistics.fmean(record["gflops"] for record in records),
                vs_dense=statistics.fmean(record["vs_dense"] for record in records),
            )
        )
    return found


# ------------------------------------------------------------------------------------------------------ the tables


def table_1(summaries: Sequence[Summary], budget: str | None = None) -> str:
    """Top-1 in percent: rows methods, columns keep rates from high to low, mean ± standard deviation over seeds.

    The best mean of each column is bold, as printed. The dense model has no keep rate and is the line above. With a
    budget there is one column for it, and each method's own keep rate is beside its name.
    """
    return _with_dense(summaries, _table(summaries, "method", lambda summary: summary.label, budget))


def table_2(summaries: Sequence[Summary], budget: str | None = None) -> str | None:
    """Top-1 in percent of the entropies alone: rows orders from low to high, columns keep rates; the last row names the
    best order of each. Else as `table_1`. None if there is no entropy among the summaries."""
    entropies = sorted((s for s in summaries if s.order is not None), key=lambda s: (s.order, -(s.keep_rate or 0)))
    if not entropies:
        return None

    def name(summary: Summary) -> str:
        return f"{_order(summary)} (Shannon)" if summary.order == 1 else _order(summary)

    def best(column: Sequence[Summary]) -> str:
        most = max(_printed(summary) for summary in column)
        return ", ".join(_order(summary) for summary in column if _printed(summary) == most)

    return _with_dense(summaries, _table(entropies, "order", name, budget, ("best order", best)))


def _with_dense(summaries: Sequence[Summary], table: str) -> str:
    lines = [f"Dense: {_cell(s)} at {s.gflops:.3f} GFLOPs.\n\n" for s in summaries if s.keep_rate is None]
    return "Top-1 accuracy in percent.\n\n" + "".join(lines) + table


def _table(
    summaries: Sequence[Summary],
    head: str,
    name: Callable[[Summary], str],
    budget: str | None,
    last: tuple[str, Callable[[Sequence[Summary]], str]] | None = None,
) -> str:
    """One row per name, one column per keep rate, or one for the budget; the best mean of a column in bold."""
    pruned = [summary for summary in summaries if summary.keep_rate is not None]
    rates = sorted({summary.keep_rate for summary in pruned if summary.keep_rate is not None}, reverse=True)
    columns = {f"{rate:.6g}": [s for s in pruned if s.keep_rate == rate] for rate in rates}
    heads = [head, *columns]
    if budget is not None:
        columns = {budget: pruned}
        heads = [head, "keep rate", budget]
    most = {key: max((_printed(s) for s in column), default=math.nan) for key, column in columns.items()}
    rows = []
    for label in dict.fromkeys(map(name, pruned)):
        row: list[Any] = [label]
        for key, column in columns.items():
            own = [s for s in column if name(s) == label]
            row += [f"{s.keep_rate:.6g}" for s in own] if budget is not None else []
            row += [_cell(s, bold=_printed(s) == most[key]) for s in own] or [MISSING]
        rows.append(row)
    if last is not None:
        spare = [""] if budget is not None else []
        rows.append([last[0], *spare, *(last[1](column) for column in columns.values())])
    return markdown_table(heads, rows)


def _printed(summary: Summary) -> float:
    """Top-1 as tables show it: what they show as equal is equal."""
    return round(summary.top1, 2)


def _gflops(summary: Summary) -> float:
    """Without the rounding of the mean: settings that cost the same do so exactly."""
    return round(summary.gflops, 9)


def _cell(summary: Summary, bold: bool = False) -> str:
    text = f"{summary.top1:.2f}" + ("" if summary.top1_std is None else f" ± {summary.top1_std:.2f}")
    text = f"**{text}**" if bold else text
    return text if summary.runs == summary.expected else f"{text} ({summary.runs} of {summary.expected})"


def _order(summary: Summary) -> str:
    order = summary.order
    assert order is not None
    return "∞" if math.isinf(order) else f"{order:.6g}"


def _place(method: str, keep_rate: float | None, seed: int) -> tuple[Any, ...]:
    """Dense and the methods without entropy first, then the orders from low to high; high keep rates first."""
    plain = (DENSE, RANDOM, "evit", "evit-drop")
    order = None if method == DENSE else find_method(method).order
    return (plain.index(method) if order is None else len(plain), order or 0.0, -(keep_rate or 1.0), seed)


# -------------------------------------------------------------------------------------------------- recommendation


def recommend(
    summaries: Sequence[Summary], settings: Mapping[str, Any], tolerance: float = TOLERANCE
) -> tuple[Summary | None, str]:
    """The setting to use, and the rule it was chosen by. Random pruning is never chosen.

    With a budget: the highest mean top-1 among the settings that meet it. Without: the fewest multiply-adds among those
    whose mean top-1 is at most `tolerance` below the dense model's; if there is none, or dense was not tried, the
    highest mean top-1. Of equals, the one of fewer multiply-adds, then of higher top-1, then the first in the table.

    Args:
        summaries: as `summaries_of` gives them.
        settings: of the study, as `SearchSettings.compared` gives them.
        tolerance: in percent of the test images.
    """
    candidates = [s for s in summaries if s.method not in (DENSE, RANDOM)]
    dense = next((s for s in summaries if s.method == DENSE), None)
    if budget := budget_text(settings):
        most = settings["target_gflops"]
        met = [s for s in candidates if most is None or _gflops(s) <= most]
        rule = f"the highest mean top-1 that meets the budget ({budget})"
        return max(met, key=lambda s: (_printed(s), -_gflops(s)), default=None), rule
    near = [s for s in candidates if dense is not None and _printed(s) >= round(_printed(dense) - tolerance, 6)]
    if near:
        rule = f"the fewest multiply-adds with a mean top-1 no more than {tolerance:g} % (absolute) below dense"
        return min(near, key=lambda s: (_gflops(s), -_printed(s))), rule
    why = "dense was not tried" if dense is None else f"none is within {tolerance:g} % (absolute) of dense"
    return max(
        candidates, key=lambda s: (_printed(s), -_gflops(s)), default=None
    ), f"the highest mean top-1, since {why}"


def budget_text(settings: Mapping[str, Any]) -> str | None:
    """The budget of a study in a few words; None without one."""
    if settings["target_gflops"] is not None:
        return f"at most {settings['target_gflops']:g} GFLOPs"
    if settings["target_speedup"] is not None:
        return f"at least {settings['target_speedup']:g}× the images/s of dense"
    return None


# -------------------------------------------------------------------------------------------------------- the files


def write_report(study: Study, folder: str | Path, tolerance: float = TOLERANCE) -> list[Path]:
    """Write all files that this module's head names. The same study gives the same files.

    Args:
        study: of a search.
        folder: made if missing.
        tolerance: as of `recommend`.

    Returns:
        The paths. Without a finished trial, none; without one of a method to recommend, no recommended.json, and one
        from before is removed.
    """
    records, folder = records_of(study), Path(folder)
    if not records:
        return []
    settings, summaries = study.user_attrs[SETTINGS], summaries_of(study)
    budget = budget_text(settings)
    chosen, rule = recommend(summaries, settings, tolerance)
    title = f"{settings['model']['name']} on {settings['data']['name']}, {settings['scope']}"
    about = (
        study.user_attrs[ABOUT]
        | ({"budget": budget} if budget else {})
        | {"recommended by": rule, "recommended": _chosen_text(chosen)}
    )
    about |= {f"failed: {point.name}": reason for point, reason in failures_of(study).items()}
    paths = write_records(
        records, folder, "search", title=f"Search: {title}", about=about, table=_records_table(records)
    )
    for number, table in ((1, table_1(summaries, budget)), (2, table_2(summaries, budget))):
        if table is not None:
            paths.append(folder / f"table-{number}.md")
            write_text(paths[-1], f"# {title}\n\n{table}")
    paths += _write_plots(records, summaries, folder, title)
    path = folder / "recommended.json"
    if chosen is None:
        path.unlink(missing_ok=True)
        return paths
    write_text(path, recommended_config(chosen, settings).to_json() + "\n")
    return [*paths, path]


def recommended_config(chosen: Summary, settings: Mapping[str, Any]) -> PruneConfig:
    """The setting as `prune_` takes it."""
    config = Point(chosen.method, chosen.keep_rate, 0).config(settings["blocks"], settings["scope"])
    assert config is not None
    return config


def _chosen_text(chosen: Summary | None) -> str:
    if chosen is None:
        return "nothing: no method but dense and random has been tried"
    return (
        f"{chosen.label} at keep rate {chosen.keep_rate:.6g}: top-1 {_cell(chosen)} %, {chosen.gflops:.3f} GFLOPs, "
        f"{chosen.vs_dense:.2f} times the images/s of dense"
    )


def _records_table(records: Sequence[Mapping[str, Any]]) -> str:
    formats = {
        "top1": ".2f",
        "top5": ".2f",
        "gflops": ".3f",
        "images_per_second": ".1f",
        "vs_dense": ".2f",
        "seconds": ".1f",
    }
    heads = {"trial": "trial", "label": "method", "keep_rate": "keep rate", "seed": "seed", "top1": "top-1 %"}
    heads |= {"top5": "top-5 %", "gflops": "GFLOPs", "images_per_second": "images/s", "vs_dense": "× dense"}
    heads |= {"seconds": "seconds"}
    rows = [[_shown(record[key], formats.get(key)) for key in heads] for record in records]
    return markdown_table(list(heads.values()), rows)


def _shown(value: Any, form: str | None) -> Any:
    return format(value, form) if form else value


def _write_plots(
    records: Sequence[Mapping[str, Any]], summaries: Sequence[Summary], folder: Path, title: str
) -> list[Path]:
    """Images/s are those of dense, the median of all trials, times each setting's ratio to it: the trials were timed at
    different moments and perhaps on different machines, while dense and pruned were timed in turns."""
    dense = statistics.median(record["dense_images_per_second"] for record in records)
    points = [
        {
            "label": s.label,
            "keep_rate": s.keep_rate,
            "top1": s.top1,
            "top1_std": s.top1_std,
            "gflops": s.gflops,
            "images_per_second": s.vs_dense * dense,
        }
        for s in summaries
    ]
    notes = {
        "gflops": "",
        "images_per_second": f"Images/s: ratio to the dense model timed in turns, times its median of {dense:.1f}.",
    }
    paths = []
    for x, name in (("gflops", "pareto-gflops"), ("images_per_second", "pareto-speed")):
        figure = accuracy_against(points, x, title=title, note=notes[x])
        paths += [save_figure(figure, folder / f"{name}.{kind}") for kind in ("png", "svg")]
    return paths
