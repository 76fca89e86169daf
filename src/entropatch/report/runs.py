"""Detection of what a folder or file holds."""

from __future__ import annotations

from pathlib import Path

from entropatch.data.images import printable
from entropatch.report.content import ReportError, Run, reading
from entropatch.report.finetune_runs import is_finetune_folder, read_finetune
from entropatch.report.records import read_records, read_records_folder
from entropatch.report.segment_runs import is_segment_folder, read_segment

COMMANDS = "demo, bench, evaluate, check, figures, finetune, segment, calibrate, search or visualize"
SUPPORTED = f"folders or .json files of entropatch {COMMANDS}"
# Files by which a folder that holds no finished run is known, and what it is.
SIGNS = {
    "calibrating.json": "a calibration that is not finished; start the same command again",
    "search.db": "a search that has no report yet; entropatch search --report writes it",
    "correct.json": "which images came out right, without the records beside it",
    "recommended.json": "a setting for prune_, without the records it was found by",
    "calibrated.json": "a setting for prune_, without the records it was found by",
    "config.json": "a model of transformers or of another library",
}


def read_run(path: str | Path, most_pictures: int = 24) -> Run:
    """What a folder or .json file holds, told by its content.

    Args:
        path: a folder that one of the commands wrote, or one of its .json files alone.
        most_pictures: so many of a folder's pictures are read; the others are counted.

    Raises:
        ReportError: it does not exist, is damaged, or holds nothing a report can show.
    """
    path = Path(path)
    if path.is_dir():
        # What is damaged is named by the readers; this is for what none of them thought of.
        run = reading(path, lambda folder: _read_folder(folder, most_pictures))
        if run is None:
            raise ReportError(_nothing_in(path))
        return run
    if not path.exists():
        raise ReportError(f"{printable(path)}: no such file or folder; a report takes {SUPPORTED}.")
    if path.suffix.lower() != ".json":
        raise ReportError(f"{printable(path)}: not a .json file; a report takes {SUPPORTED}.")
    run = read_records(path)
    if run is None:
        beside = " It belongs to a run that was trained: name its folder." if is_finetune_folder(path.parent) else ""
        raise ReportError(f"{printable(path)}: holds no records; a report takes {SUPPORTED}.{beside}")
    return run


def _read_folder(folder: Path, most_pictures: int) -> Run | None:
    if is_segment_folder(folder):
        return read_segment(folder)
    return read_finetune(folder) if is_finetune_folder(folder) else read_records_folder(folder, most_pictures)


def _nothing_in(folder: Path) -> str:
    children = reading(folder, lambda path: sorted(path.iterdir()))
    text = f"{printable(folder)}: holds no run; it is {_what(children)}; a report takes {SUPPORTED}."
    inside = [child.name for child in children if child.is_dir() and next(child.glob("*.json"), None)]
    if inside:
        more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
        text += f" It has the folders {', '.join(printable(name) for name in inside[:5])}{more}: name those."
    return text


def _what(children: list[Path]) -> str:
    """What a folder is that is no run: by a file that tells, or by what is in it."""
    if not children:
        return "empty"
    names = {child.name for child in children}
    known = next((f"{text} ({name})" for name, text in SIGNS.items() if name in names), None)
    files = [printable(child.name) for child in children if child.is_file()]
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return known or (f"a folder of {', '.join(files[:3])}{more}" if files else "a folder of folders")
