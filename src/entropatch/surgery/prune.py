"""`prune_` and `unprune_`: swapping the classes of a stock model and of its blocks, and swapping them back.

Surgery changes the class of a model and of its blocks to a subclass that knows about pruning. No module is replaced,
so parameters, buffers, hooks and state_dict keys stay as they were, and copies and pickles work. A new setting of a
pruned model changes no class and no module: it works on compiled, wrapped and sharded models too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig, Stage
from entropatch.criteria import Criterion
from entropatch.criteria.learned import LearnedCriterion
from entropatch.methods import default_method
from entropatch.reductions import Reduction
from entropatch.surgery.adapters.base import Adapter
from entropatch.surgery.check import check_parts
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.registry import Tower, adapter_of, pools_patches, supported, tower_of
from entropatch.surgery.state import ATTRIBUTE, Observers, Pruning, is_pruned, pruned_part, pruning_of, unwrap
from entropatch.surgery.weights import fit_weights, put_aside

logger: logging.Logger = logging.getLogger("entropatch")


def block_count(model: nn.Module) -> int:
    """How many transformer blocks a supported model has, stock or pruned. Raises UnsupportedModelError for others."""
    tower, pruning = _as_found(model)
    adapter = pruning.adapter if pruning else _find_adapter(tower.module, model)
    return len(adapter.blocks(tower.module))


def run_images(model: nn.Module, images: Tensor) -> None:
    """Run the blocks of a supported model on images, stock or pruned. Raises UnsupportedModelError for others."""
    tower, pruning = _as_found(model)
    adapter = pruning.adapter if pruning else _find_adapter(tower.module, model)
    adapter.run_images(model, tower.module, images)


def prune_(model: nn.Module, config: PruneConfig | None = None, **fields: Any) -> nn.Module:
    """Prune patch tokens of a stock Vision Transformer inside its forward pass; in place.

    In each pruning block, after the attention residual and before the second norm and MLP, the k = ceil(ρ·n) patches
    with the highest importance stay, in raster order; prefix tokens always stay (arXiv 2604.03803). Parameters,
    buffers and state_dict keys do not change. `keep_rate=1.0` gives the stock model's output exactly. On a model that
    is pruned already only the setting changes: keywords replace the named fields, a config replaces all of them.

    `order=2.0` alone is the paper's method. Where nothing says how to prune, as in `prune_(model, keep_rate=0.7)`,
    patches are ranked by the class token's attention times exp(-H₂), the best of each 2 × 2 first, which was measured
    best of what only drops patches (`method="class-renyi-2@2"`). On a model without a class token it is order 2, the
    best of each 2 × 2 first; where patches have no known places on a grid, as in videos, order 2.

    A method with weights of its own, such as "dynamicvit", adds them as one module of the pruned part, "entropatch": on
    its device, of its type, in its state_dict, to be trained (`entropatch.method_loss`). They are drawn from a seed, or
    those that a weights file brought. Under another setting, and after `unprune_`, they wait aside, out of modules and
    state_dict, and come back with a setting that has them in the same blocks.

    Of a larger model that a library builds around its Vision Transformer, such as OpenCLIP's `CLIP`, that part is
    pruned, and nothing else; `tower_name` says where it is, and so does the log of `entropatch`. Where the larger model
    reads patches at their places on the grid, as those that make maps do, pruned ones are put back with the last value
    they had.

    Every block is first run once on random tokens, dropping every other patch, and must give what the original block
    gives for those patches; the model around the blocks is run against the original too. (Forward hooks on these parts
    see these runs.)

    Args:
        model: a stock model of a library that an adapter knows, such as a timm `VisionTransformer`; what is not
            understood is refused, and the message lists what is. Prune before `torch.compile` and before wrapping. To
            change the setting later pass the pruned model, its wrapper, or a model that holds it.
        config: a complete setting, which is order 2 where it was told nothing; or None, and keywords.
        **fields: fields of `PruneConfig` (keep_rate, criterion, blocks, reduction, schedule, coverage, backend), and
            its short forms: `method="evit"`, `order=2.0`, `r=13`.

    Returns:
        The model.

    Raises:
        UnsupportedModelError: the model, or a part of it, is not understood; it is left as it was.
        ValueError, TypeError: the setting is out of range, or does not fit the model; it is left as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
    tower, before = _as_found(model)
    target = tower.module
    adapter = before.adapter if before else _find_adapter(target, model)
    config, unasked = _settle(config, fields, target, adapter, before)
    adapter.refuse_parts(target)
    _refuse_setting(tower, adapter, config)
    _refuse_predictions(model, config)
    adapter.refuse_setting(target, config)
    stages = _stages(target, adapter, config)
    _refuse_projections(target, adapter, stages)
    fresh = [i for i, block in enumerate(adapter.blocks(target)) if not adapter.is_swapped(block)]
    unsound = dict(before.unsound) if before else {}
    swapped = adapter.swap(target) if before is None or fresh else []
    try:
        if swapped:
            unsound = {block: wrong for block, wrong in unsound.items() if block not in fresh}
            unsound |= check_parts(target, adapter, fresh, whole=before is None)
        _refuse_unsound(unsound, stages)
        fit_weights(target, adapter, stages, _classes(model))
    except BaseException:
        for part, kind in swapped:
            part.__class__ = kind
        raise
    observers = before.observers if before else Observers()
    # Past nn.Module's own __setattr__: it is no parameter, no buffer and no module.
    vars(target)[ATTRIBUTE] = Pruning(config, adapter, stages, observers, tower.reads, unsound, unasked)
    if before is None and target is not model:
        logger.info("%s: .%s is pruned (%s).", type(model).__name__, tower_name(model), type(target).__name__)
    return model


