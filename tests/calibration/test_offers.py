"""What a calibration offers: no more than the model takes, in no other blocks than were asked for."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import entropatch
from entropatch.calibration import BudgetError, Calibration, Goal, calibrated
from entropatch.calibration.sensitivity import Sensitivities
from entropatch.calibration.writing import summary, write_calibration
from entropatch.criteria import ColumnNorm, Renyi, ValueNormAttention
from entropatch.measure import count_flops
from entropatch.reductions import BipartiteMerge

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("fvcore")

IMAGES = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FEW: dict[str, Any] = {"batch_size": 3, "effort": 0.0}


@pytest.fixture(autouse=True)
def few_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be refused, and one that never is."""
    offered = [Renyi(2.0), ValueNormAttention(), ColumnNorm()]
    monkeypatch.setattr("entropatch.calibration.calibrating.offered_criteria", lambda: offered)
    monkeypatch.setattr("entropatch.calibration.comparing.compared_methods", lambda: ["evit", "shannon"])


def rotary(**fields: Any) -> Any:
    """With a class token."""
    torch.manual_seed(1)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}
    return timm.models.eva.Eva(**{**size, "use_rot_pos_emb": True, **fields}).eval()


def vit(**fields: Any) -> Any:
    torch.manual_seed(1)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}
    return timm.models.VisionTransformer(**{**size, **fields}).eval()


def at(model: nn.Module, share: float, **settings: Any) -> Calibration:
    """Calibrated at a share of the dense model's multiply-adds."""
    dense = count_flops(model, IMAGES[:1]).total / 1e9
    return calibrated(model, IMAGES, Goal(gflops=share * dense), **{**FEW, **settings})


# --- what the model takes ------------------------------------------------------------------------------------------


def test_a_rotary_model_gets_no_fused_token_and_is_told_so(tmp_path: Any) -> None:
    found = at(rotary(), 0.7, blocks=(1, 2), most_blocks=2)
    assert not any("fuse" in single["choice"] for single in found.singles)
    assert {row.name for row in found.rows} >= {"random", "default", "evit-drop", "shannon"}
    assert "evit" not in {row.name for row in found.rows}
    assert list(found.left_out) == ["EViT"]
    said = "EViT is left out: a fused token stands at no place of the grid"
    assert said in summary(found)
    paths = write_calibration(found, tmp_path)
    assert any(said in path.read_text() for path in paths if path.suffix == ".json")
    entropatch.prune_(rotary(), found.config)(IMAGES)


def test_attention_with_a_norm_before_its_projection_is_not_asked_for_values() -> None:
    model = rotary(use_rot_pos_emb=False, scale_attn_inner=True)
    found = at(model, 0.7, blocks=(1, 2), most_blocks=2)
    choices = " ".join(single["choice"] for single in found.singles)
    assert "ColumnNorm" in choices or "column" in choices.lower()
    assert "alue" not in choices
    entropatch.prune_(model, found.config)(IMAGES)


def test_a_plain_model_is_offered_everything() -> None:
    found = at(vit(), 0.7, blocks=(1, 2), most_blocks=2)
    assert found.left_out == {}
    assert "left out" not in summary(found)
    assert "evit-drop" not in {row.name for row in found.rows}
    assert any("fused" in single["choice"] for single in found.singles)


# --- blocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "settings"),
    [
        (0.75, {"blocks": (2, 3)}),
        (0.7, {"most_blocks": 1}),
        (0.8, {"blocks": (2,), "most_blocks": 1}),
        (0.6, {"most_blocks": 2, "effort": 0.1}),
    ],
    ids=str,
)
def test_only_so_many_of_the_blocks_given_prune(share: float, settings: dict[str, Any]) -> None:
    config = at(vit(), share, **settings).config
    assert set(config.blocks or ()) <= set(settings.get("blocks", range(4)))
    assert 1 <= len(config.blocks or ()) <= settings.get("most_blocks", 4)


@pytest.mark.parametrize(("share", "blocks"), [(0.75, (2, 3)), (0.8, (2,))])
def test_a_budget_that_pairs_cannot_meet_is_met_otherwise(
    monkeypatch: pytest.MonkeyPatch, share: float, blocks: tuple[int, ...]
) -> None:
    """Also where ToMe's pairs, which leave half of the patches at least, are the best at every block."""
    ranked = Sensitivities.ranked
    monkeypatch.setattr(
        Sensitivities,
        "ranked",
        lambda self, block: sorted(ranked(self, block), key=lambda c: not isinstance(c.reduction, BipartiteMerge)),
    )
    config = at(vit(), share, blocks=blocks, most_blocks=len(blocks)).config
    assert set(config.blocks or ()) <= set(blocks)
    reductions = config.reduction if isinstance(config.reduction, tuple) else (config.reduction,)
    assert not all(isinstance(reduction, BipartiteMerge) for reduction in reductions)


def test_a_budget_that_only_other_blocks_meet_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"no pruning of 1 blocks at most of \[3\] does"):
        at(vit(), 0.5, blocks=(3,), most_blocks=1)


def test_a_loss_is_met_in_the_blocks_given() -> None:
    found = calibrated(vit(), IMAGES, Goal(drop=0.0002), blocks=(1, 2), most_blocks=2, **FEW)
    assert set(found.config.blocks or ()) <= {1, 2}


@pytest.mark.parametrize("blocks", [None, (2,)])
def test_one_block_at_most_is_refined_too(blocks: Any) -> None:
    found = at(vit(), 0.8, most_blocks=1, blocks=blocks, effort=0.3)
    assert len(found.config.blocks or ()) == 1
