"""What is compared of a model's answer: logits, what goes into its head, or its map; else one clear refusal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from small_models import Wrapped
from small_towers import torchvision_model
from small_transformers import CASES
from torch import Tensor, nn

import entropatch
from entropatch import PruneConfig
from entropatch.calibration import BudgetError, Goal, calibrated
from entropatch.calibration.answers import objective_of, output
from entropatch.calibration.judging import Judge
from entropatch.calibration.ledger import Ledger
from entropatch.criteria import Renyi
from entropatch.measure import count_flops

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("fvcore")

IMAGES = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
QUICK: dict[str, Any] = {"effort": 0.0, "most_blocks": 2, "batch_size": 3, "blocks": (1, 2)}
HELD = torch.randperm(9, generator=torch.Generator().manual_seed(0))[:3]


@pytest.fixture(autouse=True)
def few_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entropatch.calibration.calibrating.offered_criteria", lambda: [Renyi(2.0)])
    monkeypatch.setattr("entropatch.calibration.comparing.compared_methods", lambda: ["evit"])
    monkeypatch.setattr("entropatch.calibration.comparing.spread_within", lambda *_: {})


def vit(**fields: Any) -> Any:
    torch.manual_seed(1)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}
    model = timm.models.VisionTransformer(**{**size, **fields}).eval()
    for name, parameter in model.named_parameters():
        if "qkv" in name and parameter.ndim > 1:
            parameter.data.mul_(5)
    return model


def found_of(model: nn.Module, objective: str | None = None) -> Any:
    dense = count_flops(model, IMAGES[:1]).total / 1e9
    return calibrated(model, IMAGES, Goal(gflops=0.75 * dense), objective=objective, **QUICK)


CONFIG = PruneConfig((0.5, 0.6), blocks=(1, 2))


def judged(model: nn.Module, objective: str | None = None, config: PruneConfig = CONFIG) -> tuple[str, float]:
    """What is compared of a model that was pruned already, and the mean loss of the images held out."""
    entropatch.prune_(model, PruneConfig(1.0))
    with torch.inference_mode():
        found = objective_of(model, objective, IMAGES[:1])
    loss = Judge(model, [IMAGES[HELD]], found, Ledger(None, {})).loss(config, [0])
    entropatch.unprune_(model)
    return found, loss


def cosines(dense: Tensor, pruned: Tensor) -> float:
    """1 - cosine over the last dimension, mean over all others, in float64."""
    a, b = (x.detach().double().numpy() for x in (dense, pruned))
    return float(np.mean(1 - (a * b).sum(-1) / np.sqrt((a * a).sum(-1)) / np.sqrt((b * b).sum(-1))))


def divergences(dense: Tensor, pruned: Tensor) -> float:
    """KL divergence of classes in the second dimension, mean over all others, in float64."""
    p, q = (x.detach().double().movedim(1, -1).flatten(0, -2).numpy() for x in (dense, pruned))
    total = 0.0
    for a, b in zip(p, q, strict=True):
        a, b = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (a, b))
        total += sum(float(x) * math.log(x / y) for x, y in zip(a, b, strict=True))
    return total / len(p)


# --- vectors -------------------------------------------------------------------------------------------------------


def test_the_feature_is_what_goes_into_the_head() -> None:
    _, loss = judged(vit(), "features")
    dense, pruned = vit(), entropatch.prune_(vit(), CONFIG)
    expected, got = (
        model.forward_head(model.forward_features(IMAGES[HELD]), pre_logits=True) for model in (dense, pruned)
    )
    assert loss == pytest.approx(cosines(expected, got), rel=1e-3)
    assert loss != pytest.approx(cosines(dense(IMAGES[HELD]), pruned(IMAGES[HELD])), rel=1e-2)


@pytest.mark.parametrize("library", ["average", "distilled", "torchvision", "transformers", "teacher", "wrapped"])
def test_what_goes_into_the_head_of_other_models(library: str) -> None:
    images = IMAGES[:2]
    if library == "average":
        model: Any = vit(class_token=False, global_pool="avg")
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    elif library == "distilled":
        size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}
        model = timm.models.deit.VisionTransformerDistilled(**size).eval()
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    elif library == "torchvision":
        model = torchvision_model(image_size=32, patch_size=8)
        kept = model.heads
        model.heads = nn.Identity()
        expected = model(images)
        model.heads = kept
    else:
        transformers = pytest.importorskip("transformers")
        kind = "DeiTForImageClassificationWithTeacher" if library == "teacher" else "ViTForImageClassification"
        size = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
        config = "DeiTConfig" if library == "teacher" else "ViTConfig"
        model = getattr(transformers, kind)(getattr(transformers, config)(**size, image_size=32, patch_size=8)).eval()
        tokens = model.base_model(images).last_hidden_state
        expected = (tokens[:, 0] + tokens[:, 1]) / 2 if library == "teacher" else tokens[:, 0]
        if library == "wrapped":
            from entropatch.models.heads import ImageModel

            model = ImageModel(model, 2)
    entropatch.prune_(model, PruneConfig(1.0))
    with torch.inference_mode():
        assert torch.allclose(output(model, images, "features"), expected, atol=1e-5)


def test_logits_of_a_model_without_a_head_are_refused() -> None:
    model = vit(num_classes=0)
    with pytest.raises(ValueError, match=r"objective='logits' needs a head.*use objective='features'"):
        found_of(model, "logits")
    assert judged(model)[0] == "features"
    torchvision = torchvision_model(image_size=32, patch_size=8)
    torchvision.heads = nn.Identity()
    with pytest.raises(ValueError, match="needs a head"):
        judged(torchvision, "logits")
    assert not entropatch.surgery.is_pruned(model)


class Scaled(nn.Module):
    """A head that is no linear layer."""

    entropatch_tower = "vit"
    num_classes = 24

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit(num_classes=0)

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images).tanh()


def test_a_feature_that_is_not_found_is_refused() -> None:
    with pytest.raises(ValueError, match=r"what goes into the head of this Scaled is not known.*objective='logits'"):
        judged(Scaled(), "features")


def test_without_a_class_token_the_tokens_are_averaged() -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    model = transformers.IJepaModel(transformers.IJepaConfig(**size, image_size=32, patch_size=8)).eval()
    expected = model(IMAGES).last_hidden_state.mean(1)
    entropatch.prune_(model, PruneConfig(1.0))
    with torch.inference_mode():
        assert torch.allclose(output(model, IMAGES, "features"), expected, atol=1e-5)


# --- maps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [None, "dense"])
def test_a_segmenter_is_judged_by_its_map_of_classes(objective: str | None) -> None:
    torch.manual_seed(2)
    model = entropatch.Segmenter(vit(), 3).eval()
    found = found_of(model, objective)
    assert found.objective == "class map"
    assert not entropatch.surgery.is_pruned(model)
    dense = model.patch_logits(IMAGES[HELD])
    pruned = entropatch.prune_(model, found.config).patch_logits(IMAGES[HELD])  # type: ignore[operator]
    assert found.rows[0].loss == pytest.approx(divergences(dense, pruned), rel=1e-3)
    assert found.rows[0].loss > 1e-5


def backbone(kind: str, **fields: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(2)
    config = getattr(transformers, f"{kind}Config")(**size, out_indices=[2, 4], **fields)
    return getattr(transformers, f"{kind}Backbone")(config).eval()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("Dinov2", {}), ("Dinov2", {"reshape_hidden_states": False}), ("DINOv3ViT", {"intermediate_size": 48})],
    ids=str,
)
def test_a_backbone_is_judged_by_all_its_maps(kind: str, fields: dict[str, Any]) -> None:
    model = backbone(kind, **fields)
    objective, loss = judged(model)
    assert objective == "dense"
    with torch.no_grad():
        dense = [one.clone() for one in model(IMAGES[HELD]).feature_maps]
        pruned = list(entropatch.prune_(model, CONFIG)(IMAGES[HELD]).feature_maps)
    pairs = [
        [x.flatten(2).transpose(1, 2) if x.ndim == 4 else x for x in pair] for pair in zip(dense, pruned, strict=True)
    ]
    expected = np.mean([cosines(*pair) for pair in pairs])
    assert loss == pytest.approx(expected, rel=1e-3)


def test_a_backbone_is_calibrated_without_a_fused_token() -> None:
    model = backbone("Dinov2")
    found = found_of(model)
    assert list(found.left_out) == ["EViT"]  # whose fused token stands at no place
    assert found.rows[0].loss == pytest.approx(judged(model, config=found.config)[1], rel=1e-4)


class Extracting(nn.Module):
    entropatch_tower = "vit"

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit()

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.vit.forward_intermediates(images, indices=(1, 3), intermediates_only=True)


def test_features_that_are_extracted_are_maps() -> None:
    model = entropatch.prune_(Extracting().eval(), PruneConfig(1.0))
    with torch.no_grad():
        assert objective_of(model, None, IMAGES[:1]) == "dense"
        expected = torch.cat([one.flatten(2).transpose(1, 2) for one in model(IMAGES)], 1)
        assert torch.equal(output(model, IMAGES, "dense"), expected)


def test_a_model_of_depth_is_judged_by_its_map() -> None:
    model = CASES["DepthAnythingForDepthEstimation"].model()
    model.head.conv3.bias.data.fill_(1.0)
    objective, loss = judged(model)
    assert objective == "value map"
    with torch.no_grad():
        dense = model(IMAGES[HELD]).predicted_depth.double().numpy()
        pruned = entropatch.prune_(model, CONFIG)(IMAGES[HELD]).predicted_depth.double().numpy()  # type: ignore[operator]
    expected = np.mean([np.abs(b - a).sum() / np.abs(a).sum() for a, b in zip(dense, pruned, strict=True)])
    assert expected > 1e-6
    assert loss == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("objective", ["logits", "features"])
def test_of_a_map_nothing_else_is_compared(objective: str) -> None:
    with pytest.raises(ValueError, match="this Segmenter makes a map; use objective='dense', or leave it out"):
        found_of(entropatch.Segmenter(vit(), 3).eval(), objective)


def test_what_is_no_answer_is_refused_once_and_for_all() -> None:
    model = Wrapped(vit(), lambda out: {"boxes": out[None]}).eval()
    for objective in (None, "logits", "features"):
        with pytest.raises(ValueError, match=r"got dict of boxes; wrap it in a module that does"):
            judged(model, objective)
    with pytest.raises(ValueError, match="gives no patch features"):
        judged(model, "dense")


def test_a_model_that_asks_for_more_than_images_says_so() -> None:
    model = CASES["CLIPModel"].model()
    with pytest.raises(ValueError, match=r"must take images alone \(else calibrate the part that does\), but"):
        calibrated(model, IMAGES, Goal(gflops=1e-4), **QUICK)
    assert not entropatch.surgery.is_pruned(model)
    with pytest.raises(BudgetError, match="needs no pruning"):
        calibrated(model.vision_model, IMAGES, Goal(gflops=1.0), **QUICK)
