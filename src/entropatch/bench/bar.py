"""Whether a method reaches a stated share of random pruning's speed: yes, no, or not known from so many rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropatch.bench.runtimes import TORCH

YES, NO, UNKNOWN = "yes", "no", "unknown"


def reaches(low: float | None, high: float | None, bar: float) -> str:
    """Where the 95 % interval of a ratio lies: all of it at or above the bar, all below, or on both sides."""
    if low is None or high is None:
        return UNKNOWN
    return YES if low >= bar else NO if high < bar else UNKNOWN


def bar_sentences(records: Sequence[Mapping[str, Any]], bar: float) -> list[str]:
    """For each batch size, which rows reach the bar, which do not, and of which it is not known."""
    lines = []
    for batch_size in dict.fromkeys(record["batch_size"] for record in records):
        rows = [r for r in records if r["batch_size"] == batch_size and r.get("reaches") is not None]
        answers = {answer: [_shown(r) for r in rows if r["reaches"] == answer] for answer in (YES, NO, UNKNOWN)}
        text = "; ".join(f"{answer}: {', '.join(named)}" for answer, named in answers.items() if named)
        if text:
            lines.append(
                f"At least {bar:g} of the images/s of random, batch {batch_size}? {text[0].upper()}{text[1:]}."
            )
    return lines


def _shown(record: Mapping[str, Any]) -> str:
    interval = "no interval"
    if record["vs_random_low"] is not None:
        interval = f"{record['vs_random_low']:.3f} … {record['vs_random_high']:.3f}"
    rate = "" if record["keep_rate"] is None else f" {record['keep_rate']:g}"
    runtime = record.get("runtime", TORCH), record.get("int8")
    where = "" if runtime == (TORCH, None) else f" in {runtime[0]}{f', int8 {runtime[1]}' if runtime[1] else ''}"
    return f"{record['label']}{rate}{where} ({interval})"
