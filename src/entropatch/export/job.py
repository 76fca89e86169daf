"""`export`: a model as a file that runs without entropatch, checked before it is put in place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from entropatch.export.format import Format, Made, Options
from entropatch.export.formats import find_format
from entropatch.export.int8 import INT8
from entropatch.export.metadata import about_file
from entropatch.export.onnx_format import OPSET
from entropatch.export.parity import Named, Parity, ParityError, batches_of, compare
from entropatch.export.runs import run_outside
from entropatch.export.subject import Subject, subject_of
from entropatch.extras import require
from entropatch.records.files import replacing


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: the file.
        format: its format.
        parity: how far its results are from PyTorch's.
        about: what the file says of itself.
    """

    path: Path
    format: str
    parity: Parity
    about: dict[str, Any]


def export(
    model: nn.Module,
    images: Tensor,
    path: str | Path,
    *,
    format: str | None = None,
    opset: int | None = None,
    simplify: bool = False,
    int8: str | None = None,
    kept: bool = False,
    tolerance: float = 1e-5,
    on_message: Callable[[str], None] = print,
) -> Exported:
    """Write a model, pruned or dense, as one file that runs without entropatch, for any batch size.

    The model is exported in evaluation mode and float32, with the backend "reference", whose operators every runtime
    has. The file is then run, at two batch sizes, in a process in which entropatch cannot be imported, and compared
    with the model as it is in PyTorch: the sets of patches that each block keeps first, then the outputs. Images with
    a near tie, whose k-th and next score differ by less than the score error, are named and not counted. Only a file
    that agrees is put in place, whole. Equal scores keep the patch of the lower number, as in PyTorch.

    Args:
        model: any model that takes images alone; on the CPU, float32.
        images: (batch, 3, H, W) as the model takes them, normalised; best photographs, since they are what the file is
            checked and, for static int8, calibrated with. Their height and width are the file's.
        path: ends in .onnx, or .pt2.
        format: "onnx", "torch-export" (.pt2) or "aotinductor" (.pt2, compiled for the CPU of this machine, which
            takes minutes and a C++ compiler); None chooses by the suffix, `torch-export` for .pt2.
        opset: ONNX's version of operators; 20 when None.
        simplify: ONNX: through onnxsim.
        int8: ONNX: "dynamic" or "static", weights and activations of linear layers in 8 bits by ONNX Runtime's
            quantiser, static ones with ranges that `images` have. Such a file differs, by as much as is reported.
        kept: whether the file also gives the numbers of the patches each block keeps, as outputs "kept_3", ….
        tolerance: how far outputs and scores may be from PyTorch's, in units of the largest one, at least 1.
        on_message: told each line of the comparison.

    Returns:
        What was written.

    Raises:
        ImportError: a package of the extra `export` is missing.
        ValueError, TypeError: model, setting or options cannot be exported; the message says what and why.
        ParityError: the file computes something else. (A ValueError.)
        OutsideError: the file does not run without entropatch.
    """
    path = Path(path)
    chosen = find_format(format, path)
    options = _options(chosen, opset, simplify, int8, kept)
    if chosen.runtime == "onnxruntime":
        require("onnxruntime", "export")
    subject = subject_of(model, images)
    with tempfile.TemporaryDirectory(prefix="entropatch-export-") as folder:
        made = chosen.write(subject, Path(folder), path.name, options)
        parity = _checked(subject, chosen, made, options)
        for line in (*parity.lines(), *made.notes):
            on_message(line)
        if (wrong := parity.wrong(tolerance)) is not None:
            raise ParityError(f"{path.name} was not written: {wrong}.")
        with replacing(path) as temporary:
            shutil.copyfile(made.file, temporary)
    on_message(f"written: {path}, {path.stat().st_size / 2**20:.1f} MiB")
    return Exported(path, chosen.name, parity, about_file(path))


def _options(chosen: Format, opset: int | None, simplify: bool, int8: str | None, kept: bool) -> Options:
    """The options. Raises ValueError for one that means nothing to the format, or is out of range."""
    given = [name for name, value in (("opset", opset), ("simplify", simplify), ("int8", int8)) if value]
    if foreign := [name for name in given if name not in chosen.options]:
        raise ValueError(f"{foreign[0]} belongs to ONNX files, but the format is {chosen.name}; leave it out.")
    if int8 is not None and int8 not in INT8:
        raise ValueError(f"int8 must be one of {', '.join(INT8)}, or None, but got {int8!r}.")
    if opset is not None and not 18 <= opset <= 23:
        raise ValueError(f"opset must be a whole number from 18 to 23, but got {opset!r}.")
    return Options(opset or OPSET, simplify, int8, kept)


def _checked(subject: Subject, chosen: Format, made: Made, options: Options) -> Parity:
    """The comparison of the delivered file, whose decisions are those of its inspected twin."""
    batches = batches_of(subject.images)
    arrays = {name: images.numpy() for name, images in batches.items()}
    names = [*subject.outputs, *subject.decisions]
    files = list(dict.fromkeys((made.inspected, made.file)))
    inspected, *others = run_outside(chosen.runtime, files, arrays)
    delivered = others[0] if others else inspected
    found: dict[str, Named] = {}
    for batch in batches:
        outputs = dict(zip(names, inspected[batch], strict=True))
        found[batch] = outputs | dict(zip(subject.outputs, delivered[batch], strict=False))
    return compare(subject, batches, found, lossy=options.int8 is not None)
