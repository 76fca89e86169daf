"""Optional packages, with an error that says how to install what is missing."""

from __future__ import annotations

import json
import re
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

PACKAGE = "entropatch"


def require(module: str, extra: str) -> ModuleType:
    """The optional module, or an ImportError that says how to install the extra that brings it."""
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] == package
        what = "not installed" if missing else f"cannot be imported ({error})"
        raise ImportError(f"{package} is needed here and {what}; {install_hint(extra)}") from error


def install_hint(extra: str) -> str:
    """How to install an extra of this package, which is on no index: from its source folder, or package by package.

    "run  pip install '.[train]'  in /home/me/entropatch", where that folder is known and there; else
    "run  pip install 'accelerate>=1.0' …", the packages of that extra, which are on the index.
    """
    if (folder := source_folder()) is not None:
        return f"run  pip install '.[{extra}]'  in {folder}"
    anywhere = f"run  pip install '.[{extra}]'  in the folder of {PACKAGE}'s source"
    packages = _packages(extra)
    return f"run  pip install {' '.join(map(repr, packages))}  (or {anywhere[5:]})" if packages else anywhere


def source_folder() -> Path | None:
    """The folder with this package's source and pyproject.toml, where it was installed from one that is still there."""
    candidates = [Path(__file__).resolve().parents[2]]
    try:
        noted = json.loads(metadata.distribution(PACKAGE).read_text("direct_url.json") or "{}")
        url = urlsplit(noted.get("url", ""))
        if url.scheme == "file":
            candidates.append(Path(url2pathname(url.path)))
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        pass
    return next((folder for folder in candidates if _is_source(folder)), None)


def _is_source(folder: Path) -> bool:
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(rf'^name\s*=\s*"{PACKAGE}"', text, re.MULTILINE) is not None


def _packages(extra: str) -> list[str]:
    """What the installed package's metadata lists for the extra."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    split = (line.partition(";") for line in lines)
    return [need.strip() for need, _, marker in split if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", marker)]
