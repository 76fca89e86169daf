"""Pruned models that are compiled, wrapped, sharded or parametrized: never the dense output without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_models import create, photographs
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.utils import parametrize

import entropatch
from entropatch import PruneConfig, UnsupportedModelError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def output(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def counts(model: nn.Module, images: Tensor) -> list[Any]:
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
    return trace.counts


def pruned(name: str, **setting: Any) -> nn.Module:
    return entropatch.prune_(create(name), **{"keep_rate": 0.5} | setting)


# --- compiled block by block ---------------------------------------------------------------------------------------


def compile_in_place(model: Any) -> None:
    for block in model.blocks:
        block.compile(backend="eager")


def compile_as_wrappers(model: Any) -> None:
    for i in range(len(model.blocks)):
        model.blocks[i] = torch.compile(model.blocks[i], backend="eager")


class Break(nn.Module):
    """A part at which a graph ends."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.inner(x)


@pytest.mark.parametrize(
    "compile_blocks", [compile_in_place, pytest.param(compile_as_wrappers, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["deit", pytest.param("dinov3", marks=pytest.mark.slow)])
def test_one_blocks_compiled_code_does_not_serve_another(name, compile_blocks):
    model = pruned(name)
    images = photographs(model)
    expected = output(model, images)
    compile_blocks(model)
    torch.testing.assert_close(output(model, images), expected)
    assert counts(model, images) == [25, 13, 7, 4]
    entropatch.prune_(model, keep_rate=0.8, blocks=(0, 3))
    torch.testing.assert_close(output(model, images), output(pruned(name, keep_rate=0.8, blocks=(0, 3)), images))
    entropatch.unprune_(model)
    torch.testing.assert_close(output(model, images), output(create(name), images))


def test_a_graph_that_breaks_between_blocks():
    model = entropatch.prune_(create("deit", depth=2), keep_rate=0.5, blocks=(0, 1))
    model.blocks[0].norm2 = Break(model.blocks[0].norm2)
    images = photographs(model)
    expected, fast = output(model, images), torch.compile(model, backend="eager")
    torch.testing.assert_close(output(fast, images), expected)
    assert counts(fast, images) == [25, 13, 7]


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager", fullgraph=True)  # pyright: ignore[reportReturnType]


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager", fullgraph=True)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("make", [compiled, compiled_in_place])
def test_every_change_of_a_setting_takes_effect_in_compiled_code(make):
    """Blocks added and taken away, another rate, method and schedule, on one compiled model."""
    fast, images = make(pruned("deit", blocks=(1,))), photographs(create("deit"))
    output(fast, images)
    changes: list[dict[str, Any]] = [
        {"blocks": (1, 2, 3)},
        {"blocks": (0,), "keep_rate": 0.7},
        {"method": "tome", "blocks": None},
        {"method": "evit", "keep_rate": 0.3},
        {"keep_rate": 1.0, "method": "shannon"},
    ]
    for change in changes:
        entropatch.prune_(fast, **change)
        fresh = entropatch.prune_(create("deit"), entropatch.pruning_config(fast))
        torch.testing.assert_close(output(fast, images), output(fresh, images))
    entropatch.unprune_(fast)
    torch.testing.assert_close(output(fast, images), output(create("deit"), images))


# --- wrapped and derived -------------------------------------------------------------------------------------------


def check_settings_and_return(model: nn.Module, images: Tensor, stock: nn.Module) -> None:
    """A wrapped pruned model prunes, takes a new setting, and is stock again afterwards."""
    assert counts(model, images) == [25, 13, 7, 4]
    entropatch.prune_(model, keep_rate=0.8)
    assert counts(model, images) == [25, 20, 16, 13]
    entropatch.prune_(model, blocks=(0,))
    assert counts(model, images) == [25, 20]
    assert entropatch.unprune_(model) is model
    torch.testing.assert_close(output(model, images), output(stock, images))
    with pytest.raises(ValueError, match="is not pruned"):
        entropatch.pruning_config(model)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(model: Any) -> Any:
    parametrize.register_parametrization(model, "cls_token", Twice())
    parametrize.register_parametrization(model.blocks[1].attn.qkv, "weight", Twice())
    return model


def test_a_parametrized_model():
    model = parametrized(pruned("deit"))
    check_settings_and_return(model, photographs(model), parametrized(create("deit")))
    parametrize.remove_parametrizations(model, "cls_token")
    assert type(model) is type(create("deit"))


def test_a_model_parametrized_before_is_told_the_order():
    with pytest.raises(UnsupportedModelError, match="parametrized or wrapped already: prune it before"):
        entropatch.prune_(parametrized(create("deit")))


@pytest.mark.parametrize("kind", CheckpointImpl)
def test_blocks_wrapped_for_activation_checkpointing(kind):
    model, plain = pruned("deit").train(), pruned("deit").train()
    images = photographs(model).requires_grad_()
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=lambda block: checkpoint_wrapper(block, checkpoint_impl=kind),
        check_fn=lambda module: isinstance(module, Block),
    )
    for each in (model, plain):
        each(images).square().sum().backward()
    gradients = {name.replace("_checkpoint_wrapped_module.", ""): w.grad for name, w in model.named_parameters()}
    for name, weight in plain.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(gradients[name], weight.grad)
    check_settings_and_return(model.eval(), images.detach(), create("deit"))


@pytest.mark.usefixtures("accelerate_forgets")
def test_accelerate_in_mixed_precision():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(pruned("deit"))
    images = photographs(create("deit"))
    entropatch.prune_(prepared, keep_rate=0.8)
    assert counts(prepared, images) == [25, 20, 16, 13]
    # Its autocast calls the pruned forward, which must not be taken from under it.
    with pytest.raises(UnsupportedModelError, match=r"forward .* was replaced .*unwrap_model\(model, keep_fp32"):
        entropatch.unprune_(prepared)
    assert counts(prepared, images) == [25, 20, 16, 13]
    plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    check_settings_and_return(entropatch.prune_(plain, keep_rate=0.5), images, create("deit"))


def test_tools_that_know_a_block_by_the_name_of_its_class_find_it():
    model: Any = pruned("dinov3")
    stock: Any = create("dinov3")
    for part in ("blocks.0", "blocks.0.attn", ""):
        assert type(model.get_submodule(part)).__name__ == type(stock.get_submodule(part)).__name__


# --- sharded -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    file = tmp_path_factory.mktemp("group") / "file"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(model: Any, mesh: Any, **options: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


@pytest.mark.parametrize("name", ["deit", "dinov3"])
def test_fully_shard(name, mesh):
    model = sharded(pruned(name), mesh)
    images = photographs(create(name))
    torch.testing.assert_close(output(model, images), output(pruned(name), images))
    stock = sharded(create(name), mesh)
    check_settings_and_return(model, images, stock)
    assert type(model).__mro__[1:3] == type(stock).__mro__[1:3]


@pytest.mark.parametrize("name", ["deit", "dinov3", "rope mixed"])
def test_fully_shard_casts_the_inputs_of_a_pruned_block_as_those_of_a_stock_one(name, mesh):
    """Rotary tables among them: at keep rate 1 the output is the stock model's, to the last bit."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = sharded(pruned(name, keep_rate=1.0), mesh, mp_policy=half)
    stock = sharded(create(name), mesh, mp_policy=half)
    images = photographs(create(name))
    assert torch.equal(output(model, images), output(stock, images))


@pytest.mark.slow
def test_fully_shard_around_compiled_blocks(mesh):
    model = pruned("deit")
    images = photographs(model)
    expected = output(model, images)
    compile_in_place(model)
    sharded(model, mesh)
    torch.testing.assert_close(output(model, images), expected)
    assert counts(model, images) == [25, 13, 7, 4]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_older_fsdp(mesh):
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    images = photographs(create("deit"))
    model = FullyShardedDataParallel(
        pruned("deit"),
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        device_id=torch.device("cpu"),
        use_orig_params=True,
    )
    check_settings_and_return(model, images, create("deit"))


def test_distributed_data_parallel(mesh):
    model = nn.parallel.DistributedDataParallel(pruned("deit"))
    check_settings_and_return(model, photographs(create("deit")), create("deit"))


def test_what_is_sharded_already_is_told_the_order(mesh):
    with pytest.raises(UnsupportedModelError, match="sharded, parametrized or wrapped already: prune it before"):
        entropatch.prune_(sharded(create("deit"), mesh))


# --- compiled and checkpointed at once -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("deit", "renyi-2"),
        pytest.param("deit", "tome", marks=pytest.mark.slow),
        pytest.param("rope mixed", "shannon-merge", marks=pytest.mark.slow),
    ],
)
def test_gradient_checkpointing_in_one_graph(name, method):
    model: Any = entropatch.prune_(create(name, depth=2), keep_rate=0.5, method=method).train()
    images = photographs(model)
    model.set_grad_checkpointing(True)
    passes = []
    run: Callable[[Tensor], Tensor] = torch.compile(model, backend="aot_eager", fullgraph=True)
    for each in (model, run):
        model.zero_grad()
        each(images).square().sum().backward()
        passes.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    for got, expected in zip(*passes, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "setting",
    [
        {"method": "renyi-2"},
        *(pytest.param({"method": name}, marks=pytest.mark.slow) for name in ("evit", "tome")),
        {"r": 4},
    ],
)
def test_export_with_a_dynamic_batch(setting):
    model = entropatch.prune_(create("deit"), PruneConfig(**setting))
    images = photographs(model, batch=5)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (images[:3],), dynamic_shapes=({0: batch},)).module()
        for size in (1, 5):
            torch.testing.assert_close(program(images[:size]), model(images[:size]))
