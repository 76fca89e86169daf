"""mkdocs hook: what pages ask for by `<!-- make: … -->` is made when the manual is built.

Methods come from the registry, numbers from the committed records, snippets from CONTRIBUTING, so none can be missing
or out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs."""
    return made(markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Called by mkdocs: what the search needs on pages opened from a disk is ours, not fetched from elsewhere."""
    return local(output)


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """Called by mkdocs, for the page that is shown where there is none."""
    return local(output)


def local(html: str) -> str:
    """The page with the one script that the theme would fetch replaced by ours."""
    return html.replace("https://unpkg.com/iframe-worker/shim", "search-from-disk.js")


def made(markdown: str) -> str:
    """The page with everything in it that it asks for. Raises KeyError for what nobody makes."""
    beside = str(Path(__file__).parent)
    if beside not in sys.path:  # mkdocs takes it away again once it has read this file
        sys.path.insert(0, beside)
    return re.sub(r"<!-- make: (\S+) ?(.*?) ?-->", lambda found: MAKERS[found[1]](found[2]), markdown)


def methods(_: str) -> str:
    import methods_page

    return methods_page.page()


def contributing(title: str) -> str:
    """A section of CONTRIBUTING, without its heading."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise KeyError(f"CONTRIBUTING.md has no section {title!r}.")
    return found[1].strip()


def numbers(request: str) -> str:
    import tables

    return tables.made(request)


def recipe(_: str) -> str:
    """Every training setting, its default and where that comes from, as `finetune --show-recipe` prints it."""
    from methods_page import table

    from entropatch.train.recipe import Recipe, provenance

    rows = [[f"`{one['setting']}`", one["value"], one["source"]] for one in provenance(Recipe())]
    return table(["setting", "default", "from"], rows, "---")


def others(_: str) -> str:
    """Public names that the page of the API does not list under a subject."""
    import entropatch

    listed = (ROOT / "docs/api.md").read_text(encoding="utf-8").split()
    names = [f"entropatch.{name}" for name in entropatch.__all__ if name != "__version__"]
    return "\n\n".join(f"::: {name}" for name in names if name not in listed)


MAKERS = {"methods": methods, "contributing": contributing, "numbers": numbers, "recipe": recipe, "others": others}
