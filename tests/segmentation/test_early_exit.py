"""DToP against a slow twin: who leaves, the final map, losses and gradients; and what must not change it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import reference_dtop as slow
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_models import GRID, awaken, create, photographs

import entropatch
from entropatch import AtExits, EarlyExit, PruneConfig, Segmenter, UnsupportedModelError, prune_, unprune_
from entropatch.criteria.early_exit import rank_in_class
from entropatch.models.checkpoint import load_weights, save_weights

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, THRESHOLD, CONTEXT = 4, 0.5, 2


def stock(name: str = "deit", head: str = "linear", **changes: Any) -> Segmenter:
    return awaken(Segmenter(create(name, depth=6, **changes), CLASSES, head)).double().eval()  # type: ignore[return-value]


def setting(threshold: float = THRESHOLD, context: int = CONTEXT, **fields: Any) -> PruneConfig:
    return PruneConfig(criterion=EarlyExit(threshold=threshold, context=context), schedule=AtExits(), **fields)


def exiting(name: str = "deit", head: str = "linear", config: PruneConfig | None = None) -> Any:
    """One whose auxiliary heads have weights that make some patches sure."""
    segmenter: Any = prune_(stock(name, head), config or setting())
    awaken(segmenter.backbone.entropatch)
    return segmenter


def twin(segmenter: Any, image: torch.Tensor, threshold: float = THRESHOLD, context: int = CONTEXT) -> Any:
    """The final map and those of the exits of one image, and who stays behind each, of a segmenter that is unpruned."""
    heads = {int(block): part for block, part in segmenter.kept_heads.items()}
    values, gone, maps, kept = slow.dtop_pass(segmenter.backbone, heads, image, threshold, context)
    head = segmenter.head
    final = slow.linear_map(head, values) if segmenter.head_kind == "linear" else slow.conv_map(head, values, GRID)
    return slow.as_map({**final, **gone}, GRID), [slow.as_map(one, GRID) for one in maps], kept


def unpruned(segmenter: Any) -> Any:
    """The same unpruned, its auxiliary heads beside it."""
    heads = dict(segmenter.backbone.entropatch.items())
    unprune_(segmenter).__dict__["kept_heads"] = heads
    return segmenter


@pytest.mark.parametrize(
    ("name", "head"),
    [("deit", "linear"), ("deit", "conv"), ("deit distilled", "linear"), ("average", "conv"), ("rope", "linear")],
)
def test_it_is_the_slow_twin(name: str, head: str) -> None:
    segmenter = exiting(name, head)
    images = photographs(segmenter.backbone, 3).double()
    with torch.no_grad(), entropatch.trace(segmenter) as trace:
        found, exits = segmenter.maps(images)
        large = segmenter(images)
    assert [stage.block for stage in trace.stages] == [3, 4]
    left = [len({*row.tolist()} - {-1}) for row in trace.kept[-1]]
    assert len({*left}) > 1  # images differ
    assert min(left) < GRID * GRID
    stays = [[[patch for patch in row if patch >= 0] for row in stage.tolist()] for stage in trace.kept]
    segmenter = unpruned(segmenter)
    for i, image in enumerate(images):
        expected, maps, kept = twin(segmenter, image[None])
        torch.testing.assert_close(found[i], expected[0].detach())
        for one, other in zip(exits, maps, strict=True):
            torch.testing.assert_close(one[i], other[0].detach())
        assert [stage[i] for stage in stays] == kept
        enlarged = F.interpolate(expected, size=images.shape[-2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(large[i], enlarged[0].detach())


@pytest.mark.parametrize("threshold", [THRESHOLD, float("inf")])
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_losses_and_gradients_are_those_of_the_slow_twin(head: str, threshold: float) -> None:
    segmenter = exiting("deit", head, setting(threshold)).train()
    images = photographs(segmenter.backbone).double()
    masks = torch.randint(0, CLASSES, (2, 7, 9), generator=torch.Generator().manual_seed(3))
    masks[0, :4] = masks[1, 2, 3] = 255
    terms = segmenter.losses(images, masks)
    assert list(terms) == ["map", "exit 1", "exit 2"]
    torch.stack(list(terms.values())).sum().backward()
    grads = {name: p.grad for name, p in segmenter.named_parameters()}
    segmenter = unpruned(segmenter.eval())
    for part in (segmenter, *segmenter.kept_heads.values()):
        part.zero_grad()
    sums, counted = [0.0, 0.0, 0.0], 0
    for image, mask in zip(images, masks, strict=True):
        final, exits, _ = twin(segmenter, image[None], threshold)
        for place, one in enumerate((final, *exits)):
            large = F.interpolate(one, size=mask.shape, mode="bilinear", align_corners=False)
            total, pixels = slow.pixel_loss(large, mask)
            sums[place] = sums[place] + total
        counted += pixels
    weights = (1.0, 0.4, 0.4)
    for term, total, weight in zip(terms.values(), sums, weights, strict=True):
        torch.testing.assert_close(term.detach(), weight * total.detach() / counted)
    sum(weight * total / counted for weight, total in zip(weights, sums, strict=True)).backward()
    for name, grad in grads.items():
        _, own, rest = name.partition("backbone.entropatch.")
        of = segmenter.kept_heads[rest[0]] if own else segmenter
        other = of.get_parameter(rest[2:] if own else name).grad
        assert (grad is None) == (other is None), name
        if grad is not None:
            torch.testing.assert_close(grad, other, msg=lambda text, name=name: name + text)
    assert all(grads[f"backbone.entropatch.{block}.1.weight"].abs().max() > 0 for block in (3, 4))


def test_an_image_depends_on_no_other() -> None:
    segmenter = exiting("deit", "conv")
    images = photographs(segmenter.backbone, 5).double()
    order = [3, 0, 4, 2, 1]
    with torch.no_grad():
        together = segmenter(images)
        alone = torch.cat([segmenter(image[None]) for image in images])
        turned = segmenter(images[order])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(turned, together[order])


@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("name", ["deit", "average", "rope"])
def test_above_one_none_leaves_and_the_model_is_the_stock_one_to_the_last_bit(name: str, head: str) -> None:
    segmenter = stock(name, head).float()
    images = photographs(segmenter.backbone)
    with torch.no_grad():
        dense = segmenter(images)
        for threshold in (1.001, float("inf")):
            prune_(segmenter, setting(threshold, context=0))
            awaken(segmenter.backbone.entropatch)  # type: ignore[arg-type]
            assert torch.equal(segmenter(images), dense)
            assert len(segmenter.maps(images)[1]) == 2
        prune_(segmenter, keep_rate=1.0, method="renyi-2")
        assert torch.equal(segmenter(images), dense)
        assert torch.equal(unprune_(segmenter)(images), dense)
        prune_(segmenter, setting(0.4))
        assert not torch.allclose(segmenter(images), dense)


def test_where_all_leave_at_once_the_map_is_that_of_the_first_exit() -> None:
    segmenter = exiting(config=setting(1e-6, context=0))
    images = photographs(segmenter.backbone).double()
    with torch.no_grad(), entropatch.trace(segmenter) as trace:
        final, exits = segmenter.maps(images)
    assert trace.counts == [GRID * GRID, 0, 0]
    assert torch.equal(final, exits[0])


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9]), st.integers(0, 3)), min_size=1, max_size=12))
def test_ranks_in_a_class_are_those_of_a_loop(patches: list[tuple[float, int]]) -> None:
    sure, classes = [p for p, _ in patches], [c for _, c in patches]
    expected = [
        sum(c == classes[i] and (sure[j] > sure[i] or (sure[j] == sure[i] and j < i)) for j, c in enumerate(classes))
        for i in range(len(patches))
    ]
    rows = torch.tensor([sure, sure[::-1]]), torch.tensor([classes, classes[::-1]])
    assert rank_in_class(*rows)[0].tolist() == expected


def test_gradients_reach_the_exits_at_inference_too() -> None:
    segmenter = exiting(config=setting(1e-6, context=0))
    images = photographs(segmenter.backbone).double().requires_grad_()
    segmenter(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


def test_the_auxiliary_heads_come_go_and_travel_with_the_method(tmp_path: Any) -> None:
    segmenter = exiting()
    images = photographs(segmenter.backbone).double()
    with torch.no_grad():
        before = segmenter(images)
        own = {name for name in segmenter.state_dict() if ".entropatch." in name}
        assert {name.split(".")[2] for name in own} == {"3", "4"}
        save_weights(segmenter, tmp_path / "w.safetensors", {})
        assert torch.equal(copy.deepcopy(segmenter)(images), before)
        trained = segmenter.backbone.entropatch["3"][1].weight
        unprune_(segmenter)
        assert not {name for name in segmenter.state_dict() if "entropatch" in name}
        prune_(segmenter, setting(float("inf")))
        assert segmenter.backbone.entropatch["3"][1].weight is trained
        prune_(segmenter, setting())  # another threshold, the same weights
        assert torch.equal(segmenter(images), before)
        other = prune_(Segmenter(create("deit", depth=6), CLASSES).double().eval(), setting())
        other.load_state_dict(load_weights(tmp_path / "w.safetensors"))
        assert torch.equal(other(images), before)
    assert PruneConfig.from_json(setting(float("inf")).to_json()) == setting(float("inf"))


def test_by_its_name_and_only_where_maps_are_made() -> None:
    segmenter = stock()
    prune_(segmenter, method="dtop")
    config = entropatch.pruning_config(segmenter)
    assert config.label == "DToP"
    assert (config.criterion, config.schedule) == (EarlyExit(), AtExits())
    assert AtExits().blocks(12) == (6, 8)  # behind 5 and 7
    assert segmenter.backbone.entropatch["3"][1].out_features == CLASSES  # type: ignore[index,union-attr]
    for model in (create("deit"), unprune_(segmenter).backbone):
        with pytest.raises(UnsupportedModelError, match=r"makes none; build an entropatch\.Segmenter"):
            prune_(model, method="dtop")  # type: ignore[arg-type]
    prune_(segmenter, method="dtop")
    with entropatch.method_loss(segmenter.train()) as own:
        segmenter(photographs(segmenter.backbone).double())
        with pytest.raises(ValueError, match=r"Segmenter\.losses"):
            own.value()


@pytest.mark.parametrize(
    "fields", [{"threshold": 0.0}, {"threshold": float("nan")}, {"context": -1}, {"classes": 1}, {"aux_weight": -1.0}]
)
def test_what_is_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        EarlyExit(**fields)
