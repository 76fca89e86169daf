"""How a pruning setting and a data set are called in tables and titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from entropatch.config import PruneConfig


def pruning_label(config: PruneConfig) -> str:
    """The method of a setting as tables call it: "Rényi, order 2"; with its blocks, where they are not the usual."""
    return config.label if config.blocks is None else f"{config.label}, blocks {', '.join(map(str, config.blocks))}"


def rates_text(keep_rate: Any) -> str:
    """A keep rate: "0.7", or "0.9/0.7/0.5" for one per block."""
    rates = keep_rate if isinstance(keep_rate, Sequence) else (keep_rate,)
    return "/".join(f"{rate:.4g}" for rate in rates)


def data_label(description: Mapping[str, Any]) -> str:
    """A data set as titles call it: by its name, and a user's own folder by that folder's name.

    Args:
        description: of `entropatch.data.DataSet`, as runs and records hold it.
    """
    name, root = str(description.get("name", "?")), description.get("root")
    folder = PurePath(root).name if name == "folder" and isinstance(root, str) else ""
    return f"the folder {folder}" if folder else name
