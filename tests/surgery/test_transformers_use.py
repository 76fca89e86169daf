"""What is done with transformers' models, pruned: trained, saved, adapted, compiled, observed; and what is refused."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import transformers as hf
from small_transformers import CASES, lively
from torch import Tensor, nn

import entropatch
from entropatch.look.observation import observe
from entropatch.measure import count_flops

pytestmark = pytest.mark.usefixtures("one_thread")

SOME = ["ViTForImageClassification", "DINOv3ViTModel, gated", "CLIPVisionModel", "Dinov2Backbone", "VideoMAEModel"]
VIT = "ViTForImageClassification"


def pruned(name: str, **setting: Any) -> tuple[Any, dict[str, Tensor]]:
    model = CASES[name].model()
    return entropatch.prune_(model, **(setting or {"keep_rate": 0.5})), CASES[name].batch(model)


def first(output: Any) -> Tensor:
    return output[0][0] if isinstance(output[0], tuple) else output[0]


def test_the_tower_that_was_pruned_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "entropatch"):
        model, _ = pruned("CLIPModel")
    assert "CLIPModel: .vision_model is pruned (CLIPVisionModel)" in caplog.text
    assert entropatch.tower_name(model) == "vision_model"
    assert entropatch.tower_name(model.vision_model) == ""
    assert entropatch.pruning_config(model) == entropatch.pruning_config(model.vision_model)
    entropatch.prune_(model, keep_rate=0.9)
    assert entropatch.pruning_config(model.vision_model).keep_rate == 0.9


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_gradient_checkpointing_gives_the_same_gradients(name: str, reentrant: bool) -> None:
    model, inputs = pruned(name)
    model.double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "DropPath" in type(module).__name__:
            module.drop_prob = 0.0
    for augmentation in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
        setattr(model.config, augmentation, None)
    inputs = {key: x.double() for key, x in inputs.items()}
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        output = first(model(**inputs))
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][key], gradients[1][key], rtol=1e-8, atol=1e-10) for key in gradients[0])


def test_layers_checkpointed_from_outside_too() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    gradients = []
    for name in (VIT, "Dinov2Backbone"):
        for wrapped in (False, True):
            model, inputs = pruned(name)
            layers = model.vit.layers if name == VIT else model.encoder.layer
            for i, layer in enumerate(layers):
                layers[i] = checkpoint_wrapper(layer) if wrapped else layer
            first(model(**inputs)).square().sum().backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, wrapped in (gradients[:2], gradients[2:]):
        assert len(plain) == len(wrapped)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain, wrapped, strict=True))


@pytest.mark.parametrize("name", [VIT, "Dinov2Backbone", "CLIPModel", "DeiTForMaskedImageModeling"])
def test_counts_per_image(name: str) -> None:
    model, inputs = pruned(name, schedule=entropatch.CumulativeImportance(share=0.6), blocks=(0, 2))
    with torch.no_grad():
        both = model(**inputs, output_hidden_states=True)
        for i in range(2):
            alone = model(**{**inputs, "pixel_values": inputs["pixel_values"][i : i + 1]})
            whole, one = (x["logits_per_image"] if name == "CLIPModel" else first(x) for x in (both, alone))
            assert torch.allclose(whole[i], one[0], atol=1e-5)
    with pytest.raises(entropatch.UnsupportedModelError, match="output_attentions gives one matrix"):
        model(**inputs, output_attentions=True)


@pytest.mark.parametrize("name", ["Dinov2ForImageClassification", "SiglipVisionModel", "TimmWrapperModel"])
def test_counts_per_image_are_refused_where_tokens_are_averaged(name: str) -> None:
    model = wrapper(name) if name.startswith("Timm") else CASES[name].model()
    with pytest.raises(entropatch.UnsupportedModelError, match="reads the tokens of a batch as one tensor"):
        entropatch.prune_(model, schedule=entropatch.CumulativeImportance(share=0.6))


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_and_training(name: str) -> None:
    model, inputs = pruned(name)
    model.bfloat16().train()
    output = model(**{key: x.bfloat16() if x.is_floating_point() else x for key, x in inputs.items()})
    assert first(output).isfinite().all()


def test_copies_pickles_tuples_and_sizes() -> None:
    model, inputs = pruned(VIT)
    with torch.no_grad():
        expected = model(**inputs).logits
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(**inputs).logits, expected)
            assert entropatch.tower_name(copied) == "vit"
        assert torch.equal(model(**inputs, return_dict=False)[0], expected)
        assert isinstance(model.vit(**inputs, return_dict=False), tuple)
    square = entropatch.prune_(lively(hf.ViTModel(hf.ViTConfig(**SMALL))), keep_rate=0.5)
    with torch.no_grad(), entropatch.trace(square) as trace:
        output = square(torch.randn(1, 3, 48, 40), interpolate_pos_encoding=True)
    assert trace.grid == (6, 5)
    assert entropatch.restore(output.last_hidden_state, trace).shape == (1, 6, 5, 24)


SMALL: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def test_restore_shows_what_a_dense_reader_is_given() -> None:
    model, inputs = pruned("VideoMAEModel")
    with torch.no_grad(), entropatch.trace(model) as trace:
        tokens = model(**inputs).last_hidden_state
    assert entropatch.restore(tokens, trace).shape == (2, 2, 4, 3, 24)
    model, inputs = pruned("ViTModel")
    with torch.no_grad(), entropatch.trace(model) as trace:
        tokens = model(**inputs).last_hidden_state
        dense = CASES["ViTForMaskedImageModeling"].model()
    assert entropatch.restore(tokens, trace).shape == (2, 4, 3, 24)
    assert dense.config.hidden_size == 24


def test_watch_flops_and_look_ask_the_adapter() -> None:
    model = CASES[VIT].model()
    inputs = CASES[VIT].batch(model)
    seen: dict[int, tuple[int, ...]] = {}
    with torch.no_grad():
        stock = model(**inputs).logits
        with entropatch.watch(model, None, lambda a, tokens: seen.update({a.block: tuple(a.entropy(2.0).shape)})):
            assert torch.equal(model(**inputs).logits, stock)
    assert seen == dict.fromkeys(range(4), (2, 3, 12))
    assert type(model.vit) is hf.ViTModel
    assert observe(model, inputs["pixel_values"], lambda a, grid: grid).blocks == dict.fromkeys(range(4), (4, 3))
    dense = count_flops(model, inputs["pixel_values"])
    entropatch.prune_(model, keep_rate=0.5)
    fewer = count_flops(model, inputs["pixel_values"])
    assert fewer.total < dense.total
    assert not fewer.uncounted
    head = 24 * model.config.num_labels
    tower = count_flops(model.vit, inputs["pixel_values"])
    assert fewer.by_operator["linear"] - tower.by_operator["linear"] in (head, head - 24 * 24)


@pytest.mark.parametrize("setting", [{"keep_rate": 0.5, "order": 1.5}, {"method": "dynamicvit"}], ids=str)
def test_saved_and_loaded_with_its_setting_as_its_documentation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    model, inputs = pruned(VIT, **setting)
    learned = {name: parameter for name, parameter in model.named_parameters() if ".entropatch." in name}
    for parameter in learned.values():
        nn.init.normal_(parameter, std=0.3)
    monkeypatch.chdir(tmp_path)
    documented = inspect.getdoc(entropatch.pruning_config) or ""
    lines = [line.strip() for line in documented.splitlines() if line.startswith("    ")]
    assert len(lines) == 5
    names = {"model": model, "entropatch": entropatch, "transformers": hf, "safetensors": safetensors}
    exec("\n".join(lines if learned else lines[:4]), names)
    assert "entropatch" not in (tmp_path / "pruned/config.json").read_text()
    stock = hf.ViTForImageClassification.from_pretrained(tmp_path / "pruned")
    assert type(stock.vit) is hf.ViTModel
    loaded: Any = names["model"]
    assert loaded is not model
    assert entropatch.pruning_config(loaded) == entropatch.pruning_config(model)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["ViTModel", "DINOv3ViTBackbone", "SiglipVisionModel"])
def test_a_tower_made_anew_from_a_pruned_one_is_stock(tmp_path: Path, name: str) -> None:
    model, inputs = pruned(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    stock = CASES[name].model()
    assert type(loaded) is type(stock) is type(type(model)(model.config))
    with torch.no_grad():
        assert torch.equal(first(loaded(**inputs)), first(stock(**inputs)))
        copied = copy.deepcopy(model)
        assert torch.equal(first(copied(**inputs)), first(model(**inputs)))


@pytest.mark.parametrize("prune_first", [False, True])
def test_peft(prune_first: bool) -> None:
    peft = pytest.importorskip("peft")
    model = CASES[VIT].model()
    inputs = CASES[VIT].batch(model)
    setting = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, modules_to_save=["classifier"])
    if prune_first:
        entropatch.prune_(model, keep_rate=0.5)
    adapted = peft.get_peft_model(model, setting)
    if not prune_first:
        entropatch.prune_(adapted, keep_rate=0.5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    with entropatch.trace(adapted) as trace:
        adapted(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    assert trace.counts == [12, 6, 3, 2]
    trained = [name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any("lora_A" in name for name in trained)
    with torch.no_grad():
        expected = adapted.eval()(**inputs).logits
        merged = adapted.merge_and_unload()
        assert torch.allclose(merged(**inputs).logits, expected, atol=1e-4)
    entropatch.unprune_(merged)


@pytest.mark.usefixtures("accelerate_forgets")
def test_trainer_and_pipeline(tmp_path: Path) -> None:
    from PIL import Image

    model, _ = pruned(VIT)
    images = torch.randn(4, 3, 32, 24)
    data = [{"pixel_values": image, "labels": i % 2} for i, image in enumerate(images)]
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        gradient_checkpointing=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    before = model.vit.layers[3].mlp.fc1.weight.clone()
    result = hf.Trainer(model=model, args=arguments, train_dataset=data).train()  # pyright: ignore[reportArgumentType]
    assert result.global_step == 2
    assert not torch.equal(before, model.vit.layers[3].mlp.fc1.weight)
    processor = hf.ViTImageProcessor(size={"height": 32, "width": 24})
    classify: Any = hf.pipeline("image-classification", model=model, image_processor=processor)
    with entropatch.trace(model) as trace:
        answer = classify(Image.new("RGB", (40, 40), (90, 120, 30)))
    assert len(answer) == 2
    assert trace.counts == [12, 6, 3, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", [VIT, "DINOv3ViTModel", "Dinov2Backbone", "CLIPModel", "SiglipVisionModel"])
def test_compiled_whole(name: str) -> None:
    model, inputs = pruned(name)
    with torch.no_grad():
        eager = first(model(**inputs))
        compiled = first(torch.compile(model, fullgraph=True)(**inputs))
    assert torch.allclose(eager, compiled, atol=1e-4)


def wrapper(name: str) -> Any:
    config = hf.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", num_labels=3,
        model_args={"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 3},
    )  # fmt: skip
    return getattr(hf, name)(config).eval()


@pytest.mark.parametrize("name", ["TimmWrapperModel", "TimmWrapperForImageClassification"])
def test_timm_models_in_their_wrapper(name: str) -> None:
    model = wrapper(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        stock = first(model(images))
        entropatch.prune_(model, keep_rate=1.0)
        assert torch.equal(first(model(images)), stock)
        entropatch.prune_(model, keep_rate=0.5)
        with entropatch.trace(model) as trace:
            model(images)
    assert entropatch.tower_name(model) == "timm_model"
    assert isinstance(model.timm_model, timm.models.VisionTransformer)
    assert trace.counts == [16, 8, 4, 2]


DPT = hf.DPTConfig(
    **SMALL, is_hybrid=False, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
    reassemble_factors=[4, 2, 1, 0.5],
)  # fmt: skip
REFUSED: dict[str, tuple[Any, str]] = {
    "ViTMAEForPreTraining": (lambda: hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**SMALL)), "its decoder needs"),
    "ViTMAEModel": (lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**SMALL)), "drops patches at random"),
    "VideoMAEForPreTraining": (
        lambda: hf.VideoMAEForPreTraining(hf.VideoMAEConfig(**SMALL, decoder_num_hidden_layers=1)), "its decoder needs"
    ),
    "VideoMAEForVideoClassification": (
        lambda: hf.VideoMAEForVideoClassification(hf.VideoMAEConfig(**SMALL, use_mean_pooling=False)),
        "reads the first patch",
    ),
    "IJepaModel": (lambda: hf.IJepaModel(hf.IJepaConfig(**SMALL), add_pooling_layer=True), "reads the first patch"),
    "Siglip2ForImageClassification": (
        lambda: hf.Siglip2ForImageClassification(
            hf.Siglip2Config(vision_config={**SMALL, "num_patches": 16}, text_config=SMALL)
        ),
        "averages the tokens by the padding mask",
    ),
    "BeitModel": (lambda: hf.BeitModel(hf.BeitConfig(**SMALL)), "BeitModel is not supported"),
    "SwinModel": (lambda: hf.SwinModel(hf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1],
                                                     num_heads=[1, 1], window_size=2)), "SwinModel is not supported"),
    "DPTForDepthEstimation": (lambda: hf.DPTForDepthEstimation(DPT), "DPTForDepthEstimation is not supported"),
    "DPTForSemanticSegmentation": (lambda: hf.DPTForSemanticSegmentation(DPT), "Segmentation is not supported"),
    "MLCDVisionModel": (lambda: hf.MLCDVisionModel(hf.MLCDVisionConfig(**SMALL)), "MLCDVisionModel is not supported"),
    "VitMatte": (
        lambda: hf.MaskFormerForInstanceSegmentation(
            hf.MaskFormerConfig(backbone_config=hf.SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
                                                              out_features=["stage1", "stage2", "stage3", "stage4"]))
        ),
        "MaskFormerForInstanceSegmentation is not supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    make, why = REFUSED[name]
    model = make()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(entropatch.UnsupportedModelError, match=why) as refusal:
        entropatch.prune_(model)
    assert name == "VitMatte" or name in str(refusal.value)
    assert [type(module) for module in model.modules()] == classes


def test_a_holder_that_was_not_read_is_refused_with_its_tower() -> None:
    class Unread(hf.ViTForImageClassification):
        pass

    Unread.__module__ = "transformers.models.vit.modeling_vit"
    with pytest.raises(entropatch.UnsupportedModelError, match=r"Unread does with the tokens of its tower \.vit"):
        entropatch.prune_(Unread(hf.ViTConfig(**SMALL)))


def test_masks_and_padding() -> None:
    model, inputs = pruned(VIT)
    mask = torch.ones(2, 13)
    mask[:, -2:] = 0
    with pytest.raises(ValueError, match="takes no attention_mask"):
        model(**inputs, attention_mask=mask)
    for setting in ({"method": "tome", "r": 2}, {"r": 2}, {"reduction": "merge"}):
        with pytest.raises(entropatch.UnsupportedModelError, match="fills up its images with padding"):
            pruned("Siglip2VisionModel", **setting)


def test_a_mask_of_all_patches_that_nobody_gave_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # As under torch.export, which is handed one since nobody can look into it then.
    model, inputs = pruned("ViTModel")
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        monkeypatch.setattr("transformers.masking_utils._ignore_bidirectional_mask_sdpa", lambda *a, **k: False)
        assert torch.equal(model(**inputs).last_hidden_state, expected)
        mask = torch.ones(2, 13)
        for given in ((inputs["pixel_values"], None, None, mask), (inputs["pixel_values"],)):
            with pytest.raises(ValueError, match="takes no attention_mask"):
                model(*given, **({} if len(given) > 1 else {"attention_mask": mask}))


def test_changed_layers_are_refused() -> None:
    model = CASES[VIT].model()
    model.vit.layers[1].attention.scaling = 3.0
    model.vit.layers[1].attention.forward = lambda x, *a, **k: (x, None)
    with pytest.raises(entropatch.UnsupportedModelError, match=r"attention of block 1 .* had its forward replaced"):
        entropatch.prune_(model)
    model = CASES[VIT].model()
    model.vit.layers[2].mlp = nn.Sequential(Mixing())
    with pytest.raises(entropatch.UnsupportedModelError, match=r"block 2 .*ViTLayer.* does not behave"):
        entropatch.prune_(model, blocks=(1,))


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


def test_older_releases_are_refused_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.1")
    with pytest.raises(entropatch.UnsupportedModelError, match=r"transformers must be 5\.\d+ or newer.*4\.57\.1"):
        entropatch.prune_(CASES[VIT].model())


def test_transformers_is_imported_for_its_models_only() -> None:
    code = (
        "import sys, timm, torch, entropatch\n"
        "model = timm.create_model('vit_tiny_patch16_224', depth=4, embed_dim=24, num_heads=3)\n"
        "entropatch.prune_(model)\n"
        "try: entropatch.prune_(torch.nn.Linear(2, 2))\n"
        "except entropatch.UnsupportedModelError as error: assert 'transformers' in str(error)\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_patches_that_wait_are_back_in_the_map() -> None:
    """A backbone's map under Evo-ViT has every patch, although half of them ran the last blocks."""
    case = CASES["Dinov2Backbone"]
    model = case.model()
    batch = case.batch(model)
    with torch.no_grad():
        stock = model(**batch).feature_maps[-1]
        setting = {"criterion": entropatch.RunningClassAttention(begin=1), "reduction": "slow-fast", "keep_rate": 0.5}
        entropatch.prune_(model, **setting, blocks=(1, 3))
        with entropatch.trace(model) as trace:
            found = model(**batch).feature_maps[-1]
    assert found.shape == stock.shape
    assert found.isfinite().all()
    n = stock.shape[2] * stock.shape[3]
    assert trace.counts == [n] * 3
    assert [kept.shape[1] for kept in trace.kept] == [n // 2] * 2
    assert not torch.allclose(found, stock, atol=1e-3)
