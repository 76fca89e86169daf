"""Every backend against the float64 twin, with a tolerance that calibrates itself.

The allowed error is twice that of the plain computation in the same precision (softmax of the float32 logits, the
formula of the definition), plus the rounding of one last operation. Triton runs under its interpreter, which must be
chosen before Triton is imported: those tests run in one child process.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import reference
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from entropatch import BlockAttention
from entropatch.kernels import attend_with_entropy, choose_backend, streaming
from entropatch.kernels import attention_entropy as kernel_entropy

ORDERS = [0.3, 0.5, 0.9, 0.999, 1.0, 1 + 1e-9, 1.001, 1.2, 2.0, 3.7, 40.0, math.inf]
# batch, heads, tokens, head width, prefix tokens
SHAPES = [(2, 3, 70, 64, 1), (1, 2, 33, 24, 5), (1, 2, 50, 72, 0), (2, 2, 2, 16, 1), (1, 1, 1, 8, 0)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def release(package: str) -> tuple[int, ...] | None:
    """Major and minor version, None if it is not installed."""
    return tuple(int(part) for part in version(package).split(".")[:2]) if find_spec(package) else None


TRITON, NUMPY = release("triton"), release("numpy") or ()
IN_CHILD = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if IN_CHILD else ["reference", "streaming", "streaming on workers"]


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "streaming on workers":
        on_workers(monkeypatch)
    return request.param.removesuffix(" on workers")


def under_the_interpreter(cases: list, *quick: object) -> list:
    """Triton's interpreter is slow: there all but the quick cases are slow tests. Elsewhere all are quick."""
    every = not IN_CHILD
    return [case if every or case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def on_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming gives blocks to three threads of its own, however small they are."""
    monkeypatch.setattr(streaming, "number_of_workers", lambda device: 3)
    monkeypatch.setattr(streaming, "SHARED_LOGITS", 0)


def tokens(shape: tuple[int, int, int, int, int], dtype: torch.dtype, sink: float = 1.0) -> tuple[Tensor, ...]:
    """q, k, v as a model has them: views of one (batch, tokens, 3, heads, width) tensor; prefix keys scaled by sink."""
    batch, heads, n, width, prefix = shape
    generator = torch.Generator().manual_seed(0)
    qkv = (torch.randn(batch, n, 3, heads, width, generator=generator) * 3).to(dtype)
    qkv[:, :prefix, 1] *= sink
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def exact(q: Tensor, k: Tensor, v: Tensor, order: float, prefix: int) -> tuple[Tensor, Tensor]:
    """Output and patch entropy by the definitions, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    x = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return x.softmax(-1) @ v, definition(x[..., prefix:, prefix:].softmax(-1), order)


def definition(p: Tensor, order: float) -> Tensor:
    if math.isinf(order):
        return -p.amax(-1).log()
    if abs(order - 1) < 1e-6:
        return -torch.special.xlogy(p, p).sum(-1)
    return (p**order).sum(-1).log() / (1 - order)


def plain_error(q: Tensor, k: Tensor, order: float, prefix: int, expected: Tensor) -> float:
    """What the definition itself, computed in float32, is off by."""
    x = q[:, :, prefix:].float() @ k[:, :, prefix:].float().transpose(-2, -1) * q.shape[-1] ** -0.5
    error = (definition(x.softmax(-1), order) - expected).abs()
    return error[error.isfinite()].max().item() if error.isfinite().any() else 0.0


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("order", under_the_interpreter(ORDERS, 1.0, 1.001, 2.0, math.inf))
@pytest.mark.parametrize("dtype", under_the_interpreter(DTYPES, torch.float32))
def test_output_and_entropy_match_the_float64_twin(backend: str, order: float, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        prefix = shape[-1]
        q, k, v = tokens(shape, dtype)
        output, entropy = attend_with_entropy(q, k, v, order, q.shape[-1] ** -0.5, prefix, backend)
        expected_output, expected = exact(q, k, v, order, prefix)
        eps = torch.finfo(torch.float32).eps
        allowed = 2 * plain_error(q, k, order, prefix, expected) + 16 * eps * max(1.0, math.log(shape[2]))
        assert (entropy - expected).abs().max().item() <= allowed, shape
        assert output.dtype == dtype
        assert entropy.dtype == torch.float32
        # Plain attention in the same precision rounds its probabilities and its output to the dtype.
        plain = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        allowed = 2 * (plain - expected_output).abs().max().item() + 4 * torch.finfo(dtype).eps
        assert (output - expected_output).abs().max().item() <= allowed, shape
        alone = kernel_entropy(q[:, :, prefix:], k[:, :, prefix:], order, q.shape[-1] ** -0.5, backend)
        torch.testing.assert_close(alone, entropy, rtol=1e-5, atol=1e-5)


# On both sides of 1, and of every border between two ways to compute an order next to it.
DISTANCES = [1e-9, 1e-6, 9e-4, 1.1e-3, 0.015, 0.016, 0.03]
NEAR_ONE = [0.8, 0.9, 1.1, 1.24, *(1 - t for t in DISTANCES), *(1 + t for t in DISTANCES)]


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("order", under_the_interpreter(NEAR_ONE, 0.9, 1.1, 1 - 1e-6, 1 + 0.015))
def test_orders_next_to_one_are_exact_for_peaked_and_flat_rows(backend: str, order: float) -> None:
    """Even, nearly even, ordinary, peaked rows, and a few keys above a crowd at distance log m, against decimals."""
    m = 100
    crowd = torch.full((m,), -math.log(m)).scatter(0, torch.arange(3), 0.0)
    spreads = [torch.randn(m) * spread for spread in (0.0, 1e-4, 0.1, 1.0, 5.0, 30.0, 3e3)]
    x = torch.stack([*spreads, crowd, crowd * 2, crowd / 2])
    got = kernel_entropy(x[None, None], torch.eye(m)[None, None], order, 1.0, backend)[0, 0]
    expected = torch.tensor([reference.entropy_of_logits(row.tolist(), order) for row in x])
    torch.testing.assert_close(got, expected, rtol=6e-7, atol=1.2e-6)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("order", [0.5, 1.0, 1.001, 2.0, math.inf])
def test_a_prefix_token_that_takes_all_attention_costs_the_entropy_nothing(backend: str, order: float) -> None:
    q, k, v = tokens((1, 2, 40, 16, 1), torch.float32)
    k[:, :, :1] = q.mean(2, keepdim=True) * 400
    q = q + 3 * q.mean(2, keepdim=True)
    output, entropy = attend_with_entropy(q, k, v, order, 0.25, 1, backend)
    expected_output, expected = exact(q, k, v, order, 1)
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.double(), expected_output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("order", under_the_interpreter([1e-300, *ORDERS, 1e300], 1e-300, 1.0, 40.0, 1e300))
def test_finite_for_logits_of_ten_thousand(backend: str, order: float) -> None:
    q = torch.tensor([100.0, -100.0, 1.0, 0.0]).reshape(1, 1, 4, 1).expand(-1, -1, -1, 16) / 4
    k = torch.tensor([100.0, 100.0, 99.9921875, -100.0]).reshape(1, 1, 4, 1).expand(-1, -1, -1, 16) / 4
    output, entropy = attend_with_entropy(q, k, k, order, 1.0, 0, backend)
    assert output.isfinite().all()
    assert entropy.isfinite().all()
    assert (entropy >= 0).all()
    assert (entropy <= math.log(4) + 1e-5).all()


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("order", under_the_interpreter([0.5, 0.9, 1.0, 1.2, 2.0, math.inf], 0.5, 1.0))
@pytest.mark.parametrize("dtype", under_the_interpreter([torch.float32, torch.bfloat16], torch.bfloat16))
def test_a_key_bias_matches_the_float64_twin(backend: str, order: float, dtype: torch.dtype) -> None:
    """Sizes for one image and padding for the next; an image that has no patch key is even and spoils no other."""
    for batch, heads, n, width, prefix in [(3, 2, 70, 24, 1), (3, 1, 33, 16, 5), (3, 2, 40, 8, 0)]:
        q, k, v = tokens((batch, heads, n, width, prefix), dtype)
        bias = torch.arange(batch * n).reshape(batch, n).remainder(7).add(1.0).log()
        bias[1, 20:] = -math.inf
        bias[2, prefix:] = -math.inf
        finite = bias.double().clamp_min(-1e30)[:, None, None]
        x = q.double() @ k.double().mT * width**-0.5
        output, entropy = attend_with_entropy(q, k, v, order, width**-0.5, prefix, backend, bias)
        expected = definition((x + finite)[..., prefix:, prefix:].softmax(-1), order)
        torch.testing.assert_close(entropy.double(), expected, rtol=2e-5, atol=2e-5)
        rounding = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(output.double(), (x + finite).softmax(-1) @ v.double(), rtol=rounding, atol=rounding)
        alone = kernel_entropy(q[:, :, prefix:], k[:, :, prefix:], order, width**-0.5, backend, bias[:, prefix:])
        torch.testing.assert_close(alone, entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("order", under_the_interpreter([0.5, 0.9, 1.0, 1.001, 2.0, math.inf], 0.5, 1.0))
def test_gradients_match_those_of_the_float64_reference(backend: str, order: float) -> None:
    """Of output and entropy together, by every input; and of each alone."""
    inputs = [x.requires_grad_() for x in (*tokens((2, 2, 40, 16, 3), torch.float32), torch.randn(2, 40))]
    exactly = [x.detach().double().requires_grad_() for x in inputs]
    weights = torch.randn(2, 2, 40, 16), torch.randn(2, 2, 37)

    def gradients(inputs: list[Tensor], backend: str, parts: tuple[int, ...]) -> tuple[Tensor, ...]:
        q, k, v, bias = inputs
        results = attend_with_entropy(q, k, v, order, 0.3, 3, backend, bias)
        total = sum((results[part] * weights[part]).sum() for part in parts)
        return torch.autograd.grad(total, inputs, materialize_grads=True)

    for parts in [(0, 1), (0,), (1,)]:
        expected = gradients(exactly, "reference", parts)
        for got, right in zip(gradients(inputs, backend, parts), expected, strict=True):
            assert got.dtype == torch.float32
            # Processors round otherwise; PyTorch's own attention in float32 is off by up to 2e-6 of the largest here.
            torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=max(2e-5, 4e-6 * right.abs().max().item()))

    def of_entropy(inputs: list[Tensor], backend: str) -> tuple[Tensor, ...]:
        q, k, _, bias = inputs
        entropy = kernel_entropy(q[:, :, 3:], k, order, 0.3, backend, bias)
        return torch.autograd.grad((entropy * weights[1]).sum(), (q, k, bias))

    for got, right in zip(of_entropy(inputs, backend), of_entropy(exactly, "reference"), strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=2e-5)


if not IN_CHILD:

    @pytest.mark.parametrize("workers", [False, True])
    @pytest.mark.parametrize("order", [1.0, 1.1, 2.0, 3.0, math.inf])
    def test_streaming_does_not_depend_on_its_blocks(
        monkeypatch: pytest.MonkeyPatch, order: float, workers: bool
    ) -> None:
        q, k, v = tokens((2, 3, 150, 16, 5), torch.float32)
        whole = attend_with_entropy(q, k, v, order, 0.25, 5, "streaming")
        alone = kernel_entropy(q, k, order, 0.25, "streaming")
        if workers:
            on_workers(monkeypatch)
        for logits in [1, 40 * 150, 2 * 150 * 150, 4 * 150 * 150, 10**9]:
            monkeypatch.setattr(streaming, "WORKER_LOGITS" if workers else "THREAD_LOGITS", logits)
            for got, expected in zip(attend_with_entropy(q, k, v, order, 0.25, 5, "streaming"), whole, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(kernel_entropy(q, k, order, 0.25, "streaming"), alone, rtol=1e-5, atol=1e-5)

    def test_streaming_never_forms_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
        q, k, v = tokens((1, 2, 1500, 16, 1), torch.float32)
        largest = 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal largest
                result = func(*args, **(kwargs or {}))
                for tensor in result if isinstance(result, (tuple, list)) else [result]:
                    if isinstance(tensor, Tensor):
                        largest = max(largest, tensor.untyped_storage().nbytes() // 4)
                return result

        monkeypatch.setattr(streaming, "number_of_workers", lambda device: 1)
        monkeypatch.setattr(streaming, "THREAD_LOGITS", 100 * 1500)
        with Watch():
            streaming.attend_with_entropy(q, k, v, 2.0, 0.25, 1)
        threads = torch.get_num_threads()
        assert 1499 * 100 <= largest <= max(threads * streaming.THREAD_LOGITS, 3 * q.numel()) < 2 * 1500 * 1500 / 4

    @pytest.mark.parametrize("backend", ["reference", "streaming"])
    def test_autocast_does_not_lower_the_precision(backend: str) -> None:
        q, k, v = tokens((1, 2, 60, 16, 1), torch.float32)
        expected = attend_with_entropy(q, k, v, 2.0, 0.25, 1, backend)
        with torch.autocast("cpu", torch.bfloat16):
            got = attend_with_entropy(q, k, v, 2.0, 0.25, 1, backend)
        torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("op", ["attention_entropy", "attend_with_entropy"])
    def test_operators_are_registered_properly(op: str) -> None:
        q, k, v = (x.clone() for x in tokens((2, 2, 20, 8, 1), torch.float32))
        args = (q, k, 2.0, 0.3, "streaming") if op == "attention_entropy" else (q, k, v, 2.0, 0.3, 1, "streaming")
        checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(getattr(torch.ops.entropatch, op).default, args, test_utils=checks)

    @pytest.mark.parametrize("order", NEAR_ONE)
    def test_orders_next_to_one_are_exact_for_thousands_of_keys(order: float) -> None:
        """Rows from even to peaked over 5000 keys, half of which lie together far below the largest."""
        keys = torch.randn(5000, generator=torch.Generator().manual_seed(0))
        keys[::2] = -3.0
        q, k = torch.tensor([0.01, 0.3, 1.0, 2.0, 3.0, 10.0, -1.0])[:, None], keys[:, None]
        log_p = (q.double() * k[:, 0].double()).log_softmax(-1)
        expected = -torch.log1p((log_p.exp() * torch.expm1((order - 1) * log_p)).sum(-1)) / (order - 1)
        got = kernel_entropy(q[None, None], k[None, None], order, 1.0, "streaming")[0, 0]
        torch.testing.assert_close(got.double(), expected, rtol=5e-7, atol=1e-6)

    @pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 40.0, math.inf, *NEAR_ONE])
    def test_no_order_takes_more_than_cheap_operators(order: float) -> None:
        """On whole blocks: sums, products, at most two powers of two; the other functions cost several of them."""
        q, k, v = tokens((1, 1, 60, 8, 0), torch.float32)
        ran: list[str] = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if any(isinstance(x, Tensor) and x.numel() == 60 * 60 for x in args):
                    ran.append(func.overloadpacket.__name__.removesuffix("_"))
                return func(*args, **(kwargs or {}))

        with Watch():
            streaming.attend_with_entropy(q, k, v, order, 0.3, 0)
        work = [name for name in ran if name not in ("view", "slice", "select", "transpose", "expand")]
        cheap = {
            "amax",
            "sub",
            "mul",
            "sum",
            "matmul",
            "bmm",
            "baddbmm",
            "exp2",
            "linalg_vector_norm",
            "clamp_min",
            "addcmul",
        }
        assert set(work) <= cheap
        assert work.count("exp2") <= 2
        assert len(work) <= 14

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_output_keeps_the_layout_of_its_fake(dtype: torch.dtype) -> None:
        q, k, v = tokens((2, 3, 20, 8, 1), dtype)
        real = torch.ops.entropatch.attend_with_entropy(q, k, v, 2.0, 0.3, 1, "streaming")
        fakes = torch.ops.entropatch.attend_with_entropy(*(x.to("meta") for x in (q, k, v)), 2.0, 0.3, 1, "streaming")
        for got, fake in zip(real, fakes, strict=True):
            assert (got.shape, got.stride(), got.dtype) == (fake.shape, fake.stride(), fake.dtype)

    def test_flop_counter_sees_the_operators() -> None:
        q, k, v = tokens((2, 3, 20, 8, 1), torch.float32)
        with FlopCounterMode(display=False) as counter:
            attend_with_entropy(q, k, v, 2.0, 0.3, 1, "streaming")
        assert counter.get_total_flops() == 2 * (2 * 3 * 20 * 20 * 8) * 2
        with FlopCounterMode(display=False) as counter:
            kernel_entropy(q, k, 2.0, 0.3, "streaming")
        assert counter.get_total_flops() == 2 * 3 * 20 * 20 * 8 * 2

    def test_choice_of_backend() -> None:
        q = torch.zeros(1, 1, 4, 16)
        assert choose_backend("auto", q) == "streaming"
        assert choose_backend("reference", q) == "reference"
        with pytest.raises(ValueError, match="must be one of auto, reference, streaming, triton, but got 'flash'"):
            choose_backend("flash", q)
        with pytest.raises(ValueError, match='backend "triton" cannot run here: '):
            choose_backend("triton", q)

    @pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
    def test_a_block_forms_its_logits_once(order: float) -> None:
        q, k, v = tokens((1, 2, 20, 8, 1), torch.float32)
        with FlopCounterMode(display=False) as counter:
            attention = BlockAttention(q, k, v, num_prefix_tokens=1)
            attention.entropy(order)
            attention.output()
        assert counter.get_total_flops() == 2 * (2 * 20 * 20 * 8) * 2
        with torch.enable_grad():  # with gradients, PyTorch's own differentiable kernel gives the output
            q = q.detach().requires_grad_()
            attention = BlockAttention(q, k, v, num_prefix_tokens=1)
            with torch.no_grad():
                attention.entropy(order)
            assert attention.output().requires_grad

    @pytest.mark.skipif(TRITON is None, reason="Triton is not installed on this platform")
    @pytest.mark.skipif(
        TRITON is not None and TRITON < (3, 6) and NUMPY >= (2, 4),
        reason="before 3.6 Triton's interpreter does not run on NumPy 2.4",
    )
    @pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
    def test_triton_under_its_interpreter(which: str) -> None:
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
            "-m",
            which,
            __file__,
        ]
        command.append(str(Path(__file__).with_name("test_head_mean.py")))
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout[-4000:]
        assert " passed" in result.stdout
