"""The page of methods, from the registry: what each computes, needs and costs, and where it fails."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evidence import DATA, FREE, runs, single_blocks
from facts import KINDS, RATES, Facts, known, needs_training

import entropatch
from entropatch import Criterion, Method, Reduction, Schedule
from entropatch.methods import METHODS, method_label
from entropatch.records.uncertainty import accuracy, paired_difference

PICTURES = Path(__file__).parents[1] / "pictures/methods"
FAILS = "Fails where"  # how a paragraph of a docstring begins that says where the idea fails
Part = Criterion | Reduction | Schedule


def page() -> str:
    """All of it, in Markdown."""
    facts = known()
    parts: dict[str, Part] = {}
    for method in METHODS.values():
        for criterion, reduction in method.parts:
            asked = [criterion] if reduction.needs_scores else []
            parts |= {type(one).__name__: one for one in (*asked, reduction, method.schedule)}
    sections = [section(method, facts) for method in METHODS.values()]
    kinds = ((Criterion, "Criteria"), (Reduction, "Reductions"), (Schedule, "Schedules"))
    texts = []
    for kind, title in kinds:
        own = sorted(name for name, part in parts.items() if isinstance(part, kind))
        texts += [f"## {title}", *(f"### `{name}`\n\n{body(parts[name])}" for name in own)]
    return "\n\n".join((overview(facts), *sections, *texts)) + "\n"


def overview(facts: dict[str, Facts]) -> str:
    """Two tables: cost, and what refuses what."""
    order = ranks(facts)
    dense = facts["dense"]["gflops"]
    head = ["method", "name", *(f"{rate:g}" for rate in RATES), "rank"]
    rows = [
        [f"[{m.label}](#{anchor(name)})", f"`{name}`", *costs(facts[name]), order.get(name, "—")]
        for name, m in METHODS.items()
    ]
    marks = [
        [
            f"[{m.label}](#{anchor(name)})",
            *("refused" if kind in facts[name]["refusals"] else "yes" for kind in KINDS),
        ]
        for name, m in METHODS.items()
    ]
    return "\n\n".join(
        (
            "## All of them",
            f"GFLOPs (10⁹ multiply-adds per image) of DeiT-S at 224 px, counted on the operators that run, at three "
            f"keep rates; dense {dense:.2f}. The rank is by the cost at {RATES[0]:g}, 1 the cheapest. A criterion that "
            "reads every block, a second order and a product with the projection cost what the figures show; what "
            "time they take is another question ([Figures and numbers](numbers.md)).",
            table(head, rows),
            "What each runs on, tried on small models: timm with a class token, without one (SigLIP), with rotary "
            "embeddings (DINOv3); ViT of transformers; torchvision; OpenCLIP's image tower; a backbone that gives "
            "dense maps (DINOv2's of transformers).",
            table(["method", *KINDS], marks, ":-:"),
        )
    )


def section(method: Method, facts: dict[str, Facts]) -> str:
    """One method."""
    found = facts[method.name]
    lines = [
        f"## {method.label} {{#{anchor(method.name)}}}",
        method.description,
        f"```python\n{call(method)}\n```",
    ]
    if (PICTURES / f"{method.name}.webp").exists():
        text = f"What {method.label} keeps of two photographs after blocks 3, 6 and 9"
        lines.append(f"![{text}](pictures/methods/{method.name}.webp){{ .strip loading=lazy }}")
    lines += [*formulas(method), facts_list(method, found), *fails(method, found)]
    return "\n\n".join(lines)


def call(method: Method) -> str:
    """The lines that prune by it."""
    rate = ", keep_rate=0.7" if method.takes_keep_rate else ""
    if method.predicts:
        return (
            f'segmenter = entropatch.Segmenter(model, classes=21)\nentropatch.prune_(segmenter, method="{method.name}")'
        )
    return f'entropatch.prune_(model, method="{method.name}"{rate})'


def formulas(method: Method) -> list[str]:
    """The equations of what makes it up, each under the name of its part; its first paragraph where there is none."""
    lines = []
    for part in parts_of(method):
        blocks = equations(part)
        what = type(part).__name__
        link = f"[`{what}`](#{what.lower()})"
        if blocks:
            lines.append(f"{link}:\n\n" + "\n\n".join(f"```text\n{block}\n```" for block in blocks))
        else:
            lines.append(f"{link}: {paragraphs(part)[0]}")
    return lines


def facts_list(method: Method, found: Facts) -> str:
    """What it needs and costs."""
    own = method.schedule.per_image or needs_training(method)
    note = " (on random weights and noise; it depends on the image)" if own else ""
    at = ", ".join(f"{cost} at {rate:g}" for rate, cost in zip(RATES, costs(found), strict=True) if cost != "—")
    said = f"- **Needs:** {needs(method)}."
    return f"{said}\n- **Costs:** {at} GFLOPs{note}." if at else said


def needs(method: Method) -> str:
    """What the model must have, and what the method reads beyond one block's queries and keys."""
    model = {"a `Segmenter`": method.predicts, "a class token": method.needs_class_token}
    found = [text for text, wanted in model.items() if wanted]
    for criterion, reduction in method.parts:
        asked = reduction.needs_scores
        wants = {
            "the attention's output projection": asked and criterion.needs_projection,
            "a look at every block before the one that prunes": asked and bool(criterion.followed),
            "`calibrate` before it scores": asked and criterion.lacks is not None,
            "no rotary embedding, since it appends a token": reduction.appends,
            "a loop in which tokens go around a block (timm, torchvision, OpenCLIP)": reduction.detours,
        }
        found += [text for text, wanted in wants.items() if wanted]
    wants = {
        "images of one batch may keep different numbers": method.schedule.per_image,
        "training: it has weights of its own, and does nothing good before": needs_training(method),
    }
    found += [text for text, wanted in wants.items() if wanted]
    return "; ".join(dict.fromkeys(found)) or "nothing but the queries and keys of the block that prunes"


