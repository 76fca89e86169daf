"""What an exported file says of itself: model, pruning setting, shapes and versions, as JSON under one key."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from entropatch.error_text import one_line
from entropatch.export.subject import Subject
from entropatch.extras import require

KEY = "entropatch"


def about(subject: Subject, **more: Any) -> dict[str, Any]:
    """What is written into a file: plain values that save as JSON."""
    from entropatch.models.pretrained import architecture
    from entropatch.version import __version__

    config = subject.config
    return {
        "made by": f"entropatch {__version__}, torch {torch.__version__}",
        "model": architecture(subject.model),
        "pruning": None if config is None else config.to_dict(),
        "label": "Dense" if config is None else config.label,
        "backend": None if config is None else "reference",
        "input": ["batch", *subject.images.shape[1:]],
        "outputs": list(subject.outputs),
        **_preprocessing(subject),
        **more,
    }


def _preprocessing(subject: Subject) -> dict[str, Any]:
    """How images are prepared for the model, where it says so."""
    from entropatch.data.preprocessing import preprocessing_of  # which needs Pillow

    own = preprocessing_of(subject.model)
    given = getattr(subject.model, "pretrained_cfg", None) if own is None else own.config
    known = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    found = {key: given[key] for key in known if key in given} if isinstance(given, dict) else {}
    return {"preprocessing": found} if found else {}


def about_file(path: str | Path) -> dict[str, Any]:
    """What an exported file says of itself: model, pruning setting, shapes, versions.

    Raises:
        ImportError: the file is an ONNX file and onnx is not installed.
        ValueError: no file of `entropatch.export`.
    """
    path = Path(path)
    text = _from_archive(path) if zipfile.is_zipfile(path) else _from_onnx(path)
    try:
        found = json.loads(text or "")
    except ValueError:
        raise ValueError(f"{path} does not say that entropatch.export wrote it.") from None
    return found


def _from_archive(path: Path) -> str | None:
    """From a program of `torch.export`, or a package of AOTInductor."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"extra/{KEY}.json"):
                return archive.read(name).decode()
            if name.endswith("_metadata.json"):
                return json.loads(archive.read(name)).get(KEY)
    return None


def _from_onnx(path: Path) -> str | None:
    onnx: Any = require("onnx", "export")
    try:
        properties = onnx.load(str(path), load_external_data=False).metadata_props
    except Exception as error:  # protobuf raises its own
        raise ValueError(f"{path} is no ONNX file: {one_line(error, first=True)}") from error
    return next((entry.value for entry in properties if entry.key == KEY), None)
