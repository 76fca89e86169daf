"""What `foreground.py` measured, as records, tables and a figure; and how far AUROC and accuracy agree."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entropatch.figures import aurocs_of_models, save_figure
from entropatch.look.agreement import FEWEST, agreement
from entropatch.look.foreground import PIXELS
from entropatch.look.verdict import mean_of
from entropatch.methods import METHODS, RANDOM, find_method, method_label
from entropatch.records.files import replacing
from entropatch.records.tables import markdown_table, write_records
from entropatch.reductions import Drop

ALL = "all"  # sizes, or pruning blocks
BESIDE = "evit"  # the score that others are compared with: the class token's attention


@dataclass(frozen=True)
class Measured:
    """Each object's AUROC.

    Attributes:
        models, scores: names.
        shares: of the picture's area that objects take.
        aurocs: (models, shares, scores, blocks, objects); NaN where an object fills no patch at that size.
        pixels: (shares, objects), of the pixel deviation.
        about: what was measured on, as JSON holds it.
    """

    models: tuple[str, ...]
    shares: tuple[float, ...]
    scores: tuple[str, ...]
    aurocs: np.ndarray
    pixels: np.ndarray
    about: Mapping[str, Any]

    def save(self, path: Path) -> None:
        names = {"models": self.models, "shares": self.shares, "scores": self.scores, "about": dict(self.about)}
        with replacing(path) as temporary, Path(temporary).open("wb") as file:
            arrays = {"aurocs": self.aurocs.astype(np.float32), "pixels": self.pixels.astype(np.float32)}
            np.savez_compressed(file, names=np.array(json.dumps(names)), **arrays)  # pyright: ignore

    @classmethod
    def load(cls, path: Path) -> Measured:
        with np.load(path, allow_pickle=False) as file:
            names = json.loads(str(file["names"]))
            models, shares, scores = (tuple(names[key]) for key in ("models", "shares", "scores"))
            aurocs, pixels = (file[key].astype(float) for key in ("aurocs", "pixels"))
            return cls(models, shares, scores, aurocs, pixels, names["about"])

    @property
    def of_objects(self) -> np.ndarray:
        """The mean over sizes, of each object: (models, scores, blocks, objects)."""
        return self.aurocs.mean(1)


def records_of(measured: Measured, blocks: Sequence[int]) -> list[dict[str, Any]]:
    """One record for each model, size (and their mean), score and block (and the mean of the pruning blocks)."""
    sizes: list[tuple[Any, np.ndarray, np.ndarray]]
    sizes = [(share, measured.aurocs[:, i], measured.pixels[i]) for i, share in enumerate(measured.shares)]
    sizes.append((ALL, measured.of_objects, measured.pixels.mean(0)))
    records = []
    for (number, model), (share, aurocs, pixels) in (
        (one, size) for one in enumerate(measured.models) for size in sizes
    ):
        depth = aurocs.shape[2]
        for place, score in enumerate(measured.scores):
            columns: list[tuple[Any, Any]] = [(block, np.s_[block]) for block in range(depth)]
            for block, where in [*columns, (ALL, list(blocks))]:
                values, first = (_column(aurocs[i, place, where]) for i in (number, 0))
                record = _record(model, share, score, block, values)
                if number:
                    record["difference"], record["difference_error"] = mean_of(values - first)
                if BESIDE in measured.scores and score != BESIDE:
                    other = _column(aurocs[number, measured.scores.index(BESIDE), where])
                    record["less_evit"], record["less_evit_error"] = mean_of(values - other)
                records.append(record)
        records.append(_record(model, share, PIXELS, None, _column(pixels)))
    return records


def _column(aurocs: np.ndarray) -> np.ndarray:
    """The mean over blocks, of each object that fills a patch."""
    values = aurocs.mean(0) if aurocs.ndim == 2 else aurocs
    return values[np.isfinite(values)]


def _record(model: str, share: Any, score: str, block: Any, values: np.ndarray) -> dict[str, Any]:
    mean, error = mean_of(values)
    label = "pixel deviation" if score == PIXELS else method_label(score)
    record = {"model": model, "share": share, "score": score, "label": label, "block": block, "auroc": mean}
    none = dict.fromkeys(("difference", "difference_error", "less_evit", "less_evit_error"))
    return record | {"standard_error": error, "objects": len(values)} | none


def accuracies(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of accuracies, .json as the commands write it or .csv.

    A row has top1 (percent) and method (its name; or, as `entropatch evaluate` has it, name: its label and the keep
    rate), and may have keep_rate, top1_se (its standard error), and model, one of those looked at.
    """
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))["records"]
    else:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    labels = {method.label: name for name, method in METHODS.items()}
    found = []
    for row in rows:
        label = str(row.get("name", "")).partition(", 0.")[0]
        name = row.get("method") or labels.get(label)
        if name is None and label.startswith("Rényi, order "):
            name = "renyi-" + label.removeprefix("Rényi, order ").replace("∞", "inf")
        if name is not None and name != "dense":
            found.append({**row, "method": find_method(str(name)).name})
    if not found:
        raise ValueError(f"{path} must hold rows with a method and its top1, but of {len(rows)} rows none has.")
    return found


