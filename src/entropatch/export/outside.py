"""Runs an exported file without entropatch; `entropatch.export.runs` gives this text to a Python process of its own.

Arguments: runtime, inputs.npz, outputs.npz, files. The inputs are arrays by name, each a batch. The outputs of file 0
for batch "b" are saved as "0/b/0", "0/b/1", … in the file's own order. Nothing but NumPy and the runtime is imported.
"""

import sys
from typing import Any

import numpy as np

# What the model was built with; importing it fails once the process has begun.
ABSENT = ("entropatch", "timm", "transformers", "open_clip", "torchvision")


def in_onnxruntime(path: str) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def in_openvino(path: str) -> Any:
    import openvino  # pyright: ignore[reportMissingImports]

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: [model([images])[output] for output in model.outputs]


def in_torch(load: Any) -> Any:
    import torch

    program = load(torch)

    def run(images):
        with torch.no_grad():
            outputs = program(torch.from_numpy(images))
        outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return [output.numpy() for output in outputs]

    return run


def in_torch_export(path: str) -> Any:
    return in_torch(lambda torch: torch.export.load(path).module())


def in_aotinductor(path: str) -> Any:
    return in_torch(lambda torch: torch._inductor.aoti_load_package(path))


RUNTIMES: dict[str, Any] = {
    "onnxruntime": in_onnxruntime,
    "openvino": in_openvino,
    "torch-export": in_torch_export,
    "aotinductor": in_aotinductor,
}


def main(runtime: str, inputs: str, outputs: str, *paths: str) -> None:
    for name in ABSENT:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]  # importing it fails from here on
    results = {}
    with np.load(inputs) as batches:
        for number, path in enumerate(paths):
            run = RUNTIMES[runtime](path)
            for name in batches.files:
                for i, output in enumerate(run(batches[name])):
                    results[f"{number}/{name}/{i}"] = np.asarray(output)
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
