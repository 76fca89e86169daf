"""Programs of `torch.export` (.pt2), and packages of AOTInductor (.pt2), compiled for the CPU of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from entropatch.export.format import Format, Made, Options
from entropatch.export.metadata import KEY, about
from entropatch.export.subject import Subject

STANDARD = ("aten", "prim", "prims")


def traced(subject: Subject, inspected: bool) -> ExportedProgram:
    """The program of a model, for any batch. Raises ValueError for what no other process could run, by name."""
    module = subject.module(inspected).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(module, (subject.sample(),), dynamic_shapes=({0: Dim("batch", min=1)},))
    except Exception as error:  # torch.export lets through whatever the traced code raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"torch.export cannot trace {type(subject.model).__name__}: {lines[0].strip()}") from error
    _refuse_operators(program)
    return program


def _refuse_operators(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        target: Any = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if target.namespace not in STANDARD:
            raise ValueError(f"the operator {target} is not PyTorch's own, so no other process could run the file.")
        if torch.Tag.nondeterministic_seeded in target.tags and _draws(node):
            raise ValueError(f"the model draws random numbers ({target}), which differ in every run of the file.")


def _draws(node: Any) -> bool:
    """Whether an operator that can draw random numbers does; dropout of rate 0, or out of training, does not."""
    given = {argument.name: value for argument, value in zip(node.target._schema.arguments, node.args, strict=False)}
    given |= node.kwargs
    if "dropout" not in str(node.target) and "dropout_p" not in {a.name for a in node.target._schema.arguments}:
        return True
    rate = given.get("p", given.get("dropout_p", 0.0))
    return bool(rate) and given.get("train", True) is not False


def _bare(program: ExportedProgram) -> ExportedProgram:
    """The program without the sample images, and without this machine's paths in the traces of its nodes."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _write_program(subject: Subject, folder: Path, name: str, options: Options) -> Made:
    files = {}
    for inspected in (False, True):
        files[inspected] = folder / (f"inspected-{name}" if inspected else name)
        text = json.dumps(about(subject, format="torch-export"))
        program = _bare(traced(subject, inspected))
        with files[inspected].open("wb") as file:
            torch.export.save(program, file, extra_files={f"{KEY}.json": text})
        if not subject.decisions:
            return Made(files[False], files[False])
    return Made(files[options.kept], files[True])


def _write_package(subject: Subject, folder: Path, name: str, options: Options) -> Made:
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ValueError("AOTInductor needs a C++ compiler, but none of c++, g++ and clang++ is on PATH.")
    files = {}
    for inspected in (False, True):
        if inspected is False and options.kept and subject.decisions:
            continue
        files[inspected] = folder / (f"inspected-{name}" if inspected else name)
        text = json.dumps(about(subject, format="aotinductor"))
        torch._inductor.aoti_compile_and_package(
            traced(subject, inspected),
            package_path=str(files[inspected]),
            inductor_configs={"aot_inductor.metadata": {KEY: text}},
        )
        if not subject.decisions:
            return Made(files[False], files[False])
    return Made(files[options.kept], files[True])


TORCH_EXPORT = Format("torch-export", ".pt2", "torch-export", (), _write_program)
AOTINDUCTOR = Format("aotinductor", ".pt2", "aotinductor", (), _write_package)
