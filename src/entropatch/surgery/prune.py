"""`prune_` and `unprune_`: swapping the classes of a stock model's blocks, and swapping them back.

Surgery changes the class of a model and of its blocks to a subclass that knows about pruning. No module is replaced,
so parameters, buffers, hooks and state_dict keys stay as they were, and copies and pickles work.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.config import PruneConfig
from entropatch.criteria import Criterion, Renyi
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.stage import Decision, Listeners, Stage

ATTRIBUTE = "_entropatch"


class Adapter(Protocol):
    """What one model library's file offers to surgery. All functions take the model, stock or pruned."""

    supported: str

    def recognises(self, model: nn.Module) -> bool: ...
    def blocks(self, model: nn.Module) -> list[nn.Module]: ...
    def refuse_parts(self, model: nn.Module) -> None: ...
    def refuse_setting(self, model: nn.Module, config: PruneConfig) -> None: ...
    def swap(self, model: nn.Module) -> None: ...
    def unswap(self, model: nn.Module) -> None: ...
    def check_inputs(self, model: nn.Module) -> tuple[Tensor, dict[str, Any]]: ...
    def stock_block(self, block: nn.Module) -> type: ...
    def stock_forward(self, block: nn.Module, x: Tensor, **inputs: Any) -> Tensor: ...
    def split_forward(self, block: nn.Module, decision: Decision, x: Tensor, **inputs: Any) -> Tensor: ...
    def num_prefix_tokens(self, model: nn.Module) -> int: ...
    def has_class_token(self, model: nn.Module) -> bool: ...
    def norm(self, model: nn.Module) -> nn.Module: ...


@dataclass
class Pruning:
    """What a pruned model carries: its setting, and who listens to its stages."""

    config: PruneConfig
    adapter: Adapter
    listeners: Listeners


def adapters() -> list[Adapter]:
    """One adapter per model library that is installed."""
    from entropatch.surgery.timm_vit import TimmAdapter

    return [TimmAdapter()]


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s wrapper."""
    return getattr(model, "_orig_mod", model)


def is_pruned(model: nn.Module) -> bool:
    """Whether the model, or the module inside `torch.compile`'s wrapper, is pruned."""
    return isinstance(getattr(unwrap(model), ATTRIBUTE, None), Pruning)


def pruning_of(model: nn.Module) -> Pruning:
    """What a pruned model, or the module inside `torch.compile`'s wrapper, carries. Raises ValueError if not pruned."""
    pruning = getattr(unwrap(model), ATTRIBUTE, None)
    if not isinstance(pruning, Pruning):
        raise ValueError(f"{type(model).__name__} is not pruned; call entropatch.prune_(model, …) first.")
    return pruning


def pruning_config(model: nn.Module) -> PruneConfig:
    """The setting a pruned model works with. Raises ValueError for a model that is not pruned."""
    return pruning_of(model).config


def block_count(model: nn.Module) -> int:
    """How many transformer blocks a supported model has, stock or pruned. Raises UnsupportedModelError for others."""
    target = unwrap(model) if is_pruned(model) else model
    adapter = pruning_of(target).adapter if is_pruned(target) else _find_adapter(target)
    return len(adapter.blocks(target))


def prune_(model: nn.Module, config: PruneConfig | None = None, **fields: Any) -> nn.Module:
    """Prune patch tokens of a stock Vision Transformer inside its forward pass; in place.

    In each pruning block, after the attention residual and before the second norm and MLP, the k = ceil(ρ·n) patches
    with the highest importance stay, in raster order; prefix tokens always stay (arXiv 2604.03803). Parameters,
    buffers and state_dict keys do not change. `keep_rate=1.0` gives the stock model's output exactly. On a model that
    is pruned already only the setting changes: keywords replace the named fields, a config replaces all of them.

    Every block that changes is first run once on random tokens, keeping every other patch, and must give what the
    original block gives for those patches. (Forward hooks on parts of a block see this run.)

    Args:
        model: a timm `VisionTransformer`, `VisionTransformerDistilled` or `Eva`; prune before `torch.compile`. To
            change the setting later pass the pruned model, or its compiled wrapper.
        config: a complete setting; or None, and its fields as keywords.
        **fields: fields of `PruneConfig` (keep_rate, criterion, blocks, reduction, backend); `order=2.0` is short for
            `criterion=Renyi(order=2.0)`.

    Returns:
        The model.

    Raises:
        UnsupportedModelError: the model, or a part of it, is not understood; it is left as it was.
        ValueError, TypeError: the setting is out of range, or does not fit the model; it is left as it was.
    """
    target = unwrap(model) if is_pruned(model) else model
    before = pruning_of(target) if is_pruned(target) else None
    config = _settle(config, fields, before.config if before else PruneConfig())
    adapter = before.adapter if before else _find_adapter(target)
    adapter.refuse_parts(target)
    adapter.refuse_setting(target, config)
    pruning = Pruning(config, adapter, before.listeners if before else Listeners())
    stages = _stages(target, pruning)
    changed = [stage for stage in stages if ATTRIBUTE not in vars(adapter.blocks(target)[stage.block])]
    adapter.swap(target)
    try:
        _check_blocks(target, adapter, changed)
    except BaseException:
        if before is None:
            adapter.unswap(target)
        raise
    _attach(target, pruning, stages)
    return model


