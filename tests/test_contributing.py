"""The snippets of CONTRIBUTING, run as they stand."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_models import create, photographs
from torch import Tensor, nn

import entropatch
from entropatch import Criterion, Method, Plan, PruneConfig, Reduction, register_method
from entropatch.kernels import reference, registry
from entropatch.kernels.backend import Backend
from entropatch.methods import METHODS
from entropatch.surgery.adapters.base import Adapter
from entropatch.surgery.loop import in_order, run_blocks
from entropatch.surgery.registry import LIBRARIES
from entropatch.surgery.split_block import SplitBlock
from entropatch.tokens import select

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
NAMES: dict[str, Any] = {
    "Adapter": Adapter,
    "Backend": Backend,
    "Criterion": Criterion,
    "Method": Method,
    "Plan": Plan,
    "Reduction": Reduction,
    "SplitBlock": SplitBlock,
    "dataclass": dataclass,
    "in_order": in_order,
    "reference": reference,
    "register_method": register_method,
    "run_blocks": run_blocks,
    "select": select,
    "torch": torch,
}


def run(*snippets: str, module: str = "a_module_of_ones_own", **names: Any) -> dict[str, Any]:
    space = {**NAMES, **names, "__name__": module}
    for snippet in snippets:
        exec(compile(snippet, "CONTRIBUTING.md", "exec"), space)
    return space


def test_each_is_short() -> None:
    assert len(SNIPPETS) == 5
    assert all(len([line for line in snippet.splitlines() if line.strip()]) < 15 for snippet in SNIPPETS)


def test_a_criterion_a_reduction_and_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))
    space = run(*SNIPPETS[:3])
    config = PruneConfig(keep_rate=0.5, method="key-norm")
    assert config == PruneConfig(keep_rate=0.5, criterion=space["KeyNorm"](), reduction=space["Average"]())
    assert PruneConfig.from_json(config.to_json()) == config
    assert config.label == "Key norm"
    model: Any = entropatch.prune_(create("deit"), config)
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(photographs(model))
    assert trace.counts == [25, 14, 8, 5]
    first = trace.stages[0]
    gone = first.dropped_tokens.mean(1)
    after = model.blocks[1].mlp_half(gone[:, None])  # what the appended token is before the next block
    with torch.no_grad(), entropatch.watch(model, (2,), lambda attention, tokens: None):
        seen: list[Tensor] = []
        model.blocks[2].register_forward_pre_hook(lambda module, args: seen.append(args[0][:, -1:]))
        model(photographs(model))
    torch.testing.assert_close(seen[0], after.detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(entropatch.UnsupportedModelError, match="stands at no place of the grid"):
        entropatch.prune_(create("dinov3"), config)


def test_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = run(SNIPPETS[3])["BACKEND"]
    monkeypatch.setattr(registry, "BACKENDS", (*registry.BACKENDS, mine))
    model, images = create("deit"), photographs(create("deit"))
    with torch.no_grad():
        got = entropatch.prune_(model, keep_rate=0.5, backend="mine")(images)
        expected = entropatch.prune_(model, backend="reference")(images)
    torch.testing.assert_close(got, expected)
    q = torch.randn(1, 1, 4, 65)
    with pytest.raises(ValueError, match='backend "mine" cannot run here: it needs a head width of at most 64'):
        entropatch.attention_entropy(q, q, 2.0, backend="mine")


TOY = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.project, self.proj, self.mlp = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8)

    def qkv(self, x):
        return self.project(self.norm1(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x):
        y = nn.functional.scaled_dot_product_attention(*self.qkv(x))
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

class Model(nn.Module):
    num_prefix_tokens, embed_dim = 1, 8

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 5)

    def embed(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1)

    def grid(self, images):
        return images.shape[2] // 4, images.shape[3] // 4

    def head(self, x):
        return self.out(self.norm(x)[:, 0])

    def forward(self, images):
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
"""


@pytest.fixture
def toyvit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "toyvit.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toyvit", raising=False)
    import toyvit  # pyright: ignore[reportMissingImports]

    return toyvit


def test_a_model_library(toyvit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("toyvit_adapter")
    vars(module).update(run(SNIPPETS[4], module="toyvit_adapter", toyvit=toyvit))
    monkeypatch.setitem(sys.modules, "toyvit_adapter", module)
    monkeypatch.setitem(LIBRARIES, "toyvit", ("toyvit_adapter", "ToyAdapter"))
    model: Any = toyvit.Model().eval()
    kind, images = type(model), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        stock = model(images)
        assert torch.equal(entropatch.prune_(model, keep_rate=1.0)(images), stock)
        for setting in ({"order": 1.0}, {"method": "evit"}, {"method": "tome"}, {"method": "shannon-merge"}):
            entropatch.prune_(model, keep_rate=0.5, **setting)
            with entropatch.trace(model) as trace:
                assert not torch.equal(model(images), stock)
            assert trace.counts[0] == 16
            assert trace.counts[-1] < 5
        assert torch.equal(entropatch.unprune_(model)(images), stock)
    assert type(model) is kind
    model.blocks[2].mlp = nn.Sequential(nn.Linear(8, 8), Mixing())
    with pytest.raises(entropatch.UnsupportedModelError, match=r"block 2 \(Block\) does not behave as entropatch"):
        entropatch.prune_(model)


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, dims=1)
