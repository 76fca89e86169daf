"""What a benchmark measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from entropatch.bench.runtimes import COMPILE, CUDA_GRAPHS, EXPORTED, RUNTIMES, TORCH
from entropatch.config import PruneConfig
from entropatch.export.int8 import INT8
from entropatch.measure.variants import Variant, check_setting, variants_of
from entropatch.methods import DENSE, compared_methods, find_method

KEEP_RATES = (0.7, 0.5, 0.3)
# Of weights and images.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BenchSettings:
    """What `run_bench` measures.

    Args:
        model: name of a model; its weights are random, on which speed, memory and multiply-adds do not depend.
        library: whose model it is, as `entropatch.models.libraries` names it.
        methods: "dense", and names of `entropatch.methods`; dense and `compared_methods` if not given.
        keep_rates: ρ in (0, 1]; every method that takes one is measured at each. 0.7, 0.5 and 0.3 if neither they nor
            a target are given.
        target_gflops: budgets in 10⁹ multiply-adds per image, in place of keep rates: every method that takes a keep
            rate gets the largest one of four decimals that meets each, so that all are compared at one cost.
        configs: settings given as wholes, by what they are to be called, such as calibrated ones; each at its own cost.
        batch_sizes: images per call.
        image_size: height and width in pixels.
        dtype: "float32", "bfloat16" or "float16": of weights and images, or of autocast with `amp`.
        amp: float32 weights under autocast to `dtype`.
        device: "cpu" or "cuda".
        backend: what computes the entropies, as in `PruneConfig`; "auto" chooses, and the records say what.
        compile: each row through `torch.compile`, as one graph, and in no other runtime.
        runtimes: "torch", "compile" (`torch.compile`), "cuda-graphs" (that as in its mode "reduce-overhead", all of it
            one CUDA graph, on a CUDA device), "onnxruntime" and "openvino" (the exported ONNX file, on the CPU in
            float32). Where others than "torch" are named it is measured beside them.
        int8: "dynamic" or "static": the exported files in eight bits too, see `entropatch.export`.
        repeats, warmup: timed and untimed rounds, as in `time_interleaved`.
        until_interval: add rounds until the 95 % interval of each ratio to random (to dense where random is not
            measured) is within ± this share of its median; None keeps to `repeats`, which are the least: an interval of
            few rounds may be narrow by luck.
        most_rounds: at which it is given up.
        bar: a share of random's images/s; each row then says whether it reaches it.

    Raises:
        ValueError: a field is out of range; the message names rule, value and fix.
    """

    model: str = "deit_small_patch16_224"
    library: str = "timm"
    methods: tuple[str, ...] = field(default_factory=lambda: (DENSE, *compared_methods()))
    keep_rates: tuple[float, ...] | None = None
    target_gflops: tuple[float, ...] = ()
    batch_sizes: tuple[int, ...] = (1, 16)
    image_size: int = 224
    dtype: str = "float32"
    amp: bool = False
    device: str = "cpu"
    backend: str = "auto"
    compile: bool = False
    repeats: int = 20
    warmup: int = 2
    until_interval: float | None = None
    most_rounds: int = 400
    bar: float | None = None
    runtimes: tuple[str, ...] = ()
    int8: str | None = None
    configs: Mapping[str, PruneConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target_gflops and self.keep_rates is not None:
            raise ValueError("with a target the keep rates follow from it; leave one of keep_rates and target out.")
        if self.keep_rates is None and not self.target_gflops:
            object.__setattr__(self, "keep_rates", KEEP_RATES)
        for name in ("methods", "target_gflops" if self.target_gflops else "keep_rates", "batch_sizes"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise ValueError(f"{name} must hold at least one entry, but got none.")
            object.__setattr__(self, name, values)
        for method in self.methods:
            if method != DENSE:
                find_method(method)
        for name, config in self.configs.items():
            check_setting(name, config)
        for target in self.target_gflops:
            if not 0 < target < math.inf:
                raise ValueError(f"target_gflops must be numbers above 0, but got {target}.")
        for rate in self.keep_rates or ():
            PruneConfig(keep_rate=rate, backend=self.backend)
        _at_least(1, image_size=self.image_size, repeats=self.repeats, batch_sizes=min(self.batch_sizes))
        _at_least(0, warmup=self.warmup)
        for name in ("until_interval", "bar"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a share above 0, such as 0.02 or 0.97, but got {value}.")
        if self.until_interval is not None:
            _at_least(self.repeats, most_rounds=self.most_rounds)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {self.dtype!r}.")
        if self.amp and self.dtype == "float32":
            raise ValueError("amp is autocast to a half precision, but got dtype float32; give bfloat16 or float16.")
        object.__setattr__(self, "runtimes", _runtimes(self))
        kind = self.device.partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise ValueError(f'device must be "cpu" or "cuda", but got {self.device!r}.')
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda needs a CUDA device, but PyTorch sees none here; use cpu.")

    def variants(self) -> list[Variant]:
        """The rows of one batch size: dense once, other methods at each keep rate or for each target, settings once."""
        settings = [Variant(name, setting=config) for name, config in self.configs.items()]
        return variants_of(self.methods, self.keep_rates or (), self.target_gflops) + settings

    def kinds(self) -> list[tuple[str, str | None]]:
        """Runtime and eight bits, or None for float, in which every variant is measured."""
        quantised = [(runtime, self.int8) for runtime in self.runtimes if runtime in EXPORTED and self.int8]
        return [*((runtime, None) for runtime in self.runtimes), *quantised]

    def steps(self) -> int:
        """How often `run_bench` calls `on_step` when every row can be measured and no rounds are added."""
        rows = len(self.variants()) * len(self.kinds())
        return len(self.batch_sizes) * rows * (1 + self.warmup + self.repeats)


def _runtimes(settings: BenchSettings) -> tuple[str, ...]:
    """The runtimes that are meant. Raises ValueError for one that cannot run these settings."""
    named = tuple(dict.fromkeys(settings.runtimes))
    if unknown := [runtime for runtime in named if runtime not in RUNTIMES]:
        raise ValueError(f"runtimes must be of {', '.join(RUNTIMES)}, but got {unknown[0]!r}.")
    if settings.compile and named not in ((), (COMPILE,)):
        raise ValueError(
            f"compile is the one runtime then, but got {', '.join(named)} too; name it among them instead."
        )
    on_cpu = settings.device.partition(":")[0] == "cpu"
    exported = [runtime for runtime in named if runtime in EXPORTED]
    if exported and (not on_cpu or settings.dtype != "float32"):
        raise ValueError(
            f"{exported[0]} runs the exported file on the CPU in float32, "
            f"but got device {settings.device} and dtype {settings.dtype}."
        )
    if CUDA_GRAPHS in named and on_cpu:
        raise ValueError(f"{CUDA_GRAPHS} needs device cuda, but got {settings.device}; use {COMPILE} on a CPU.")
    if settings.int8 is not None and (settings.int8 not in INT8 or not exported):
        raise ValueError(
            f"int8 must be one of {', '.join(INT8)}, with a runtime of {', '.join(EXPORTED)}, "
            f"but got {settings.int8!r} with {', '.join(named) or TORCH}."
        )
    if settings.compile:
        return (COMPILE,)
    return tuple(dict.fromkeys((TORCH, *named)))


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but got {value}.")
