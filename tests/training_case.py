"""A training run small enough for tests, and what runs it in processes of its own."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from entropatch import PruneConfig
from entropatch.data import DataSet, LabelledImages, open_data
from entropatch.data.images import ImageError
from entropatch.train import ModelSpec, Outcome, Recipe, Runtime, finetune

# Accelerate collects garbage at the end of each run, which takes long with all that is imported here.
gc.collect()
gc.freeze()

SIZE = 16  # 16 patches of 4×4
SPEC = ModelSpec("test_vit", drop_path=0.0, arguments={"patch_size": 4, "depth": 4})
PRUNE = PruneConfig(keep_rate=0.6)
CPU = Runtime(device="cpu", checkpoint_every=2)
KEEPING = replace(CPU, keep_checkpoints=True)


def recipe(**fields: Any) -> Recipe:
    """Two epochs of five steps, with everything the default recipe has."""
    return Recipe(**({"epochs": 2, "batch_size": 16, "image_size": SIZE, "learning_rate": 0.02} | fields))


def data(images: int = 88, tests: int = 40) -> DataSet:
    return open_data("digits", train_limit=images, test_limit=tests)


def run(folder: Path, spec: ModelSpec = SPEC, **arguments: Any) -> Outcome:
    """One run; keywords as `finetune` takes them."""
    torch.set_num_threads(1)
    defaults = {"prune": PRUNE, "recipe": recipe(), "runtime": CPU, "data": data()}
    return finetune(spec.build(10, SIZE), folder=folder, **(defaults | arguments))


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of the epochs, less what was measured in seconds."""
    lines = (folder / "epochs.jsonl").read_text().splitlines()
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]


class SomeTorn(LabelledImages):
    """A data set of which every seventh image is damaged."""

    def __init__(self, whole):
        self.whole = whole

    def __len__(self):
        return len(self.whole)

    def image(self, index):
        if index % 7 == 3:
            raise ImageError(f"image {index} is torn")
        return self.whole.image(index)

    def label(self, index):
        return self.whole.label(index)


# ------------------------------------------------------------------------------------------ processes of their own

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["training_case", "accelerate", "timm", "sklearn.datasets"])


def start(function: Callable[..., object], *arguments: Any) -> Any:
    """A new process, forked from a clean one in which everything is imported already."""
    process = _context.Process(target=_begin, args=(function, *arguments), daemon=True)
    process.start()
    return process


def _begin(function: Callable[..., object], *arguments: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    function(*arguments)


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def run_and_die(folder: Path, arguments: dict[str, Any], event: int) -> None:
    """A run that kills itself at its n-th dealing with the disk: a flush, a rename or a removal."""
    left = event

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    run(folder, **arguments)


def run_as(rank: int, processes: int, port: int, folder: Path, arguments: dict[str, Any]) -> None:
    """One of several processes, as `accelerate launch` starts them."""
    os.environ |= {
        "ACCELERATE_USE_CPU": "true",
        "LOCAL_RANK": str(rank),
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    run(folder, **arguments)
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
