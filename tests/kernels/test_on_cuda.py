"""Triton's kernel on a real GPU, against the definitions in float64; and a pruned model there against the CPU."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import Tensor

from entropatch import PruneConfig, prune_, trace
from entropatch.kernels import attend_with_entropy, choose_backend
from entropatch.kernels.head_mean_ops import column_norms
from entropatch.measure import count_flops
from entropatch.measure.variants import takes_keep_rate
from entropatch.methods import ALL, expanded_methods

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Largest error of entropies of order one, and of outputs of order one.
ERRORS = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (2e-2, 3e-2), torch.float16: (2e-3, 3e-3)}
# Shape, precision, and whether keys have a bias. Each kind of each is compiled anew, which takes seconds.
CASES = [
    ((2, 6, 197, 64, 1), torch.float32, False),
    ((2, 6, 197, 64, 1), torch.bfloat16, True),
    ((2, 6, 197, 64, 1), torch.float16, False),
    ((1, 3, 257, 64, 5), torch.float32, True),
    ((1, 2, 70, 72, 0), torch.bfloat16, False),
    ((2, 2, 33, 24, 1), torch.float32, False),
    ((1, 2, 1370, 64, 1), torch.bfloat16, False),
]


def tokens(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    batch, heads, n, width, _ = shape
    qkv = torch.randn(batch, n, 3, heads, width, generator=torch.Generator().manual_seed(0)) * 1.5
    return qkv.to("cuda", dtype).permute(2, 0, 3, 1, 4).unbind(0)


def exact(q: Tensor, k: Tensor, v: Tensor, order: float, prefix: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    q, k, v = q.double(), k.double(), v.double()
    x = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        x = x + bias.double()[:, None, None]
    p = x[..., prefix:, prefix:].softmax(-1)
    if math.isinf(order):
        entropy = -p.amax(-1).log()
    elif order == 1:
        entropy = -torch.special.xlogy(p, p).sum(-1)
    else:
        entropy = (p**order).sum(-1).log() / (1 - order)
    return x.softmax(-1) @ v, entropy


@pytest.mark.parametrize(("shape", "dtype", "biased"), CASES)
def test_the_kernel_computes_the_definitions(shape: tuple[int, ...], dtype: torch.dtype, biased: bool) -> None:
    q, k, v = tokens(shape, dtype)  # pyright: ignore[reportArgumentType]
    prefix, (of_entropy, of_output) = shape[-1], ERRORS[dtype]
    bias = torch.rand(shape[0], shape[2], device="cuda") if biased else None
    assert choose_backend("auto", q) == "triton"
    for order in (0.5, 1.0, 1.001, 2.0, 4.0, math.inf):
        output, entropy = attend_with_entropy(q, k, v, order, q.shape[-1] ** -0.5, prefix, "triton", bias)
        expected_output, expected_entropy = exact(q, k, v, order, prefix, bias)
        assert (entropy.double() - expected_entropy).abs().max() < of_entropy * max(1.0, math.log(shape[2]))
        assert (output.double() - expected_output).abs().max() < of_output


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
def test_gradients_are_those_of_float64(order: float) -> None:
    q, k, v = (x.detach().contiguous().requires_grad_() for x in tokens((1, 2, 70, 32, 1), torch.float32))
    output, entropy = attend_with_entropy(q, k, v, order, q.shape[-1] ** -0.5, 1, "triton")
    found = torch.autograd.grad(output.pow(2).sum() + entropy.sum(), (q, k, v))
    output, entropy = exact(q, k, v, order, 1, None)
    expected = torch.autograd.grad(output.pow(2).sum() + entropy.sum(), (q, k, v))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("power", [2.0, 4.0, math.inf])
def test_column_norms_are_those_of_float64(power: float) -> None:
    q, k, _ = tokens((2, 6, 197, 64, 1), torch.float32)
    found = column_norms(q, k, power, q.shape[-1] ** -0.5, 1, choose_backend("auto", q))
    p = (q.double() @ k.double().transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1).mean(1)
    expected = torch.linalg.vector_norm(p[:, :, 1:], power, dim=1)
    assert (found.double() - expected).abs().max() < 1e-5 * expected.max()


def at_one_half(method: str) -> PruneConfig:
    return PruneConfig(0.5, method=method) if takes_keep_rate(method) else PruneConfig(method=method)


@pytest.mark.parametrize("method", expanded_methods([ALL])[1:])
def test_a_pruned_model_is_that_of_the_cpu(method: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=6, num_classes=7).eval()
    images = torch.randn(3, 3, 224, 224)
    config = at_one_half(method)
    prune_(model, config)
    if config.schedule.per_image:  # scores of untrained weights lie closer to a threshold than float32 tells apart
        model, images = model.double(), images.double()
    there = copy.deepcopy(model).cuda()
    with torch.no_grad(), trace(model) as here_trace, trace(there) as there_trace:
        expected, found = model(images), there(images.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    for kept, kept_there in zip(here_trace.kept, there_trace.kept, strict=True):
        assert len(kept) == len(kept_there)
        for one, other in zip(kept, kept_there, strict=True):
            here, there_too = (set(numbers[numbers >= 0].tolist()) for numbers in (one, other))
            assert len(here & there_too) > 0.98 * max(len(here), len(there_too)) - 1  # near ties may fall either way


@pytest.mark.parametrize("method", expanded_methods([ALL])[1:])
def test_multiply_adds_are_those_counted_on_the_cpu(method: str) -> None:
    pytest.importorskip("fvcore")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=6, num_classes=7, img_size=112).eval().double()
    images = torch.randn(3, 3, 112, 112, dtype=torch.float64)
    prune_(model, at_one_half(method))
    here = count_flops(model, images)
    there = count_flops(model.cuda(), images.cuda())
    assert there.total == pytest.approx(here.total, rel=1e-3)
    assert not there.uncounted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_autocast_learns(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = prune_(timm.create_model("vit_tiny_patch16_224", depth=6, num_classes=4), keep_rate=0.5).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    images, labels = torch.randn(8, 3, 224, 224, device="cuda"), torch.arange(8, device="cuda") % 4
    losses = []
    for _ in range(12):
        with torch.autocast("cuda", dtype=dtype):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
