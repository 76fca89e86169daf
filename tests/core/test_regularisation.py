"""The entropy penalty against loops in float64, its gradients, and what training with it does."""

from __future__ import annotations

import math

import pytest
import reference
import timm
import torch
from torch import Tensor, nn

import entropatch
from entropatch import BlockAttention, CumulativeImportance, Tokens, entropy_penalty, prune_
from entropatch.regularisation import EntropyPenalty
from entropatch.surgery import is_pruned

pytestmark = pytest.mark.usefixtures("one_thread")

TARGET = 0.9


def vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=24, num_heads=3, depth=4, num_classes=5, **options
    )
    for name, parameter in model.named_parameters():
        if "qkv.weight" in name:
            nn.init.normal_(parameter, std=0.6)  # attention far from even
    return model.double()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()


def by_loops(model: nn.Module, x: Tensor, blocks: list[int], heads: list[int], order: float, side: str) -> float:
    """The penalty from each block's queries and keys, by tests/reference.py."""
    seen: dict[int, tuple[Tensor, Tensor, float]] = {}

    def look(attention: BlockAttention, tokens: Tokens) -> None:
        seen[attention.block] = attention.q.detach(), attention.k.detach(), attention.scale

    with entropatch.watch(model, blocks, look):
        model(x)
    terms = []
    for block in blocks:
        q, k, scale = seen[block]
        for image in range(len(x)):
            per_head = [
                [
                    reference.renyi_entropy(row, order)
                    for row in reference.patch_attention(q[image].numpy(), k[image].numpy(), scale, 1)[head]
                ]
                for head in heads
            ]
            for row in per_head:
                away = sum(row) / len(row) / math.log(len(row)) - TARGET
                counts = {"both": True, "above": away > 0, "below": away < 0}[side]
                terms.append(away**2 if counts else 0.0)
    return sum(terms) / len(terms)


@pytest.mark.parametrize("side", ["both", "above", "below"])
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
def test_it_is_that_of_the_loops(order: float, side: str) -> None:
    model, x = vit(), images()
    with entropy_penalty(model, target=TARGET, blocks=(1, 3), heads=(0, 2), order=order, side=side) as penalty:
        model(x)
    expected = by_loops(model, x, [1, 3], [0, 2], order, side)
    assert penalty.value.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert expected > 0 or side != "both"
    assert set(penalty.means) == {1, 3}
    assert penalty.means[1].shape == (2,)
    assert not is_pruned(model)


def test_its_gradient_is_its_slope() -> None:
    model, x = vit(), images()
    weight = model.blocks[1].attn.qkv.weight  # pyright: ignore
    direction = torch.randn_like(weight)

    def value() -> Tensor:
        with entropy_penalty(model, target=0.3, blocks=(1, 2)) as penalty:
            model(x)
        return penalty.value

    slope = (torch.autograd.grad(value(), weight)[0] * direction).sum()
    with torch.no_grad():
        step = 1e-3
        weight += step * direction
        above = value()
        weight -= 2 * step * direction
        below = value()
    assert slope.item() == pytest.approx(((above - below) / (2 * step)).item(), rel=2e-2)


@pytest.mark.parametrize("pruned", [False, True])
def test_checkpointing_gives_the_same_gradients(pruned: bool) -> None:
    found = []
    for checkpointed in (False, True):
        model = vit().train()
        if pruned:
            prune_(model, keep_rate=0.5, blocks=(1, 2))
        model.set_grad_checkpointing(checkpointed)  # pyright: ignore
        with entropy_penalty(model, target=0.5) as penalty:
            (model(images()).sum() + penalty.value).backward()
            assert len(penalty.means) == 4
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_several_passes_are_averaged_over_their_images() -> None:
    model, first, second = vit(), images(), images(3) * 2
    values = []
    for batches in ([first], [second], [first, second]):
        with entropy_penalty(model, target=0.5) as penalty:
            for batch in batches:
                model(batch)
        values.append(penalty.value.item())
    assert values[2] == pytest.approx((2 * values[0] + 3 * values[1]) / 5)


