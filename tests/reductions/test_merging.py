"""Merging against the loops of `reference`: ToMe's bipartite matching, and each removed patch into the nearest kept."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference
import torch
from reference_model import merged_pass
from small_models import create, photographs
from torch import Tensor

import entropatch
from entropatch import BipartiteMerge, BlockAttention, Merge, RemovePerBlock
from entropatch.tokens import Plan, Tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def block_attention(
    patches: int = 11, prefix: int = 1, batch: int = 3, class_token: bool | None = None
) -> BlockAttention:
    q, k, v = torch.randn(3, batch, 3, prefix + patches, 4, dtype=torch.float64)
    has_class = prefix > 0 if class_token is None else class_token
    return BlockAttention(q, k, v, num_prefix_tokens=prefix, has_class_token=has_class)


def groups_of(plan: Plan, n: int, prefix: int, image: int) -> list[list[int]]:
    """The groups of a plan, in the tokens' order, prefix tokens counted; members in any order."""
    target = plan.target(n)[image].tolist()
    groups: list[list[int]] = [[i] for i in range(prefix)]
    groups += [[prefix + i for i in range(n) if target[i] == place] for place in range(plan.kept.shape[1])]
    return groups


@pytest.mark.parametrize(("patches", "r"), [(11, 1), (11, 5), (12, 6), (2, 1), (16, 3)])
@pytest.mark.parametrize(("prefix", "class_token"), [(0, False), (1, True), (2, True), (5, True), (4, False)])
def test_bipartite_matching_equals_the_loops(prefix: int, class_token: bool, patches: int, r: int) -> None:
    attention = block_attention(patches, prefix, class_token=class_token)
    tokens = Tokens(prefix, patches, patches)
    plan = BipartiteMerge().plan(attention, tokens, None, patches - r)
    for image in range(3):
        expected = reference.bipartite(attention.k[image].numpy(), prefix, r, class_token)
        got = groups_of(plan, patches, prefix, image)
        assert [sorted(group) for group in got] == [sorted(group) for group in expected]


@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_every_removed_patch_goes_into_the_nearest_kept(prefix: int, k: int) -> None:
    attention, scores = block_attention(11, prefix), torch.rand(3, 11)
    plan = Merge().plan(attention, Tokens(prefix, 11, 11), scores, k)
    for image in range(3):
        kept = reference.kept_places(scores[image].tolist(), k)
        expected = reference.merged_into_nearest(attention.k[image].numpy(), prefix, kept)
        got = groups_of(plan, 11, prefix, image)
        assert [sorted(group) for group in got] == [sorted(group) for group in expected]


@pytest.mark.parametrize("reduction", [Merge(), BipartiteMerge()])
def test_a_merged_token_is_the_mean_weighted_by_sizes(reduction: Any) -> None:
    attention, scores = block_attention(12, 1), torch.rand(3, 12)
    sizes = torch.randint(1, 5, (3, 12)).float()
    tokens = Tokens(1, 12, 30, sizes=sizes)
    plan = reduction.plan(attention, tokens, scores, 8)
    x = torch.randn(3, 12, 6, dtype=torch.float64)
    after = tokens.after(plan)
    assert after.sizes is not None
    for image in range(3):
        groups = [[i - 1 for i in group] for group in groups_of(plan, 12, 1, image)[1:]]
        expected, whole = reference.merge(x[image].numpy(), sizes[image].tolist(), groups)
        torch.testing.assert_close(plan.apply(x)[image], torch.from_numpy(expected), rtol=1e-6, atol=1e-7)
        assert after.sizes[image].tolist() == whole


def test_keys_in_double_precision_are_told_apart_in_it() -> None:
    """Alike to seven digits: single precision would call it a tie, which the lower index wins."""
    k = torch.zeros(1, 1, 5, 2, dtype=torch.float64)
    k[0, 0] = torch.tensor([[0, 0], [1, 1e-4], [1, 0], [1, 1e-5], [0, 1]])
    attention = BlockAttention(k, k, k, num_prefix_tokens=1, has_class_token=True)
    plan = BipartiteMerge().plan(attention, Tokens(1, 4, 4), None, 3)
    assert plan.kept.tolist() == [[3, 0, 2]]
    assert plan.targets is not None
    assert plan.targets.tolist() == [[2]]


def test_at_most_half_of_the_patches_can_be_paired() -> None:
    for prefix, n in itertools.product((0, 1, 2), (1, 2, 3, 9, 10)):
        most = BipartiteMerge().most_removed(n)
        plan = BipartiteMerge().plan(block_attention(n, prefix), Tokens(prefix, n, n), None, n - most) if most else None
        assert plan is None or plan.n == n - most


# --- whole models ------------------------------------------------------------------------------------------------


def double(name: str, **changes: Any) -> Any:
    return create(name, **changes).double()


