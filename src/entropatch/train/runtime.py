"""How a run is carried out: device, processes, memory, precision of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from entropatch.extras import require
from entropatch.train.recipe import Recipe


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out, with no effect on what is computed but rounding.

    Attributes:
        device: "auto" takes an accelerator if there is one; or "cpu".
        accumulate: passes per batch on each process, for batches that do not fit in memory.
        workers: loading processes beside each training process.
        evaluation_batch_size: images per process; twice a training pass when None.
        checkpoint_every: steps between checkpoints within an epoch; one is always written at an epoch's end.
        keep_checkpoints: leave the last two when the run is finished, each about three times the size of the model.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        compile: run the model through torch.compile.
        compile_backend: its backend.
        deterministic: PyTorch's deterministic algorithms, for the same bits on an accelerator.
        tensorboard: write curves to the run's folder.
    """

    device: str = "auto"
    accumulate: int = 1
    workers: int = 0
    evaluation_batch_size: int | None = None
    checkpoint_every: int = 500
    keep_checkpoints: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    compile_backend: str = "inductor"
    deterministic: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise ValueError(
                f'device must be "auto" or "cpu", but got {self.device!r}; choose among accelerators with '
                "CUDA_VISIBLE_DEVICES or `accelerate launch --gpu_ids`."
            )
        for name, least in (("accumulate", 1), ("workers", 0), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but got {getattr(self, name)}.")


@contextmanager
def accelerator_for(recipe: Recipe, runtime: Runtime) -> Iterator[Any]:
    """Accelerate set up for a run; its global state is cleared afterwards, so that runs can follow each other.

    Raises:
        ImportError: the extra `train` is not installed.
        ValueError: the precision or the way Accelerate was launched is not supported here.
    """
    require("accelerate", "train")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    if recipe.precision == "float16" and (runtime.device == "cpu" or not torch.accelerator.is_available()):
        raise ValueError("precision float16 needs an accelerator; use bfloat16 or float32 on a CPU.")
    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[recipe.precision]
    before = torch.are_deterministic_algorithms_enabled()
    accelerator = Accelerator(mixed_precision=precision, cpu=runtime.device == "cpu")
    try:
        _refuse_launch(accelerator)
        if runtime.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
            torch.use_deterministic_algorithms(True)
        yield accelerator
    finally:
        torch.use_deterministic_algorithms(before)
        accelerator.free_memory()
        # The process group of several processes lives on; a single process may choose another device next time.
        AcceleratorState._reset_state(reset_partial_state=accelerator.num_processes == 1)
        GradientState._reset_state()


def _refuse_launch(accelerator: Any) -> None:
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            "finetune runs on one process, or data parallel on several CPUs or GPUs, but Accelerate is set up for "
            f"{kind}; launch it with --multi_gpu, or without a configuration file."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "accumulation is a setting of the run (accumulate=…, --accumulate), but Accelerate was launched with "
            f"gradient_accumulation_steps={accelerator.gradient_accumulation_steps}; leave that at 1."
        )
