"""What the dense and the pruned model say of one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor, nn

from entropatch.calibration.answers import has_head, pooled
from entropatch.calibration.judging import distance

TOP = 5


@dataclass(frozen=True)
class Said:
    """One picture's answer, dense and pruned.

    Attributes:
        dense, pruned: the most probable classes and their probabilities, highest first; none without a head.
        loss: KL(dense ‖ pruned) of the classes in nats, or 1 - cosine of the pooled feature without a head.
    """

    dense: tuple[tuple[str, float], ...]
    pruned: tuple[tuple[str, float], ...]
    loss: float


def output(model: nn.Module, images: Tensor) -> Tensor:
    """Logits or pooled features, (batch, C), float32."""
    with torch.inference_mode():
        return pooled(model(images)).float()


def compare(model: nn.Module, dense: Tensor, pruned: Tensor, name: Callable[[int], str]) -> Said:
    """Both outputs of one picture, (1, C) each, in the words of the model's classes."""
    if not has_head(model):
        return Said((), (), float(distance(dense, pruned, "features")))
    tops = []
    for logits in (dense, pruned):
        probabilities, classes = logits[0].softmax(-1).topk(min(TOP, logits.shape[-1]))
        tops.append(tuple(zip(map(name, classes.tolist()), probabilities.tolist(), strict=True)))
    return Said(tops[0], tops[1], float(distance(dense, pruned, "logits")))


def said_html(said: Said) -> str:
    """Five classes of each, or by how much the feature has changed."""
    if not said.dense:
        return f'<p class="ep-said">The pooled feature changes by {said.loss:.4f} (1 − cosine of dense and pruned).</p>'
    rows = "".join(
        f"<tr>{_cells(dense)}{_cells(pruned)}</tr>" for dense, pruned in zip(said.dense, said.pruned, strict=True)
    )
    same = "the same class" if said.dense[0][0] == said.pruned[0][0] else "another class"
    return (
        '<table class="ep-table ep-said"><thead><tr><th>dense says</th><th>%</th><th>pruned says</th><th>%</th></tr>'
        f'</thead><tbody>{rows}</tbody></table><p class="ep-note">{same}; KL divergence {said.loss:.3f} nats</p>'
    )


def _cells(entry: tuple[str, float]) -> str:
    name, probability = entry
    short = name if len(name) <= 34 else f"{name[:33]}…"
    return f'<td title="{escape(name)}">{escape(short)}</td><td>{100 * probability:.1f}</td>'
