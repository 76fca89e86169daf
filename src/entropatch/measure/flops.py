"""Multiply-adds of a forward pass, by fvcore's rules, with nothing missed in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from entropatch.extras import require
from entropatch.kernels.cost import attention_macs
from entropatch.kernels.flop_formulas import MACS
from entropatch.surgery.state import unwrap

Shape = list[int]


@dataclass(frozen=True)
class Flops:
    """Multiply-adds (MACs) of one forward pass for one image; one multiply-add counts as one, as in fvcore.

    The "GFLOPs" of arXiv 2604.03803, of DeiT and of EViT are this figure: `flops.total / 1e9`.

    Attributes:
        total: all counted multiply-adds, per image.
        by_operator: the same by operator, largest first, such as {"linear": …, "scaled_dot_product_attention": …}.
        uncounted: operators that ran without a rule to count them, and how often in the whole pass. Elementwise
            arithmetic, reductions, softmax, sorting and data movement are free by fvcore's rules and not listed. An
            entry means that `total` may be too small.
    """

    total: int
    by_operator: dict[str, int]
    uncounted: dict[str, int]


def count_flops(model: nn.Module, images: Tensor) -> Flops:
    """Multiply-adds of `model` per image, counted on the operators that really run, not computed from the keep rates.

    fvcore's `FlopCountAnalysis` with handles for what it does not know: fused attention (each of q·kᵀ and p·v is
    B·H·n·m·d; without this DeiT-S reads 4.25 G in place of 4.61 G), this package's own operators, and batched addmm.

    The model runs once, in evaluation mode and without gradients, on its own device, since the attention kernel and
    the entropy backend depend on it; afterwards every module has the mode it had. Kernels launched from Python without
    being registered as operators cannot be seen; entropatch registers all of its own.

    Args:
        model: any traceable module, stock, pruned, or `torch.compile` of one (its uncompiled module is counted).
        images: its input, (batch, channels, H, W), on the model's device.

    Returns:
        `Flops`, per image.

    Raises:
        ImportError: fvcore is not installed; the message names the extra.
        ValueError: `images` holds no image.
    """
    if images.ndim < 1 or images.shape[0] == 0:
        raise ValueError(f"images must be a batch of at least one image, but got shape {tuple(images.shape)}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore compiles a loss of its own by TorchScript on import
        fvcore = require("fvcore.nn", "bench")
    inner = unwrap(model)
    with _observing(inner):
        analysis = fvcore.FlopCountAnalysis(_Leaves(inner), images).set_op_handle(**HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        counts = analysis.by_operator()
        unknown = analysis.unsupported_ops()
    batch = images.shape[0]
    by_operator = {name: _per_image(count, batch) for name, count in counts.most_common() if count}
    return Flops(
        total=_per_image(sum(counts.values()), batch),
        by_operator=by_operator,
        uncounted={name: count for name, count in unknown.most_common() if not is_free(name)},
    )


def count_flops_torch(model: nn.Module, images: Tensor) -> int:
    """Floating-point operations per image by `torch.utils.flop_counter`, an independent second opinion.

    PyTorch counts matrix products, convolutions and attention only, two operations per multiply-add; so this is twice
    `count_flops` without its norms, for a model that runs no operator unknown to PyTorch's counter, which passes over
    those in silence. It knows this package's own operators. Arguments and modes as in `count_flops`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    inner = unwrap(model)
    with _observing(inner), FlopCounterMode(display=False) as counter:
        inner(images)
    return _per_image(counter.get_total_flops(), images.shape[0])


def is_free(operator: str) -> bool:
    """Whether an operator such as "aten::gelu" costs nothing by fvcore's rules.

    fvcore counts products, convolutions, norms and resampling; elementwise operators, views, reductions, sorting and
    data movement are free. PyTorch itself says which operators are elementwise (`torch.Tag.pointwise`).
    """
    namespace, _, name = operator.partition("::")
    if namespace != "aten":
        return False
    if name.removesuffix("_") in FREE:
        return True
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())


