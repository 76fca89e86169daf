"""What a foreground check says of pruning by low entropy, in words: where it can be trusted, and where it is best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A mean counts as above or below chance, or above another, if it is so by this many of its standard errors.
ERRORS = 2.0

Mean = tuple[float, "float | None"]


@dataclass(frozen=True)
class Verdict:
    """Whether low entropy of one order, or a high score, may be trusted at some blocks, and at which ones it is best.

    Attributes:
        score: its name in the records, such as "renyi-2".
        blocks: 0-based blocks in question.
        best: as many blocks, those of the highest mean AUROC, ascending; of equal ones those in question come first.
        trusted: whether at each of `blocks` the mean AUROC lies more than two standard errors over images above 0.5.
        text: all of it in a line.
    """

    score: str
    blocks: tuple[int, ...]
    best: tuple[int, ...]
    trusted: bool
    text: str


def judge(
    score: str, label: str, aurocs: np.ndarray, blocks: Sequence[int], of_paper: bool = False, what: str = "low entropy"
) -> Verdict:
    """The verdict on one order, or on one method's scores.

    Args:
        score, label: its name, and how tables call it.
        aurocs: (images, blocks of the model).
        blocks: 0-based blocks that would prune.
        of_paper: whether these are the paper's, to be said.
        what: what marks the foreground, in words.
    """
    blocks = tuple(blocks)
    at = [mean_of(aurocs[:, block]) for block in range(aurocs.shape[1])]
    order = sorted(range(len(at)), key=lambda block: (-at[block][0], block not in blocks, block))
    best = tuple(sorted(order[: len(blocks)]))
    marked = sum(above(*mean) for mean in at)
    where = named(blocks) + (" (the paper's)" if of_paper else "")
    head = (
        f"{label}: {what} marks the foreground in {marked} of {len(at)} blocks. "
        f"At {where} its AUROC is {_numbers(at, blocks)}: "
    )
    trusted, advice = _advice({block: at[block] for block in blocks}, what)
    return Verdict(score, blocks, best, trusted, head + advice + _beside(aurocs, at, blocks, best, trusted, what))


def mean_of(values: np.ndarray) -> Mean:
    """Mean over images and its standard error, which a single image does not have."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(values.mean()), error


def above(mean: float, error: float | None) -> bool:
    """Whether a mean lies above chance by more than its error allows."""
    return error is not None and mean - ERRORS * error > 0.5


def text_of(mean: Mean) -> str:
    """As "0.75 ± 0.01"."""
    return f"{mean[0]:.2f}" + ("" if mean[1] is None else f" ± {mean[1]:.2f}")


def named(blocks: Sequence[int]) -> str:
    """As "block 3", or "blocks 3, 6, 9"."""
    return f"block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}"


def _numbers(at: Sequence[Mean], blocks: Sequence[int]) -> str:
    return ", ".join(f"{at[block][0]:.2f}" for block in blocks)


def _advice(at: dict[int, Mean], what: str) -> tuple[bool, str]:
    """Whether to trust it there, and in words why."""
    if all(error is None for _, error in at.values()):
        return False, "one image alone says nothing about others; check several"
    reversed_in = [block for block, (mean, error) in at.items() if error is not None and mean + ERRORS * error < 0.5]
    unsure = [block for block, (mean, error) in at.items() if block not in reversed_in and not above(mean, error)]
    if reversed_in:
        return False, f"do not trust {what} there; it marks the background in {named(reversed_in)}"
    if unsure:
        where = named(unsure)
        return False, f"do not trust {what} there; not shown to beat chance in {where}; more images may settle it"
    return True, "above chance" + (" in each" if len(at) > 1 else "")


def _beside(
    aurocs: np.ndarray, at: Sequence[Mean], blocks: tuple[int, ...], best: tuple[int, ...], trusted: bool, what: str
) -> str:
    """The best blocks set beside those in question, image by image."""
    one = len(best) == 1
    if set(best) == set(blocks):
        same = f"{'this is its best block' if one else 'these are its best blocks'}"
        return f", and {same}: trust {what} for pruning there." if trusted else f"; yet {same}."
    gap, error = mean_of(aurocs[:, best].mean(1) - aurocs[:, blocks].mean(1))
    text = f"its best {named(best)} ({_numbers(at, best)}) {'is' if one else 'are'} better by {text_of((gap, error))}"
    text += "" if one else " on average"
    if error is None or gap <= ERRORS * error:
        advice = f", so trust {what} for pruning there." if trusted else "."
        return f"{advice} {text[0].upper()}{text[1:]}, which may be chance."
    text = f", {'but' if trusted else 'and'} {text}"
    if not all(above(*at[block]) for block in best):
        return f"{text}, though not above chance{'' if one else ' in each'}."
    later = ", later and so with less saved" if sum(best) > sum(blocks) else ""
    return f"{text}: --blocks {','.join(map(str, best))} prunes there{later}."
