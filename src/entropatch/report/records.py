"""Folders and files of records ({"about": {…}, "records": [{…}, …]}), with the pictures beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from entropatch.data.images import png_texts
from entropatch.measure.comparing import error_notes, with_binomial
from entropatch.report.calibrations import calibration_tables
from entropatch.report.cells import flat, joined, pivot, records_table, shown
from entropatch.report.content import Run, Table, load_json, reading
from entropatch.report.pictures import choose_pictures, read_picture

# A record of one of these commands has all of the keys; the first that fits counts.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("bench", ("vs_random", "peak_memory_mib")),
    ("segment", ("name", "miou", "to_dense")),
    ("calibrate", ("part", "cost", "pruning")),
    ("search", ("trial", "top1", "gflops")),
    ("evaluate", ("name", "top1", "damaged")),
    ("check", ("label", "block", "auroc")),
    ("finetune", ("seed", "best_top1", "best_epoch")),
)
# What `entropatch.measure.environment` notes, and the packages the demo adds.
MACHINE = ("device", "hardware", "cpu", "cores", "threads", "omp_num_threads", "omp_wait_policy", "cpu_capability")
MACHINE += ("python", "torch", "cuda", "timm", "entropatch", "platform", "date")
MACHINE += ("torchvision", "scikit-learn", "scikit-image", "matplotlib")
SETTINGS = ("recommended.json", "calibrated.json")  # what a run found, for `prune_`
# Entries that say what came out: those that begin so, and some with their names before them.
FINDINGS = ("comparison", "verdict", "recommended", "additivity")
NAMED_FINDINGS = ("keep rate ", "Spearman")

# `entropatch visualize` writes them into each of its pictures.
SOURCE_KEY, ABOUT_KEY = "entropatch-source", "entropatch-about"


def read_records(path: Path) -> Run | None:
    """The run in one file of records; None if it is another JSON file. Raises ReportError for a damaged one."""
    data = load_json(path)
    return reading(path, lambda file: _records_run(file, data)) if is_records(data) else None


def _records_run(path: Path, data: Mapping[str, Any]) -> Run:
    about, records = dict(data["about"]), data["records"]
    if not all(isinstance(record, Mapping) for record in records):
        raise ValueError("its records are not all objects")
    maker = str(about.pop("made by", "")).removeprefix("entropatch ")
    kind = maker or kind_of(records)
    findings = {key: shown(about[key]) for key in about if key.startswith(FINDINGS)}
    if kind == "evaluate":
        records = [with_binomial(record) for record in records]
        findings |= {f"errors {number}": line for number, line in enumerate(error_notes(records))}
    findings |= {key: f"{key}: {shown(about[key])}" for key in about if key.startswith(NAMED_FINDINGS)}
    settings = flat({key: value for key, value in about.items() if key not in findings})
    return Run(
        path=path,
        kind=kind,
        title=_title(path.with_suffix(".md")) or path.stem,
        findings=tuple(line for text in findings.values() for line in text.splitlines()),
        tables=_tables(kind, records, about),
        settings={key.removeprefix("settings."): value for key, value in settings.items() if key not in MACHINE},
        machine={key: value for key, value in settings.items() if key in MACHINE and value != "—"},
    )


def _tables(kind: str, records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> tuple[Table, ...]:
    if kind == "calibrate":
        return calibration_tables(records, about)
    return (pivot(records, "block", "label", "auroc") if kind == "check" else records_table(records),)


def read_records_folder(folder: Path, most_pictures: int) -> Run | None:
    """All record files of a folder as one run, with its pictures and further tables; None if there is nothing."""
    files = reading(folder, lambda path: sorted(child for child in path.iterdir() if child.is_file()))
    read = {file: read_records(file) for file in files if file.suffix.lower() == ".json"}
    runs = {file.stem: run for file, run in read.items() if run is not None}
    candidates = choose_pictures(files)
    pictures = [read_picture(file) for file in candidates[:most_pictures]]
    if not runs:
        if not candidates or not _is_ours(files, candidates):
            return None
        runs = {folder.name: _drawings(folder, candidates)}
    first, several = next(iter(runs.values())), len(runs) > 1
    return Run(
        path=folder,
        kind=first.kind,
        title=_joined([run.title for run in runs.values()]),
        findings=tuple(dict.fromkeys(text for run in runs.values() for text in run.findings)),
        tables=tuple(
            replace(table, caption=f"{stem}: {table.caption}".removesuffix(": ")) if several else table
            for stem, run in runs.items()
            for table in run.tables
        ),
        texts=_texts(files, runs),
        pictures=tuple(pictures),
        pictures_left_out=len(candidates) - len(pictures),
        settings=joined({stem: run.settings for stem, run in runs.items()}),
        machine=joined({stem: run.machine for stem, run in runs.items()}),
    )


def is_records(data: Any) -> bool:
    """Whether this is what `entropatch.records.tables.write_records` writes."""
    return (
        isinstance(data, Mapping)
        and isinstance(data.get("about"), Mapping)
        and isinstance(data.get("records"), list)
        and bool(data["records"])
    )


def kind_of(records: Sequence[Mapping[str, Any]]) -> str:
    """The command that made such records, by their keys."""
    return next((kind for kind, keys in KINDS if set(keys) <= set(records[0])), "records")


def _drawings(folder: Path, pictures: Sequence[Path]) -> Run:
    """Pictures without records beside them, and what those of `entropatch visualize` say of themselves."""
    texts = {picture.name: png_texts(picture) for picture in pictures if picture.suffix.lower() == ".png"}
    drawn = {name: one for name, one in texts.items() if SOURCE_KEY in one}
    known = {name: flat(one[ABOUT_KEY]) for name, one in drawn.items() if one.get(ABOUT_KEY, "").startswith("{")}
    facts = joined(known)
    if len(known) > 1 and "date" in facts:
        facts["date"] = ", ".join(sorted({one["date"] for one in known.values() if "date" in one}))
    return Run(
        folder,
        "visualize" if drawn else "figures",
        folder.resolve().name,
        settings={key: value for key, value in facts.items() if key not in MACHINE},
        machine={key: value for key, value in facts.items() if key in MACHINE and value != "—"},
    )


def _title(markdown: Path) -> str | None:
    """The heading of the Markdown file beside a file of records."""
    if not markdown.is_file():
        return None
    first = reading(markdown, lambda file: file.read_text(encoding="utf-8", errors="replace")).partition("\n")[0]
    return first.removeprefix("# ").strip() if first.startswith("# ") else None


def _joined(titles: Sequence[str]) -> str:
    """Each title once, without those of the parts of another, which follow its own behind a colon."""
    return ", ".join(one for one in dict.fromkeys(titles) if not any(one.startswith(f"{other}: ") for other in titles))


def _texts(files: Sequence[Path], runs: Mapping[str, Run]) -> dict[str, str]:
    """Tables in a layout of their own, and the setting that was found: what lies there beside the records."""
    wanted = [file for file in files if file.suffix == ".md" and file.stem not in runs]
    wanted += [file for file in files if file.name in SETTINGS]
    return {file.name: reading(file, lambda path: path.read_text(encoding="utf-8")) for file in wanted}


def _is_ours(files: Sequence[Path], pictures: Sequence[Path]) -> bool:
    """Whether a folder of pictures without records is of `entropatch figures` or `visualize`, not a photo album.

    The first writes the numbers behind each picture beside it, the second a mark into it.
    """
    numbers = {file.stem for file in files if file.suffix in (".csv", ".npz")}
    for picture in pictures:
        if picture.stem in numbers:
            return True
        texts = png_texts(picture)
        if SOURCE_KEY in texts or texts.get("Software", "").startswith("entropatch"):
            return True
    return False
