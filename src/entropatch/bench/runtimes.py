"""The runtimes that rows are measured in, and those of an ONNX file of each variant: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from entropatch.export.onnx_format import write_files
from entropatch.export.subject import subject_of
from entropatch.extras import require
from entropatch.measure.variants import Variant

TORCH, COMPILE, CUDA_GRAPHS, ONNXRUNTIME, OPENVINO = "torch", "compile", "cuda-graphs", "onnxruntime", "openvino"
RUNTIMES = (TORCH, COMPILE, CUDA_GRAPHS, ONNXRUNTIME, OPENVINO)
COMPILED = (COMPILE, CUDA_GRAPHS)  # those of torch.compile
EXPORTED = (ONNXRUNTIME, OPENVINO)  # those that run a file


def versions(runtimes: Iterable[str]) -> dict[str, str]:
    """Versions of the runtimes beside PyTorch."""
    there = [runtime for runtime in runtimes if runtime in EXPORTED and find_spec(runtime) is not None]
    return {runtime: version(runtime) for runtime in there}


class ExportedFiles:
    """The ONNX files of the variants, each made once, in a folder that is removed at the end of the `with` block.

    Args:
        int8: how the files of eight bits are quantised; None if there are none.
    """

    def __init__(self, int8: str | None):
        self._kinds = (None,) if int8 is None else (None, int8)
        self._folder = tempfile.TemporaryDirectory(prefix="entropatch-bench-")
        self._files: dict[Variant, dict[str | None, Path]] = {}

    def __enter__(self) -> ExportedFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def run(
        self, runtime: str, variant: Variant, model: nn.Module, images: Tensor, int8: str | None
    ) -> Callable[[], Any]:
        """A function that runs the variant's file on the images; its first result are the model's outputs."""
        if variant not in self._files:
            folder = Path(self._folder.name, str(len(self._files)))
            folder.mkdir()
            self._files[variant] = write_files(subject_of(model, images[:2]), folder, "model.onnx", self._kinds)
        start = {ONNXRUNTIME: _in_onnxruntime, OPENVINO: _in_openvino}[runtime]
        return start(self._files[variant][int8], images.numpy())


def _in_onnxruntime(path: Path, images: np.ndarray) -> Callable[[], Any]:
    runtime: Any = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin once they are done would take the cores from the row whose turn it is.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})[0]


def _in_openvino(path: Path, images: np.ndarray) -> Callable[[], Any]:
    openvino: Any = require("openvino", "openvino")
    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape(list(images.shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([images])[0]
