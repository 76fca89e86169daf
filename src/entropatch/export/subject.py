"""What is exported: a copy of a model that computes with PyTorch's own operators, and what its file must equal."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.criteria import Random
from entropatch.kernels import registry
from entropatch.surgery import is_pruned, prune_, pruning_config, tower_name, trace

# A pruning backend made of PyTorch's own operators, which every runtime has.
BACKEND = "reference"
# Prefixes of the outputs that say what each stage did.
KEPT, SCORES, PLACES = "kept", "scores", "places"


@dataclass(frozen=True)
class Subject:
    """A model on its way into a file.

    Attributes:
        model: the model in evaluation mode, as its user runs it; shares the weights of the one given.
        exported: the same with a backend that every runtime has.
        images: (batch, …), float32, on the CPU.
        config: the pruning setting; None for a model that is not pruned.
        outputs: names of what the model returns, in order.
        decisions: names of what its stages decide, in order.
    """

    model: nn.Module
    exported: nn.Module
    images: Tensor
    config: PruneConfig | None
    outputs: tuple[str, ...]
    decisions: tuple[str, ...]

    def sample(self) -> Tensor:
        """The images to trace with: at least two, since a batch of one is taken for a fixed one."""
        return self.images[:2] if self.images.shape[0] > 1 else self.images.repeat(2, *(1,) * (self.images.ndim - 1))

    def module(self, inspected: bool) -> nn.Module:
        """What is traced: images -> outputs, and with `inspected` the decisions behind them."""
        return _Inspected(self.exported) if inspected else _Plain(self.exported)


class _Plain(nn.Module):
    """Images to the model's output: a tensor where it returns one, else a dictionary of tensors."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        output = self.model(images)
        return output if isinstance(output, Tensor) else named_outputs(output, self.model)


class _Inspected(_Plain):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return inspected_outputs(self.model, images)


def inspected_outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Outputs and decisions of a model, by name.

    "kept_3" are the original numbers of the patches that block 3 keeps, (batch, k), -1 for a token that was appended
    earlier; "places_3" says which token stands for each original patch now, (batch, total), -1 for none; "scores_3" are
    the importances they were chosen by, (batch, n), where a criterion was asked. Blocks that keep all decide nothing.
    """
    if not is_pruned(model):
        return named_outputs(model(images), model)
    with trace(model) as seen:
        outputs = named_outputs(model(images), model)
    for stage in seen.stages:
        (part,) = stage.parts
        if part.plan is None:
            continue
        outputs[f"{KEPT}_{stage.block}"] = stage.kept
        outputs[f"{PLACES}_{stage.block}"] = part.after.original_places(part.tokens)
        if part.scores is not None:
            outputs[f"{SCORES}_{stage.block}"] = part.scores
    return outputs


def named_outputs(output: Any, model: nn.Module) -> dict[str, Tensor]:
    """What a model returned, as tensors by name: "logits" or "features" for a lone tensor, else its own names."""
    if isinstance(output, Tensor):
        return {"logits" if getattr(model, "num_classes", 0) else "features": output}
    pairs = output.items() if isinstance(output, Mapping) else ((f"output_{i}", part) for i, part in enumerate(output))
    named: dict[str, Tensor] = {}
    for name, part in pairs:
        if isinstance(part, Tensor):
            named[str(name)] = part
        elif isinstance(part, (tuple, list)):
            named |= {f"{name}_{i}": one for i, one in enumerate(part) if isinstance(one, Tensor)}
    return named


def subject_of(model: nn.Module, images: Tensor) -> Subject:
    """The model as it is exported. Raises TypeError or ValueError for what no file can hold; the message says why."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
    model = getattr(model, "_orig_mod", model)
    config = pruning_config(model) if is_pruned(model) else None
    if config is not None:
        _refuse_setting(config)
    _refuse_tensors(model)
    images = _checked(images)
    eager = _copy(model)
    exported = eager
    if config is not None and config.backend != BACKEND:
        # "auto" may choose an operator of this package, which a process without it has not.
        plain = config.backend != "auto" and registry.named(config.backend).plain
        exported = eager if plain else prune_(_copy(model), backend=BACKEND)
    returned = _returned(eager, images[:1])
    decided = tuple(name for name in returned if name.rpartition("_")[0] in (KEPT, SCORES, PLACES))
    outputs = tuple(name for name in returned if name not in decided)
    if not outputs:
        raise ValueError(f"{type(model).__name__} returns no tensor, so there is nothing to export.")
    return Subject(eager, exported, images, config, outputs, decided)


def _returned(model: nn.Module, images: Tensor) -> list[str]:
    """Names of what the model gives for images. Raises ValueError for a model that wants more."""
    try:
        with torch.no_grad():
            return list(inspected_outputs(model, images))
    except ValueError:  # says what is wrong with the images
        raise
    except Exception as error:  # whatever a model raises that was not given what it needs
        name = tower_name(model) if is_pruned(model) else ""
        tower = f" its image tower, model.{name}, or" if name else ""
        raise ValueError(
            f"{type(model).__name__} does not run on images {tuple(images.shape)} alone, as an exported file must: "
            f"{' '.join(str(error).split())}. Export{tower} a module of yours that takes images."
        ) from error


def _copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares the model's weights and recomputes nothing."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copied = copy.deepcopy(model, shared).eval()
    off = "activation_checkpointing_disable", "gradient_checkpointing_disable"  # newer and older transformers
    for name, given in (("set_grad_checkpointing", (False,)), *((name, ()) for name in off)):
        if callable(getattr(copied, name, None)):
            getattr(copied, name)(*given)
            break
    return copied


def _refuse_setting(config: PruneConfig) -> None:
    if config.schedule.per_image:
        raise ValueError(
            f"{config.schedule!r} keeps another number of tokens for each image, but an exported graph has one for "
            "all; use a keep rate: entropatch.prune_(model, schedule=KeepRate(), keep_rate=0.7)."
        )
    if any(reduction.needs_scores and criterion == Random(seed=None) for criterion, reduction, _ in config.parts):
        raise ValueError(
            "Random(seed=None) draws anew in every pass from PyTorch's generator, which an exported file does not "
            "have; use Random(seed=0), whose scores depend on seed, block, place in the batch and patch alone."
        )


def _refuse_tensors(model: nn.Module) -> None:
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(
                f"a model is exported in float32, but {name} is {tensor.dtype}; export model.float(), and let the "
                "runtime choose a lower precision."
            )
        if tensor.device.type != "cpu":
            raise ValueError(f"a model is exported from the CPU, but {name} is on {tensor.device}; use model.cpu().")


def _checked(images: Any) -> Tensor:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor (batch, 3, H, W), normalised, but got {got}.")
    if images.ndim < 2 or images.shape[0] < 1:
        raise ValueError(f"images must be a batch of at least one, (batch, 3, H, W), but got {tuple(images.shape)}.")
    return images.detach().to("cpu", torch.float32)