def agreements(measured: Measured, rows: Sequence[Mapping[str, Any]], blocks: Sequence[int]) -> list[dict[str, Any]]:
    """Spearman's correlations, for each model and keep rate that the rows speak of, with and without random."""
    criteria = {score: find_method(score).criterion for score in measured.scores}
    found = []
    for model, rate in dict.fromkeys((row.get("model"), row.get("keep_rate")) for row in rows):
        names = [str(model)] if model else list(measured.models)
        for name in names:
            if name not in measured.models:
                raise ValueError(f"the accuracies are of {name!r}, but looked at were {', '.join(measured.models)}.")
            same = [row for row in rows if (row.get("model"), row.get("keep_rate")) == (model, rate)]
            points = dict(_points(same, criteria))
            for left_out in ((), (RANDOM,)):
                chosen = {score: point for score, point in points.items() if score not in left_out}
                if len(chosen) < FEWEST:
                    continue
                index = [measured.scores.index(score) for score in chosen]
                aurocs = measured.of_objects[measured.models.index(name)][index][:, list(blocks)].mean(1)
                values, errors = np.array(list(chosen.values())).T
                result = agreement(aurocs[:, np.isfinite(aurocs).all(0)], values, errors)
                about = {"model": name, "keep_rate": rate, "scores": ", ".join(chosen)}
                found.append(about | vars(result))
    return found


def _points(
    rows: Sequence[Mapping[str, Any]], criteria: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Top-1 and its standard error for each criterion: of the method that drops by it where there is one, since then
    only the criterion differs; the mean over rows that differ in their seed."""
    for score, criterion in criteria.items():
        methods = [(row, find_method(row["method"])) for row in rows]
        of = [(row, one) for row, one in methods if one.reduction.needs_scores and one.criterion == criterion]
        chosen = [row for row, one in of if one.reduction == Drop()] or [row for row, _ in of]
        if chosen:
            errors = [float(row.get("top1_se") or 0.0) for row in chosen]
            mean = float(np.mean([float(row["top1"]) for row in chosen]))
            yield score, (mean, float(np.linalg.norm(errors)) / len(errors))


def tables(records: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], blocks: Sequence[int]) -> str:
    """The Markdown: at the pruning blocks by size, in every block, the differences to the first model, agreement."""
    models = list(dict.fromkeys(record["model"] for record in records))
    shares = list(dict.fromkeys(record["share"] for record in records))
    scores = {record["score"]: record["label"] for record in records}
    by = {(one["model"], one["share"], one["block"], one["score"]): one for one in records}
    pruning = ", ".join(map(str, blocks))

    def row(model: str, share: Any, block: Any, key: str = "auroc") -> list[str | None]:
        ones = [by.get((model, share, block, score)) or by.get((model, share, None, score)) for score in scores]
        return [None if one is None or one[key] is None else _cell(one, key) for one in ones]

    parts = [f"Mean over blocks {pruning}, where pruning would take place, by the object's share of the picture:\n"]
    head = ["model", "object", *scores.values()]
    rows = [[model, _share(share), *row(model, share, ALL)] for model in models for share in shares]
    parts.append(markdown_table(head, rows))
    if models[1:]:
        parts.append(f"\nDifference to {models[0]}, on the same pictures, mean over blocks {pruning}:\n")
        rows = [[one, _share(share), *row(one, share, ALL, "difference")] for one in models[1:] for share in shares]
        parts.append(markdown_table(head, rows))
    if BESIDE in scores:
        parts.append(
            f"\nDifference to {scores[BESIDE]}'s class attention, on the same pictures, mean over blocks {pruning}:\n"
        )
        rows = [[one, _share(share), *row(one, share, ALL, "less_evit")] for one in models for share in shares]
        parts.append(markdown_table(head, rows))
    for model in models:
        depth = 1 + max(one["block"] for one in records if isinstance(one["block"], int))
        parts.append(f"\n{model}, block by block, mean over the sizes:\n")
        parts.append(markdown_table(["block", *scores.values()], [[b, *row(model, ALL, b)] for b in range(depth)]))
    if found:
        parts.append(f"\nRank correlation (Spearman) of AUROC at blocks {pruning} and top-1, over criteria:\n")
        rows = [
            [
                *(one["model"], one["keep_rate"], one["scores"], f"{one['correlation']:+.2f}"),
                *(f"{one['low']:+.2f} … {one['high']:+.2f}", f"{one['p']:.3f}"),
            ]
            for one in found
        ]
        parts.append(markdown_table(["model", "keep rate", "criteria", "ρ", "95 %", "p"], rows))
    return "\n".join(parts)


def _cell(one: Mapping[str, Any], key: str) -> str:
    sign, error = ("", one["standard_error"]) if key == "auroc" else ("+", one[f"{key}_error"])
    return f"{one[key]:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


def _share(share: Any) -> str:
    return "all sizes" if share == ALL else f"{share:.0%}"


def write(measured: Measured, found: Sequence[Mapping[str, Any]], blocks: Sequence[int], output: Path) -> list[Path]:
    records = records_of(measured, blocks)
    about = {**measured.about, "pruning_blocks": list(blocks)} | ({"agreement": list(found)} if found else {})
    title = "Which scores mark a pasted object"
    shown = tables(records, found, blocks)
    paths = write_records(records, output, "foreground", title=title, about=about, table=shown)
    panels = {
        model: [one for one in records if (one["model"], one["share"]) == (model, ALL) and one["block"] != ALL]
        for model in measured.models
    }
    note = f"{measured.about['objects']} objects, mean over sizes; a bar is one standard error over objects."
    figure = aurocs_of_models(panels, blocks, title=f"{title}: AUROC in each block", note=note)
    return [*paths, save_figure(figure, output / "foreground.png")]
