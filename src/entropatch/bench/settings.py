"""What a benchmark measures: its settings, and the variants of a model they stand for."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import nn

from entropatch.config import PruneConfig, method_config
from entropatch.methods import find_method, method_label
from entropatch.surgery import prune_

DENSE = "dense"
RANDOM = "random"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BenchSettings:
    """What `run_bench` measures.

    Args:
        model: name of a timm model; its weights are random, on which speed, memory and multiply-adds do not depend.
        methods: "dense", and names of `entropatch.methods`.
        keep_rates: ρ in (0, 1]; every method but dense is measured at each.
        batch_sizes: images per call.
        image_size: height and width in pixels.
        dtype: "float32", "bfloat16" or "float16": of weights and images, or of autocast with `amp`.
        amp: float32 weights under autocast to `dtype`.
        device: "cpu" or "cuda".
        backend: what computes the entropies, as in `PruneConfig`; "auto" chooses, and the records say what.
        compile: each row through `torch.compile`, as one graph.
        repeats, warmup: timed and untimed rounds, as in `time_interleaved`.

    Raises:
        ValueError: a field is out of range; the message names rule, value and fix.
    """

    model: str = "deit_small_patch16_224"
    methods: tuple[str, ...] = (DENSE, RANDOM, "evit", "shannon", "renyi-2", "renyi-inf")
    keep_rates: tuple[float, ...] = (0.7, 0.5, 0.3)
    batch_sizes: tuple[int, ...] = (1, 16)
    image_size: int = 224
    dtype: str = "float32"
    amp: bool = False
    device: str = "cpu"
    backend: str = "auto"
    compile: bool = False
    repeats: int = 20
    warmup: int = 2

    def __post_init__(self) -> None:
        for name in ("methods", "keep_rates", "batch_sizes"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise ValueError(f"{name} must hold at least one entry, but got none.")
            object.__setattr__(self, name, values)
        for method in self.methods:
            if method != DENSE:
                find_method(method)
        for rate in self.keep_rates:
            PruneConfig(keep_rate=rate, backend=self.backend)
        _at_least(1, image_size=self.image_size, repeats=self.repeats, batch_sizes=min(self.batch_sizes))
        _at_least(0, warmup=self.warmup)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {self.dtype!r}.")
        if self.amp and self.dtype == "float32":
            raise ValueError("amp is autocast to a half precision, but got dtype float32; give bfloat16 or float16.")
        kind = self.device.partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise ValueError(f'device must be "cpu" or "cuda", but got {self.device!r}.')
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda needs a CUDA device, but PyTorch sees none here; use cpu.")

    def variants(self) -> list[Variant]:
        """The rows of one batch size: dense once, every other method at each keep rate."""
        rows: list[Variant] = []
        for method in self.methods:
            rows += [Variant(method, None)] if method == DENSE else [Variant(method, rate) for rate in self.keep_rates]
        return rows

    def steps(self) -> int:
        """How often `run_bench` calls `on_step` when every row can be measured."""
        return len(self.batch_sizes) * len(self.variants()) * (1 + self.warmup + self.repeats)


@dataclass(frozen=True)
class Variant:
    """One method at one keep rate; dense has none."""

    method: str
    keep_rate: float | None

    @property
    def label(self) -> str:
        return "Dense" if self.method == DENSE else method_label(self.method)

    @property
    def uses_entropy(self) -> bool:
        return self.method != DENSE and find_method(self.method).order is not None

    def apply(self, model: nn.Module, backend: str) -> nn.Module:
        """A copy of the model, pruned, which shares its weights."""
        weights = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        copied = copy.deepcopy(model, weights)
        if self.keep_rate is None:
            return copied
        return prune_(copied, replace(method_config(self.method, self.keep_rate), backend=backend))


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but got {value}.")
