"""What a search found, from its study alone: records, the tables of the paper, Pareto plots, a recommended setting.

search.md, .csv, .json    one record per finished trial
table-1.md                rows methods, columns keep rates
table-2.md                rows orders, columns keep rates
pareto-gflops.png, .svg   accuracy against multiply-adds
pareto-speed.png, .svg    accuracy against images/s
recommended.json          the setting to use, as `PruneConfig.load` and `prune_` take it
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropatch.figures import accuracy_against, save_figure
from entropatch.records.files import write_text
from entropatch.records.tables import write_records
from entropatch.search.accuracy_tables import records_table, table_1, table_2
from entropatch.search.recommendation import TOLERANCE, budget_text, chosen_text, recommend, recommended_config
from entropatch.search.study import ABOUT, SETTINGS
from entropatch.search.summaries import Summary, failures_of, records_of, summaries_of

if TYPE_CHECKING:
    from optuna import Study


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
        | {"recommended by": rule, "recommended": chosen_text(chosen)}
    )
    about |= {f"failed: {point.name}": reason for point, reason in failures_of(study).items()}
    paths = write_records(
        records, folder, "search", title=f"Search: {title}", about=about, table=records_table(records)
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