def unprune_(model: nn.Module) -> nn.Module:
    """The stock model again: same classes, parameters and state_dict, without a method's own weights; in place.

    Args:
        model: a pruned model, or a wrapper of one such as its `torch.compile`.

    Returns:
        The model.

    Raises:
        ValueError: the model is not pruned.
        UnsupportedModelError: a wrapper changed it in a way that cannot be undone; it is left pruned.
    """
    target = pruned_part(model)
    adapter = pruning_of(target).adapter
    adapter.unswap(target)
    put_aside(target)
    vars(target).pop(ATTRIBUTE)
    return model


def tower_name(model: nn.Module) -> str:
    """Where in a model the part is that `prune_` prunes, or has pruned: "visual.trunk", or "" for the model itself.

    Raises UnsupportedModelError for a model that `prune_` does not know.
    """
    tower, before = _as_found(model)
    if before is None:
        _find_adapter(tower.module, model)
    return next(name for name, part in model.named_modules() if part is tower.module)


def _as_found(model: nn.Module) -> tuple[Tower, Pruning | None]:
    """The pruned module, with what it carries; of a model that is not pruned the part that would be, and None."""
    if not is_pruned(model):
        return tower_of(model), None
    module, pruning, outer = pruned_part(model), pruning_of(model), unwrap(model)
    # A tower that was pruned alone may be pruned now as what a larger model holds.
    tower = None if outer is module else tower_of(outer)
    return tower if tower is not None and tower.module is module else Tower(module, pruning.reads), pruning


def _stages(model: nn.Module, adapter: Adapter, config: PruneConfig) -> tuple[Stage | None, ...]:
    """What each block does; None for a block that only computes."""
    depth = len(adapter.blocks(model))
    by_block = {stage.block: stage for stage in config.stages(depth)}
    return tuple(by_block.get(block) for block in range(depth))


def _refuse_unsound(unsound: Mapping[int, str], stages: Sequence[Stage | None]) -> None:
    """Raise UnsupportedModelError if a block that reduces, or comes after one that does, is not as it should be."""
    first = next((i for i, stage in enumerate(stages) if stage is not None), len(stages))
    for block, wrong in sorted(unsound.items()):
        if block >= first:
            raise UnsupportedModelError(wrong)


# Any of these says how to prune; the others only where, how much and how evenly.
_SAYING_HOW = ("criterion", "order", "method", "reduction", "schedule", "r")


def _settle(
    config: PruneConfig | None, fields: dict[str, Any], model: nn.Module, adapter: Adapter, before: Pruning | None
) -> tuple[PruneConfig, frozenset[str]]:
    """The setting meant by the arguments of `prune_`, and which of its fields nobody asked for."""
    if config is not None:
        if not isinstance(config, PruneConfig):
            raise TypeError(f"config must be a PruneConfig, but got {config!r}; name the field, as in keep_rate=0.7.")
        if fields:
            raise TypeError(f"give prune_ a config or its fields as keywords, not both; got {sorted(fields)} as well.")
        return config, frozenset()
    known = list(PruneConfig.__dataclass_fields__)
    if unknown := sorted(set(fields) - set(known)):
        raise TypeError(f"prune_ takes the fields {', '.join(known)}, but got {', '.join(unknown)}.")
    says_how = any(fields.get(name) is not None for name in _SAYING_HOW)
    if before is not None:
        current, unasked = before.config, before.unasked
        if says_how and unasked:
            asked: dict[str, Any] = {} if "coverage" in unasked else {"coverage": current.coverage}
            current = PruneConfig(current.keep_rate, blocks=current.blocks, backend=current.backend, **asked)
    elif says_how:
        current, unasked = PruneConfig(), frozenset[str]()
    else:
        usual = default_method(adapter.has_class_token(model), adapter.knows_places(model))
        current, unasked = PruneConfig(method=usual), frozenset(("criterion", "coverage"))
    return current.changed(**fields), frozenset() if says_how else unasked - set(fields)