def test_images_that_keep_different_numbers_count_alike() -> None:
    """They go through the later blocks in groups of one size, each image as if it were alone."""
    model, batch = vit(), images(7) * torch.logspace(-1, 1, 7)[:, None, None, None]
    prune_(model, schedule=CumulativeImportance(0.6), blocks=(1, 2))
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(batch)
    assert any(isinstance(counts, list) for counts in trace.counts)
    alone: list[entropatch.regularisation.EntropyPenalty] = []
    for image in batch:
        with entropy_penalty(model, target=0.5, side="below") as penalty:
            model(image[None])
        alone.append(penalty)
    with entropy_penalty(model, target=0.5, side="below") as together:
        model(batch)
    assert together.value.item() == pytest.approx(sum(one.value.item() for one in alone) / 7, rel=1e-5)
    assert together.blocks == [0, 1, 2, 3]
    for block, mean in together.means.items():
        torch.testing.assert_close(mean, torch.stack([one.means[block] for one in alone]).mean(0))


@pytest.mark.parametrize("target", [pytest.param(0.3, marks=pytest.mark.slow), 0.6, 0.95])
@pytest.mark.parametrize("side", ["both", "above", "below"])
def test_training_reaches_the_target(target: float, side: str) -> None:
    model, x = vit().float().train(), images(4).float()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    means = []
    for _ in range(80):
        with entropy_penalty(model, target=target, blocks=(2,), side=side) as penalty:
            model(x)
        optimizer.zero_grad()
        penalty.value.backward()
        optimizer.step()
        means.append(penalty.means[2].mean().item())
    already = {"both": False, "above": means[0] < target, "below": means[0] > target}[side]
    assert means[-1] == pytest.approx(means[0] if already else target, abs=0.1)


def test_padding_counts_for_nothing() -> None:
    """An image of seven patches, filled up to ten beside one that has them."""
    q, k = (torch.randn(2, 3, 10, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    valid = torch.arange(10) < torch.tensor([[7], [10]])
    bias = torch.zeros(2, 10).masked_fill(~valid, -math.inf)
    together = EntropyPenalty(0.5, None, 2.0, "both")
    together._look(BlockAttention(q, k, k, key_bias=bias), Tokens(0, 10, 10, valid=valid))
    values = []
    for image, n in enumerate((7, 10)):
        alone = EntropyPenalty(0.5, None, 2.0, "both")
        part = (x[image : image + 1, :, :n] for x in (q, k, k))
        alone._look(BlockAttention(*part), Tokens(0, n, n))
        values.append(alone.value.item())
    assert together.value.item() == pytest.approx(sum(values) / 2, rel=1e-5)


def test_what_would_teach_nothing_is_refused() -> None:
    model = vit()
    with entropy_penalty(model, target=0.5) as penalty, pytest.raises(RuntimeError, match="none ran"):
        _ = penalty.value
    with entropy_penalty(model, target=0.5) as penalty:
        with torch.no_grad():
            model(images())
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            _ = penalty.value


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": 1.2}, "target must"),
        ({"target": 0.5, "side": "left"}, "side must"),
        ({"target": 0.5, "heads": ()}, "heads must"),
        ({"target": 0.5, "blocks": (7,)}, "blocks must"),
        ({"target": 0.5, "order": 0.0}, "order"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words), entropy_penalty(vit(), **settings):  # pyright: ignore
        pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blocks": 3}, r"blocks must be numbers .* but got 3; for one alone write \(3,\)"),
        ({"heads": 2}, r"heads must be numbers .* but got 2; for one alone write \(2,\)"),
        ({"heads": (True,)}, r"heads must be numbers .* but got \(True,\)"),
        ({"blocks": "12"}, r"blocks must be numbers .* but got '12'"),
        ({"heads": (0.0,)}, r"heads must be numbers .* but got \(0.0,\)"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(settings: dict[str, object], words: str) -> None:
    model = vit()
    with pytest.raises(TypeError, match=words), entropy_penalty(model, target=0.5, **settings):  # pyright: ignore
        pass
    assert not is_pruned(model)


def test_a_head_that_is_not_there_is_refused_where_it_is_given() -> None:
    model = vit()
    for heads in ((0, 3), (-1,)):
        penalty = entropy_penalty(model, target=0.5, heads=heads)
        with pytest.raises(ValueError, match="heads must lie in 0 … 2, but got"):
            penalty.__enter__()  # before the model runs
    assert not is_pruned(model)
    for heads in ([2, 0], range(3), {1}):  # whatever holds numbers
        with entropy_penalty(model, target=0.5, heads=heads) as penalty:  # pyright: ignore
            model(images())
        assert penalty.means[0].shape == (len(heads),)
