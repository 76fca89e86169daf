"""ONNX files, by PyTorch's dynamo exporter."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from entropatch.export.format import Format, Made, Options
from entropatch.export.int8 import quantise
from entropatch.export.metadata import KEY, about
from entropatch.export.onnx_operators import translations
from entropatch.export.subject import KEPT, Subject
from entropatch.extras import require

# ONNX's version of operators. 20 has all that is needed, and attention as matrix products, which every runtime runs.
OPSET = 20
# A protobuf message, which an ONNX file is, holds at most 2 GiB.
LARGEST = 2**31 - 1
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def _write(subject: Subject, folder: Path, name: str, options: Options) -> Made:
    inspected = folder / f"inspected-{name}"
    opset = _convert(subject, inspected, options.opset)
    notes: list[str] = []
    if options.simplify:
        _simplify(inspected)
    if options.int8 is not None:
        notes.append(quantise(inspected, options.int8, (image[None].numpy() for image in subject.images)))
    facts = about(subject, format="onnx", opset=opset, simplified=options.simplify, int8=options.int8)
    _deliver(inspected, folder / name, _outputs(subject, options.kept), facts)
    return Made(folder / name, inspected, tuple(notes))


def write_files(
    subject: Subject, folder: Path, name: str, int8: tuple[str | None, ...], opset: int = OPSET
) -> dict[str | None, Path]:
    """The file, and its twins of eight bits, from one conversion and without a check: for measuring speed."""
    inspected = folder / f"inspected-{name}"
    files = {}
    opset = _convert(subject, inspected, opset)
    for how in int8:
        source, files[how] = inspected, folder / (name if how is None else f"{how}-{name}")
        if how is not None:
            source = Path(shutil.copyfile(inspected, folder / f"inspected-{how}-{name}"))
            quantise(source, how, (image[None].numpy() for image in subject.images))
        _deliver(source, files[how], subject.outputs, about(subject, format="onnx", opset=opset, int8=how))
    return files


def _outputs(subject: Subject, kept: bool) -> tuple[str, ...]:
    """The outputs of the file that is delivered."""
    return (*subject.outputs, *(name for name in subject.decisions if kept and name.startswith(f"{KEPT}_")))


def _refuse_size(subject: Subject) -> None:
    size = sum(p.numel() * p.element_size() for p in subject.exported.parameters())
    if size >= LARGEST:
        raise ValueError(
            f"an ONNX file holds at most 2 GiB, but the weights of this model take {size / 2**30:.1f}; "
            'use format="torch-export".'
        )


def _convert(subject: Subject, path: Path, opset: int) -> int:
    """Write outputs and decisions as one graph, and return the opset it has."""
    _refuse_size(subject)
    for package in ("onnx", "onnxscript"):
        require(package, "export")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        try:
            program: Any = torch.onnx.export(
                subject.module(inspected=True).eval(),
                (subject.sample(),),
                dynamo=True,
                dynamic_shapes=({0: Dim("batch", min=1)},),
                input_names=["images"],
                output_names=[*subject.outputs, *subject.decisions],
                custom_translation_table=translations(),
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:  # the exporter lets through whatever the traced code raises
            raise ValueError(f"{type(subject.model).__name__} cannot be exported to ONNX: {_cause(error)}") from error
    _refuse_random(program.model)
    _forget_places(program.model)
    program.save(str(path), external_data=False)
    return int(program.model.opset_imports[""])


def _cause(error: BaseException) -> str:
    """The first cause of a failed export, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)', overload='(\w+)'\)>", str(error))
    if missing:
        return f"ONNX has no operator for {missing[1]}.{missing[2]}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def _refuse_random(model: Any) -> None:
    drawn = sorted({node.op_type for node in model.graph.all_nodes()} & set(RANDOM))
    if drawn:
        raise ValueError(f"the model draws random numbers ({', '.join(drawn)}), which differ in every run of the file.")


def _forget_places(model: Any) -> None:
    """Take out what the exporter notes of every node: source lines and paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _deliver(source: Path, target: Path, outputs: tuple[str, ...], facts: dict[str, Any]) -> None:
    """The graph with these outputs alone, and without what only others need."""
    ir: Any = require("onnx_ir", "export")
    passes: Any = require("onnx_ir.passes.common", "export")
    model = ir.load(str(source))
    kept = [value for value in model.graph.outputs if value.name in outputs]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    passes.RemoveUnusedNodesPass()(model)
    model.metadata_props[KEY] = json.dumps(facts)
    ir.save(model, str(target))


def _simplify(path: Path) -> None:
    onnx: Any = require("onnx", "export")
    onnxsim: Any = require("onnxsim", "export")
    simplified, sound = onnxsim.simplify(onnx.load(str(path)))
    if not sound:
        raise ValueError("onnxsim made a graph that computes something else; leave out simplify.")
    onnx.save(simplified, str(path))


FORMAT = Format("onnx", ".onnx", "onnxruntime", ("opset", "simplify", "int8"), _write)