# Free operators that PyTorch does not tag as elementwise and fvcore does not list: reductions, softmax, sorting,
# indexing, creation, views and copies.
# fmt: off
FREE = frozenset((
    "all", "any", "amax", "amin", "argmax", "argmin", "argsort", "bincount", "count_nonzero", "cummax", "cummin",
    "cumprod", "cumsum", "diff", "logcumsumexp", "logsumexp", "mean", "median", "max", "min", "mode", "norm", "prod",
    "quantile", "sort", "std", "std_mean", "sum", "topk", "kthvalue", "unique_consecutive", "var", "var_mean",
    "linalg_vector_norm", "searchsorted", "bucketize", "isin", "softmax", "_softmax", "log_softmax", "_log_softmax",
    "softmin", "normalize", "alpha_dropout", "dropout", "feature_dropout", "glu", "alias", "as_strided", "atleast_2d",
    "broadcast_tensors", "broadcast_to", "clone", "concat", "concatenate", "diagonal", "expand_as", "flip", "hstack",
    "index_add", "index_copy", "index_fill", "index_put", "index_select", "lift_fresh", "masked_scatter",
    "masked_select", "meshgrid", "movedim", "new_ones", "numpy_T", "pad", "pixel_shuffle", "pixel_unshuffle",
    "reflection_pad2d", "repeat", "repeat_interleave", "replication_pad2d", "reshape_as", "rot90", "scatter",
    "scatter_add", "scatter_reduce", "squeeze", "swapaxes", "take", "take_along_dim", "tensor_split", "tile",
    "to_dense", "tril", "triu", "unflatten", "unfold", "vstack", "view_as", "zero", "fill", "bernoulli", "empty_like",
    "eye", "linspace", "normal", "one_hot", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like",
    "randperm", "scalar_tensor", "tensor", "Bool", "Float", "FloatImplicit", "IntImplicit", "NumToTensor",
    "__contains__", "__getitem__", "dim", "is_floating_point", "item", "len", "_assert_async", "_shape_as_tensor",
    "resolve_conj", "resolve_neg", "sym_size", "embedding",
))
# fmt: on


def _per_image(count: float, batch: int) -> int:
    return round(count / batch)


class _Leaves(nn.Module):
    """A model whose output is the tuple of its output's tensors: the tracer takes no dicts and no dataclasses."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in tree_leaves(self.model(images)) if isinstance(leaf, Tensor))


@contextmanager
def _observing(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, frozen parameters and no gradients; everything as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    # PyTorch's counter trips over views of parameters that require a gradient while gradients are off.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # In evaluation mode nn.MultiheadAttention runs as one opaque operator; without that it runs as its parts.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in modes.items():
            module.training = training


# ----------------------------------------------------------------------------------------------------- handles


def _handle(count: Callable[..., int], tensors: int) -> Callable[[Any, Any], int]:
    """A fvcore handle that gives `count` the shapes of an operator's first inputs."""

    def handle(inputs: Any, outputs: Any) -> int:
        return count(*(inputs[i].type().sizes() for i in range(tensors)))

    return handle


def _operator_handle(count: Callable[..., int]) -> Callable[[Any, Any], int]:
    """A fvcore handle that gives `count` all inputs of an operator, shapes in place of tensors."""

    def handle(inputs: Any, outputs: Any) -> int:
        tensor = [value.type().kind() == "TensorType" for value in inputs]
        return count(*(v.type().sizes() if t else v.toIValue() for v, t in zip(inputs, tensor, strict=True)))

    return handle


def _norm_handle(inputs: Any, outputs: Any) -> int:
    """RMS norm by fvcore's rule for norms: 5 per element with a weight, 4 without."""
    weighted = inputs[2].type().kind() != "NoneType"
    return prod(inputs[0].type().sizes()) * (5 if weighted else 4)


def _baddbmm_macs(added: Shape, a: Shape, b: Shape) -> int:
    return prod(a) * b[-1]


_attention = _handle(attention_macs, 3)

HANDLES: dict[str, Callable[[Any, Any], int]] = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::_scaled_dot_product_attention_math": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::baddbmm": _handle(_baddbmm_macs, 3),
    "aten::rms_norm": _norm_handle,
    **{f"entropatch::{name}": _operator_handle(macs) for name, macs in MACS.items()},
}