def unprune_(model: nn.Module) -> nn.Module:
    """The stock model again: same classes, parameters and state_dict; in place.

    Args:
        model: a pruned model, or the `torch.compile` of one.

    Returns:
        The model.

    Raises:
        ValueError: the model is not pruned.
    """
    target = unwrap(model)
    adapter = pruning_of(target).adapter
    for part in (target, *adapter.blocks(target)):
        vars(part).pop(ATTRIBUTE, None)
    adapter.unswap(target)
    return model


def _stages(model: nn.Module, pruning: Pruning) -> list[Stage]:
    """One stage per pruning block, ascending."""
    adapter, config = pruning.adapter, pruning.config
    return [
        Stage(
            block,
            rate,
            config.criterion,
            config.reduction,
            adapter.num_prefix_tokens(model),
            adapter.has_class_token(model),
            config.backend,
            pruning.listeners,
        )
        for block, rate in config.schedule(len(adapter.blocks(model))).items()
    ]


def _attach(model: nn.Module, pruning: Pruning, stages: list[Stage]) -> None:
    """Give the model its pruning and the blocks their stages, in place of those they had."""
    # Past nn.Module's own __setattr__: none of this is a parameter, a buffer or a module.
    blocks = pruning.adapter.blocks(model)
    for block in blocks:
        vars(block).pop(ATTRIBUTE, None)
    for stage in stages:
        vars(blocks[stage.block])[ATTRIBUTE] = stage
    vars(model)[ATTRIBUTE] = pruning


def _settle(config: PruneConfig | None, fields: dict[str, Any], current: PruneConfig) -> PruneConfig:
    """The setting meant by the arguments of `prune_`."""
    if config is not None:
        if not isinstance(config, PruneConfig):
            raise TypeError(f"config must be a PruneConfig, but got {config!r}; name the field, as in keep_rate=0.7.")
        if fields:
            raise TypeError(f"give prune_ a config or its fields as keywords, not both; got {sorted(fields)} as well.")
        return config
    unknown = set(fields) - set(PruneConfig.__dataclass_fields__) - {"order"}
    if unknown:
        known = ", ".join([*PruneConfig.__dataclass_fields__, "order"])
        raise TypeError(f"prune_ takes the fields {known}, but got {', '.join(sorted(unknown))}.")
    if "order" in fields:
        if "criterion" in fields:
            raise TypeError("order=… is short for criterion=Renyi(order=…); give one of the two, not both.")
        fields = {key: value for key, value in fields.items() if key != "order"} | {"criterion": Renyi(fields["order"])}
    return dataclasses.replace(current, **fields)


def _find_adapter(model: nn.Module) -> Adapter:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError("the model is compiled already; prune it first, then call torch.compile on it.")
    known = adapters()
    for adapter in known:
        if adapter.recognises(model):
            return adapter
    kind = type(model)
    wrapped = next(
        (name for name, child in model.named_modules() if name and any(a.recognises(child) for a in known)), None
    )
    hint = f" It holds one as .{wrapped}: prune that." if wrapped else ""
    supported = "; ".join(adapter.supported for adapter in known)
    raise UnsupportedModelError(
        f"{kind.__module__}.{kind.__qualname__} is not supported.{hint} Supported: {supported}."
    )


def _check_blocks(model: nn.Module, adapter: Adapter, stages: list[Stage]) -> None:
    """Run every newly changed block once against its original on random tokens."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        x, inputs = adapter.check_inputs(model)
        if x.is_meta:  # there are no values to compare
            return
        blocks = adapter.blocks(model)
        # Autocast would round the two runs differently.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            for stage in stages:
                _check_block(blocks[stage.block], stage, adapter, x, inputs)
    finally:
        for module, training in modes.items():
            module.training = training


def _check_block(block: nn.Module, stage: Stage, adapter: Adapter, x: Tensor, inputs: dict[str, Any]) -> None:
    # Half of the patches are dropped, since what mixes tokens after the reduction shows only then. The criterion of
    # the setting stays out of it: it may be slow or stateful, and what is checked is the block.
    prefix = stage.num_prefix_tokens
    n = x.shape[1] - prefix
    decision = Decision(dataclasses.replace(stage, criterion=_EveryOther(), reduction="drop"), n, (n + 1) // 2)
    got = adapter.split_forward(block, decision, x, **inputs)
    rows = [*range(prefix), *range(prefix, prefix + n, 2)]
    x, expected = x[:, rows], adapter.stock_forward(block, x, **inputs)[:, rows]
    # The residual stream x itself agrees trivially, so errors are measured against what the block added to it.
    error = (got - expected).abs().max().item()
    size = (expected - x).abs().max().item()
    eps = torch.finfo(x.dtype).eps
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(x.dtype, 8 * eps)
    if not error <= tolerance * max(size, 1e-6) + 2 * eps * x.abs().max().item():
        raise UnsupportedModelError(
            f"block {stage.block} ({adapter.stock_block(block).__name__}) does not behave as entropatch expects: split "
            f"at its middle it differs from the original by {error:g} where it adds up to {size:g} (dtype {x.dtype}). "
            "A part of it was changed, or this version of the model library computes it differently."
        )


@dataclass(frozen=True)
class _EveryOther(Criterion):
    """Keeps the patches at even places; only for the check at surgery."""

    def importance(self, attention: BlockAttention) -> Tensor:
        places = torch.arange(attention.num_patches, device=attention.q.device)
        return (1.0 - places % 2).expand(attention.q.shape[0], -1)