def places(trace: entropatch.Trace, image: int) -> list[set[int]]:
    """The patches that each token stands for in the end."""
    (part,) = trace.stages[-1].parts
    row = part.after.original_places(part.tokens)[image].tolist()
    return [{patch for patch, place in enumerate(row) if place == token} for token in range(part.after.n)]


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("name", ["deit", "siglip", "dinov2 registers", "q/k norm", "average", "registers, average"])
def test_tome_equals_the_loops(name: str, proportional: bool) -> None:
    """r tokens in every block: outputs, and what each token stands for."""
    model, stock, r = double(name), double(name), (5, 0, 4, 3)
    prefix, class_token = stock.num_prefix_tokens, stock.cls_token is not None
    entropatch.prune_(model, reduction=BipartiteMerge(proportional), schedule=RemovePerBlock(r))
    images = photographs(stock).double()
    with torch.no_grad(), entropatch.trace(model) as trace:
        got = model(images)
    assert trace.counts == [25, 20, 20, 16, 13]
    assert trace.scores == [None] * 4
    for image in range(2):

        def groups(block: int, q: np.ndarray, k: np.ndarray) -> list[list[int]] | None:
            return reference.bipartite(k, prefix, r[block], class_token) if r[block] else None

        expected, held = merged_pass(stock, images[image : image + 1], groups, proportional)
        torch.testing.assert_close(got[image], expected[0], rtol=1e-6, atol=1e-7)
        assert places(trace, image) == held[-1]


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("order", [1.0, 2.0])
def test_entropy_with_merging_equals_the_loops(order: float, proportional: bool) -> None:
    """Later stages score the attention that the model has, the sizes of merged tokens in it."""
    model, stock = double("deit"), double("deit")
    entropatch.prune_(model, keep_rate=0.6, order=order, reduction=Merge(proportional))
    images = photographs(stock).double()
    with torch.no_grad(), entropatch.trace(model) as trace:
        got = model(images)
    assert trace.counts == [25, 15, 9, 6]
    for image in range(2):
        sizes = [1.0] * 26

        def groups(block: int, q: np.ndarray, k: np.ndarray, image: int = image) -> list[list[int]] | None:
            nonlocal sizes
            if block not in (1, 2, 3):
                return None
            bias = [float(np.log(size)) for size in sizes] if proportional else None
            heads = reference.patch_entropies(q, k, order, q.shape[-1] ** -0.5, 1, bias)
            scores = [-value for value in reference.mean_over_heads(heads)]
            kept = reference.kept_places(scores, reference.kept_count(0.6, len(scores)))
            found = reference.merged_into_nearest(k, 1, kept)
            sizes = [sum(sizes[i] for i in group) for group in found]
            return found

        expected, held = merged_pass(stock, images[image : image + 1], groups, proportional)
        torch.testing.assert_close(got[image], expected[0], rtol=1e-5, atol=1e-6)
        assert places(trace, image) == held[-1]


@pytest.mark.parametrize("method", ["tome", "shannon-merge"])
@pytest.mark.parametrize("name", ["deit", "dinov3", "rope mixed", "eva-02", "post-norm", "siglip"])
def test_restore_paints_a_merged_patch_with_the_token_that_stands_for_it(name: str, method: str) -> None:
    model: Any = entropatch.prune_(create(name), keep_rate=0.5, method=method)
    images = photographs(model)
    with torch.no_grad(), entropatch.trace(model) as trace:
        features = model.forward_features(images)
    dense = entropatch.restore(features, trace).flatten(1, 2)
    prefix = model.num_prefix_tokens
    for image in range(2):
        for token, patches in enumerate(places(trace, image)):
            for patch in patches:
                assert torch.equal(dense[image, patch], features[image, prefix + token])
    assert sum(len(patches) for patches in places(trace, 0)) == 25  # nothing is gone


@pytest.mark.parametrize("name", ["deit", "rope mixed"])
def test_gradients_reach_the_merged(name: str) -> None:
    model: Any = entropatch.prune_(create(name), keep_rate=0.5, method="tome").train()
    images = photographs(model).requires_grad_()
    model(images).square().sum().backward()
    assert images.grad is not None
    assert bool((images.grad.unfold(2, 16, 16).unfold(3, 16, 16).abs().sum((1, 4, 5)) > 0).all())


def test_proportional_attention_never_forms_the_matrix() -> None:
    """Only PyTorch's fused kernel and our own are asked, with a bias of one row per image."""
    seen: list[tuple[int, ...]] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        if mask is not None:
            seen.append(tuple(mask.shape))
        return fused(q, k, v, mask, *args, **kwargs)

    model = entropatch.prune_(create("deit"), r=3, method="tome")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        model(photographs(model))
    assert seen == [(2, 1, 1, 23), (2, 1, 1, 20), (2, 1, 1, 17)]


def test_half_precision_and_autocast() -> None:
    for method in ("tome", "shannon-merge"):
        model = entropatch.prune_(create("deit"), keep_rate=0.5, method=method)
        images = photographs(model)
        with torch.no_grad():
            exact = model(images)
            with torch.autocast("cpu", torch.bfloat16):
                assert (model(images).float() - exact).abs().max() < 0.2 * exact.abs().max()
            half = entropatch.prune_(create("deit").bfloat16(), keep_rate=0.5, method=method)
            assert half(images.bfloat16()).dtype == torch.bfloat16