def _refuse_setting(tower: Tower, adapter: Adapter, config: PruneConfig) -> None:
    """Raise UnsupportedModelError for a criterion, reduction or schedule that makes no sense on this model."""
    model = tower.module
    if config.schedule.per_image and tower.reads == "tokens":
        raise UnsupportedModelError(
            f"under {config.schedule!r} images keep different numbers of tokens, but what follows this "
            f"{type(model).__name__} reads the tokens of a batch as one tensor; use a schedule with one number for "
            "all, such as KeepRate()."
        )
    for criterion, reduction, _ in config.parts:
        if reduction.needs_scores and criterion.lacks is not None:
            raise ValueError(f"{criterion.lacks}.")
        needs_class = reduction.needs_class_token or (reduction.needs_scores and criterion.needs_class_token)
        if needs_class and not adapter.has_class_token(model):
            raise UnsupportedModelError(
                f"{_called(config, criterion, reduction)} needs a class token, but this {type(model).__name__} has "
                'none; use order=…, which is criterion=Renyi(order=…) with reduction="drop".'
            )
        closes = isinstance(criterion, LearnedCriterion) and criterion.closes
        if closes and (tower.reads == "tokens" or pools_patches(model)):
            raise UnsupportedModelError(
                f"{_called(config, criterion)} makes the class token that the head reads, but what follows this "
                f"{type(model).__name__} reads patches; use a model that reads its class token alone (timm: "
                "global_pool='token')."
            )
        if reduction.appends and adapter.is_rotary(model):
            raise UnsupportedModelError(
                "a fused token stands at no place of the grid, so a rotary position embedding cannot be given to it; "
                'use reduction="drop" with this model.'
            )
        if reduction.appends and tower.reads == "grid":
            raise UnsupportedModelError(
                f"reduction={reduction.kind!r} appends a token that stands at no place of the grid, but what follows "
                f'this {type(model).__name__} reads its patches at their places; use reduction="drop".'
            )


def _called(config: PruneConfig, criterion: Criterion, reduction: Reduction | None = None) -> str:
    """How a message names what a setting scores by: by the method's name where it has one."""
    text = type(criterion).__name__
    if reduction is not None:
        text += f" with reduction={reduction.kind!r}"
    return text if config.named is None else f"{config.named.name} ({text})"


def _refuse_predictions(model: nn.Module, config: PruneConfig) -> None:
    """Raise UnsupportedModelError for a criterion that predicts patches on a model that makes no map of them."""
    outer = getattr(model, "_orig_mod", model)
    if getattr(outer, "makes_maps", False):
        return
    for criterion, reduction, _ in config.parts:
        if criterion.predicts and reduction.needs_scores:
            raise UnsupportedModelError(
                f"{_called(config, criterion)} predicts a class for each patch, which becomes part of a map, but this "
                f"{type(outer).__name__} makes none; build an entropatch.Segmenter around it and prune that."
            )


def _refuse_projections(model: nn.Module, adapter: Adapter, stages: Sequence[Stage | None]) -> None:
    """Raise UnsupportedModelError for a criterion that asks for an output projection that a block does not have."""
    for block, stage in zip(adapter.blocks(model), stages, strict=True):
        if stage is not None and stage.reduction.needs_scores and stage.criterion.needs_projection:
            try:
                adapter.output_projection(block)
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"block {stage.block}: {error}") from None


def _classes(model: Any) -> int | None:
    """How many classes a model tells apart; None if it does not say, or tells none."""
    config = getattr(model, "config", None)
    labels = getattr(config, "num_labels", None) if "Classification" in type(model).__name__ else None
    classes = getattr(model, "num_classes", labels)
    return classes if isinstance(classes, int) and classes > 0 else None


def _find_adapter(model: nn.Module, whole: nn.Module) -> Adapter:
    """The adapter of a stock model, which is `whole` or its tower."""
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError("the model is compiled already; prune it first, then call torch.compile on it.")
    for kind, made in ((torch.jit.ScriptModule, "TorchScript"), (torch.fx.GraphModule, "torch.fx")):
        if isinstance(model, kind):
            raise UnsupportedModelError(
                f"the model was made by {made}, where the blocks cannot be changed any more; prune the Python model "
                "that it was made from (open_clip: create_model(…, jit=False); torchvision: use hooks in place of "
                "create_feature_extractor)."
            )
    adapter = adapter_of(model)
    if adapter is not None:
        return adapter
    kind = type(model)
    where = next(name for name, part in whole.named_modules() if part is model)
    what = f"{kind.__module__}.{kind.__qualname__}" + (
        f", the .{where} of this {type(whole).__name__}," if where else ""
    )
    wrapped = next((name for name, child in model.named_modules() if name and adapter_of(child) is not None), None)
    hint = f" It holds one as .{wrapped}: prune that, if what reads it can do with fewer tokens." if wrapped else ""
    if kind.__module__.startswith(
        ("torch.distributed", "torch.nn.utils")
    ):  # FSDP2 and parametrize derive a class of their own
        hint = " It was sharded, parametrized or wrapped already: prune it before." + hint
    raise UnsupportedModelError(f"{what} is not supported.{hint} Supported: {supported()}.")
