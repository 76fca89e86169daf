"""The manual misses nothing: every method, every public name; and nothing is fetched when it is read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import accuracy_tables
import facts
import hook
import methods_page
import pytest
import tables
from evidence import DATA, FREE, RESULTS, TRAINED, by_seed, runs, stacked
from written import DOCS, ROOT, blocks

import entropatch
from entropatch import Criterion, Method, register_method
from entropatch.attention import BlockAttention
from entropatch.methods import METHODS
from entropatch.records.uncertainty import accuracy

records = pytest.mark.skipif(not RESULTS.is_dir(), reason="the records are in the repository alone")


@records
def test_every_method_has_its_section() -> None:
    page = methods_page.page()
    for name, method in METHODS.items():
        text = page.split(f"## {method.label} {{#{methods_page.anchor(name)}}}")[1].split("\n## ")[0]
        assert method.description in text
        assert "**Needs:**" in text
        assert "**Where it fails" in text
        assert facts.needs_training(method) or f"pictures/methods/{name}.webp" in text, (
            f"there is no picture of {name}; run: python docs/make/pictures.py methods"
        )


def test_every_equation_is_there() -> None:
    for name in ("renyi-2", "evit", "tome", "ats", "class-renyi-2"):
        assert any("```text" in line for line in methods_page.formulas(METHODS[name])), name


@records
def test_a_method_that_is_registered_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the registry is asked, so whoever adds a method changes nothing here."""

    class Trained(Criterion):
        """The longest keys.

            s_j = |k_j|

        Fails where keys are short.
        """

        needs_class_token = True

        def importance(self, attention: BlockAttention) -> entropatch.attention.Tensor:
            return attention.k[:, :, attention.num_prefix_tokens :].norm(dim=-1).mean(1)

    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))
    register_method(Method("a-late-one", "A late one", "Keeps long keys.", Trained(), trained=True))
    page = methods_page.page()
    text = page.split("## A late one {#method-a-late-one}")[1].split("\n## ")[0]
    assert "s_j = |k_j|" in text
    assert "- Fails where keys are short." in text
    assert "training: it has weights of its own" in text
    assert "Refused on *timm, none*" in text
    assert "3.00 at 0.7, 2.29 at 0.5, 1.80 at 0.3 GFLOPs" in text


def test_the_facts_are_of_the_methods_that_there_are() -> None:
    """Else they are found anew whenever the manual is built, which takes a minute."""
    written = json.loads(facts.FILE.read_text(encoding="utf-8"))
    now = {name: facts.identity(method) for name, method in METHODS.items()}
    assert {name: one.get("is") for name, one in written.items() if name != "dense"} == now, (
        "run: python docs/make/facts.py"
    )


def test_the_costs_are_still_those() -> None:
    written = facts.known()
    for name in ("random", "evit"):
        assert facts.gflops(METHODS[name], 0.7) == written[name]["gflops"]["0.7"]
    models = facts.kinds()
    for name in METHODS:
        refused = {kind for kind, model in models.items() if facts.refusal(METHODS[name], model) is not None}
        assert refused == set(written[name]["refusals"]), f"{name}; run: python docs/make/facts.py"
    assert round(written["dense"]["gflops"], 2) == 4.61


@records
def test_tables_say_what_the_records_say() -> None:
    table = accuracy_tables.top1(FREE)
    right = runs(FREE)["caltech101", 0.5]["evit"]
    own = accuracy(right)
    (row,) = [line for line in table.splitlines() if line.startswith("| EViT |")]
    assert row.split(" | ")[2] == f"{own.value:.1f} ± {own.standard_error:.1f}"
    assert f"{100 * right.mean():.1f}" in row
    assert "<sup>" not in table
    assert "**" not in accuracy_tables.top1(TRAINED)  # ToMe and calibrated cannot be told apart
    small = accuracy_tables.top1(FREE, "paper", "112").splitlines()
    assert "**" in next(line for line in small if line.startswith("| calibrated"))
    assert "**" not in next(line for line in small if line.startswith("| Random"))
    (row,) = [line for line in accuracy_tables.longer("0.5", "196").splitlines() if line.startswith("| EViT |")]
    six, more = (by_seed(tag, "paper", 196)["caltech101", 0.5]["evit"][0].mean() for tag in (TRAINED, "plateau"))
    assert row.split(" | ")[3].startswith(f"{100 * (more - six):+.1f} ± ")
    files = "amd-epyc/112-all-methods.json amd-epyc/112-calibrated.json"
    rows = tables.made(f"trained-at-one-cost imagenette 0.5 112 {files}").splitlines()
    (row,) = [line for line in rows if line.startswith("| Shannon |")]
    before, after = (by_seed(tag, "paper", 112)["imagenette", 0.5]["shannon"] for tag in (FREE, TRAINED))
    tops = [accuracy(before[None]), accuracy(after[0])]
    assert row.split(" | ")[4:6] == [f"{one.value:.1f} ± {one.standard_error:.1f}" for one in tops]
    assert next(line for line in rows if line.startswith("| SPViT")).split(" | ")[4] == "—"  # new weights say nothing
    with pytest.raises(KeyError):
        tables.made("no-such-table")


