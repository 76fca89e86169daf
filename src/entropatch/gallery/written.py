"""A figure as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from entropatch import figures
from entropatch.records.files import replacing

MADE_BY = "entropatch figures"


def write_figure(figure: Any, folder: str | Path, stem: str, numbers: Mapping[str, np.ndarray] | None) -> list[Path]:
    """A figure as .png and .svg, and the arrays behind it as .npz, each whole or not at all; the paths written."""
    paths = [Path(folder, f"{stem}{suffix}") for suffix in (".png", ".svg", ".npz")]
    figures.save_figure(figure, paths[0], {"Software": MADE_BY})
    figures.save_figure(figure, paths[1])
    if numbers is None:
        return paths[:2]
    with replacing(paths[2]) as temporary:
        np.savez_compressed(temporary, **numbers)  # pyright: ignore[reportArgumentType]
    return paths
