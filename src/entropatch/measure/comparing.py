"""The errors of an evaluation: of each accuracy, and of its difference to dense and to random on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropatch.config import PruneConfig
from entropatch.criteria import Random
from entropatch.methods import DENSE, RANDOM
from entropatch.records.correct import CorrectImages
from entropatch.records.tables import markdown_table, plus_minus
from entropatch.records.uncertainty import MULTIPLE, Estimate, accuracy, binomial, paired_difference

REFERENCES = (DENSE, RANDOM)
AHEAD, BEHIND, LEVEL = "ahead", "behind", "not told apart"
ERRORS_TEXT = (
    "± is one standard error over the test images: √(p (1 − p) / N) of an accuracy, of a difference that of the pairs "
    f"on the same images. Bold is ahead by more than {MULTIPLE:g} of them, without allowance for how many are compared."
)

UNPAIRED_TEXT = (
    "± is one binomial standard error over the test images. These records do not say which images came out right, so "
    "the differences between rows have no error."
)


def with_binomial(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of `evaluate` of a version that noted no errors, with the one that follows from its number of images."""
    top1, images = record.get("top1"), record.get("images")
    if "top1_se" in record or not isinstance(images, int) or not isinstance(top1, (int, float)):
        return dict(record)
    if images < 1 or not 0 <= top1 <= 100:
        return dict(record)
    return dict(record) | {"top1_se": binomial(round(top1 * images / 100), images).standard_error}


def compared(settings: Mapping[str, PruneConfig | None], correct: CorrectImages) -> dict[str, dict[str, Any]]:
    """For each setting what its record says of errors, in percent (points).

    top1_se, top1_low and top1_high, standard error and 95 % interval (Wilson's); and for dense and random:
    top1_less_dense, the paired difference, top1_less_dense_se, _low and _high, and against_dense, "ahead", "behind" or
    "not told apart" (see `paired_difference`). Dense is the first setting that prunes nothing, random the one with
    random scores and the same keep rate, blocks and schedule; what is not there is None.
    """
    found: dict[str, dict[str, Any]] = {}
    images = correct.tested
    for name, config in settings.items():
        own = correct.correct[name][images]
        record: dict[str, Any] = _fields("top1", accuracy(own), value=False)
        for kind, reference in zip(REFERENCES, (_dense(settings), _random(config, settings)), strict=True):
            difference = None
            if reference is not None and reference != name and len(own) > 1:
                difference = paired_difference(own, correct.correct[reference][images])
            record |= _fields(f"top1_less_{kind}", difference)
            record[f"against_{kind}"] = None if difference is None else standing(difference)
        found[name] = record
    return found


def standing(difference: Estimate) -> str:
    """ "ahead", "behind" or "not told apart"."""
    if not difference.is_distinct:
        return LEVEL
    return AHEAD if difference.is_ahead else BEHIND


def _fields(name: str, estimate: Estimate | None, value: bool = True) -> dict[str, Any]:
    keys = ({name: "value"} if value else {}) | {
        f"{name}_se": "standard_error",
        f"{name}_low": "low",
        f"{name}_high": "high",
    }
    return {key: None if estimate is None else getattr(estimate, field) for key, field in keys.items()}


def _dense(settings: Mapping[str, PruneConfig | None]) -> str | None:
    return next((name for name, config in settings.items() if config is None), None)


def _random(config: PruneConfig | None, settings: Mapping[str, PruneConfig | None]) -> str | None:
    if config is None or isinstance(config.criterion, Random):
        return None

    def place(one: PruneConfig) -> tuple[Any, ...]:
        return one.keep_rate, one.blocks, one.schedule

    return next(
        (
            name
            for name, other in settings.items()
            if other is not None and isinstance(other.criterion, Random) and place(other) == place(config)
        ),
        None,
    )


def evaluation_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records of `evaluate` as a Markdown table, and below it what is told apart and what is not."""
    columns = {"name": "", "top1": "top-1 %", "top1_less_dense": "− dense", "top1_less_random": "− random"}
    columns |= {"top5": "top-5 %", "gflops": "GFLOPs", "images_per_second": "images/s"}
    shown = [key for key in columns if any(record.get(key) is not None for record in records)]
    table = markdown_table([columns[key] for key in shown], [[_cell(one, key) for key in shown] for one in records])
    return "\n".join([table, *error_notes(records)]) + "\n"


def error_notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ± means in these records of `evaluate`, and which rows are not told apart; in those of versions that noted
    no pairs, that this is not known."""
    if not any(f"against_{kind}" in record for record in records for kind in REFERENCES):
        return [UNPAIRED_TEXT]
    level = {kind: [str(one["name"]) for one in records if one.get(f"against_{kind}") == LEVEL] for kind in REFERENCES}
    lines = [f"Not told apart from {kind}: {'; '.join(names)}." for kind, names in level.items() if names]
    return [ERRORS_TEXT, *lines]


def _cell(record: Mapping[str, Any], key: str) -> Any:
    value = record.get(key)
    if value is None or key == "name":
        return value
    if key.startswith("top1_less"):
        ahead = record[key.replace("top1_less", "against")] == AHEAD
        return plus_minus(value, record[f"{key}_se"], signed=True, bold=ahead)
    if key == "top1":
        return plus_minus(value, record["top1_se"])
    return format(value, {"top5": ".2f", "gflops": ".3f", "images_per_second": ".1f"}[key])