@records
def test_the_readme_has_the_numbers_of_the_records() -> None:
    """Its table of accuracies, cell by cell."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Does it help?")[1].split("\n## ")[0]
    names = {"random": "random", "EViT": "evit", "Shannon": "shannon", "Rényi, order ∞": "renyi-inf"}
    names |= {"the default": "class-renyi-2@2", "Rényi, order 2": "renyi-2", "calibrated": "calibrated"}
    for label, name in names.items():
        (row,) = [line for line in section.splitlines() if line.startswith(f"| {label} |")]
        cells = [cell.strip(" *") for cell in row.strip("|").split("|")[1:]]
        found = [accuracy(runs(FREE)[data, rate][name]) for data in DATA for rate in (0.7, 0.5, 0.3)]
        assert cells == [f"{one.value:.1f} ± {one.standard_error:.1f}" for one in found], label


EVIDENCE = {  # rows of benchmarks/evidence/README.md
    "random": "random",
    "EViT": "evit",
    "EViT, @2": "evit@2",
    "EViT, no fused token": "evit-drop",
    "Rényi, order 0.5": "renyi-0.5",
    "Shannon": "shannon",
    "Rényi, order 2": "renyi-2",
    "Rényi, order 2, @2": "renyi-2@2",
    "Rényi, order 4": "renyi-4",
    "Rényi, order ∞": "renyi-inf",
    "class attention × order 2": "class-renyi-2",
    "class attention × order 2, @2": "class-renyi-2@2",
    "the same, @2: the default": "class-renyi-2@2",
    "the same, merged": "class-renyi-2-cover-merge",
    "Col-Ln": "col-ln",
    "Col-Ln, @2": "col-ln@2",
    "ToMe, as many in every block": "tome",
    "ToMe, fewer from block to block": "tome-falling",
    "calibrated": "calibrated",
}


@records
@pytest.mark.parametrize(
    ("section", "tag", "tables"), [("Without any training", FREE, 3), ("After fine-tuning", TRAINED, 3)]
)
def test_the_evidence_has_the_numbers_of_the_records(section: str, tag: str, tables: int) -> None:
    """Its tables of accuracies, cell by cell: of 196, 224 and 112 px."""
    text = (ROOT / "benchmarks/evidence/README.md").read_text(encoding="utf-8")
    text = text.split(f"\n## {section}")[1].split("\n## ")[0]
    found = [part.splitlines() for part in re.findall(r"^\| \d+ px, ρ at .*(?:\n\|.*)*", text, re.MULTILINE)]
    assert len(found) == tables
    for heads, _, *rows in found:
        size = int(heads.split()[1])
        columns, named = accuracy_tables._beside(tag, "paper", size), ""
        keys = []
        for head in heads.strip("| ").split(" | ")[1:]:
            named = head.rpartition(" ")[0] or named
            keys.append((next(data for data, title in DATA.items() if title == named), float(head.split()[-1])))
        assert len(rows) > 7
        dense = [row for row in rows if row.startswith("| dense |")]
        assert all(sum(cell.strip() != "" for cell in row.strip("|").split("|")[1:]) == len(DATA) for row in dense)
        for row in rows:
            label, *cells = [cell.strip(" *") for cell in row.strip("|").split("|")]
            for key, cell in zip(keys, cells, strict=True):
                column = columns[key[0], None] if label == "dense" else columns[key]
                runs_of = column.get("dense" if label == "dense" else EVIDENCE[label])
                one = None if runs_of is None else accuracy(stacked(runs_of))
                expected = "—" if one is None else f"{one.value:.1f} ± {one.standard_error:.1f}"
                assert cell == expected or (label == "dense" and cell == ""), (size, label, key)


def test_every_public_name_is_documented() -> None:
    page = hook.made((DOCS / "api.md").read_text(encoding="utf-8"))
    listed = re.findall(r"^::: entropatch\.(\S+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(set(entropatch.__all__) - {"__version__"})
    assert all(getattr(entropatch, name).__doc__ for name in listed)


def test_notebooks_are_scripts_that_jupytext_reads() -> None:
    found = sorted((DOCS / "notebooks").glob("*.py"))
    assert [path.stem for path in found] == ["calibrate_and_export", "finetune_and_compare", "prune_and_look"]
    for path in found:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# %% [markdown]\n# # ")
        assert text.count("# %%\n") >= 3
        compile(text, str(path), "exec")


@pytest.mark.slow
@records
def test_the_manual_builds_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.glob("*.html"))
    assert len(pages) == len(list(DOCS.glob("*.md"))) + 1  # and the one for what is not there
    loads = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:[^\" >]*)|<link\b[^>]*\bhref=\"?(https?:[^\" >]*)"
    )
    assert [found for page in pages for found in loads.findall(page.read_text(encoding="utf-8"))] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css"))
    assert re.findall(r"url\(['\"]?https?:", styles) == []


def test_pages_name_their_language() -> None:
    """A block without a language would be neither run nor parsed."""
    for path in (ROOT / "README.md", *DOCS.glob("*.md")):
        assert {block.language for block in blocks(path)} <= {"python", "sh"}, path.name