def fails(method: Method, found: Facts) -> list[str]:
    """Where it fails: what its docstrings say, what the records say, and which models refuse it."""
    lines = [text for part in parts_of(method) for text in paragraphs(part) if text.startswith(FAILS)]
    lines += measured(method.name) or ["Not measured on the classifiers of the evidence."]
    lines += [f"Refused on *{kind}*: {escaped(text)}" for kind, text in found["refusals"].items()]
    return ["**Where it fails, and what was measured.**", "\n".join(f"- {line}" for line in lines)]


def measured(name: str) -> list[str]:
    """What the committed records say of it, set beside random pruning on the same images."""
    lines = []
    for data, label in DATA.items():
        cells, verdicts = [], set()
        for rate in RATES:
            column = runs(FREE).get((data, rate), {})
            if name not in column:
                continue
            top = accuracy(column[name])
            cells.append(f"{top.value:.1f} ± {top.standard_error:.1f} at {rate:g}")
            if name != "random":
                off = paired_difference(column[name], column["random"], resamples=0)
                away = off.value / off.standard_error if off.standard_error else 0.0
                verdicts.add((rate, "behind" if away < -2 else "ahead of" if away > 2 else "level with"))
        if cells:
            said = "; ".join(
                f"{verdict} random at {', '.join(f'{rate:g}' for rate in RATES if (rate, verdict) in verdicts)}"
                for verdict in ("ahead of", "level with", "behind")
                if any(one == verdict for _, one in verdicts)
            )
            line = f"{label}, training-free, blocks 3, 6, 9: {', '.join(cells)} % top-1"
            lines.append(line + (f" ({said})." if said else "."))
    label = method_label(name)
    for data, blocks in single_blocks().items():
        losses = {block: (by[label], by["Random"]) for block, by in blocks.items() if label in by and "Random" in by}
        if len(losses) > len(blocks) / 2 and name != "random":  # a few blocks alone were picked, and say little
            worse = [str(block) for block, (own, chance) in losses.items() if own > chance]
            lines.append(
                f"{DATA[data]}, one block pruned alone at 0.5 (calibration's first look, without errors): the output "
                f"changes more than under random pruning in {len(worse)} of {len(losses)} blocks"
                + (f" ({', '.join(worse)})." if worse else ".")
            )
    return lines


def costs(found: Facts) -> list[str]:
    """GFLOPs at each rate as text; a dash where none was counted."""
    counted = [found["gflops"].get(str(rate)) for rate in RATES]
    return [f"{cost:.2f}" if isinstance(cost, float) else "—" for cost in counted]


def ranks(facts: dict[str, Facts]) -> dict[str, str]:
    """1 for the cheapest at the first rate; equal costs, to three digits, share a rank."""
    first = {name: facts[name]["gflops"].get(str(RATES[0])) for name in METHODS}
    rounded = {name: round(cost, 2) for name, cost in first.items() if isinstance(cost, float)}
    return {name: str(1 + sum(other < cost for other in rounded.values())) for name, cost in rounded.items()}


def parts_of(method: Method) -> list[Any]:
    """Criteria that are asked, reductions and schedule; each class once, the plain ones left out."""
    found: dict[str, Any] = {}
    for criterion, reduction in method.parts:
        asked = [criterion] if reduction.needs_scores else []
        asked += [one for one in (getattr(criterion, "a", None), getattr(criterion, "b", None)) if one and asked]
        found |= {type(one).__name__: one for one in (*asked, reduction)}
    found[type(method.schedule).__name__] = method.schedule
    plain = {"Drop", "KeepRate"}
    return [part for name, part in found.items() if name not in plain] or list(found.values())


def paragraphs(part: Any) -> list[str]:
    """The docstring's paragraphs before its sections, those of equations left indented."""
    text = re.split(r"\n\n(?:Args|Raises|Attributes|Returns):\n", inspect.getdoc(type(part)) or "")[0]
    return [block if block.startswith("    ") else " ".join(block.split()) for block in re.split(r"\n\n+", text)]


def body(part: Any) -> str:
    """What a part's docstring says, and where to read of its arguments."""
    blocks = [f"```text\n{dedented(text)}\n```" if text.startswith("    ") else text for text in paragraphs(part)]
    name = type(part).__name__
    more = [f"More: [`entropatch.{name}`](api.md#entropatch.{name})."] if hasattr(entropatch, name) else []
    return "\n\n".join((*blocks, *more))


def equations(part: Any) -> list[str]:
    """The indented blocks of a docstring."""
    return [dedented(text) for text in paragraphs(part) if text.startswith("    ")]


def dedented(text: str) -> str:
    return inspect.cleandoc(text)


def anchor(name: str) -> str:
    """Of a method's section; its name says which, since labels may change."""
    return "method-" + re.sub(r"[^a-z0-9]+", "-", name)


def escaped(text: str) -> str:
    """A message as Markdown: the first sentence, with its quotes and brackets as they are."""
    return re.sub(r"([*_<>\[\]])", r"\\\1", text)


def table(head: Iterable[str], rows: Iterable[Iterable[str]], align: str = "--:") -> str:
    """A Markdown table; `align` is the rule under its columns after the first, to the right unless told otherwise."""
    head = list(head)
    lines = [f"| {' | '.join(head)} |", "|---|" + f"{align}|" * (len(head) - 1)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
