"""The larger models of transformers that hold a tower: where it is, and what they read of its tokens.

A model is listed once its code was read: whoever reads patches at their places on the grid ("grid") is given all of
them, pruned ones as they were last. Models that are not listed are refused by name.
"""

from __future__ import annotations

from typing import Any


def _language(name: str, reads: str, tower: str = "vision_tower") -> dict[str, tuple[str, str]]:
    return {f"{name}Model": (tower, reads), f"{name}ForConditionalGeneration": (f"model.{tower}", reads)}


# Class of the larger model -> the tower's name in it, and one of `entropatch.surgery.adapters.base.READS`.
HOLDERS: dict[str, tuple[str, str]] = {
    "ViTForImageClassification": ("vit", "pooled"),
    "ViTForMaskedImageModeling": ("vit", "grid"),
    "DeiTForImageClassification": ("deit", "pooled"),
    "DeiTForImageClassificationWithTeacher": ("deit", "pooled"),
    "DeiTForMaskedImageModeling": ("deit", "grid"),
    "ViTMSNForImageClassification": ("vit", "pooled"),
    "IJepaForImageClassification": ("ijepa", "tokens"),
    "PixioBackbone": ("pixio", "grid"),
    "Dinov2ForImageClassification": ("dinov2", "tokens"),
    "Dinov2WithRegistersForImageClassification": ("dinov2_with_registers", "tokens"),
    "CLIPModel": ("vision_model", "pooled"),
    "CLIPVisionModelWithProjection": ("vision_model", "pooled"),
    "CLIPForImageClassification": ("vision_model", "tokens"),
    "MetaClip2Model": ("vision_model", "pooled"),
    "MetaClip2VisionModelWithProjection": ("vision_model", "pooled"),
    "MetaClip2ForImageClassification": ("vision_model", "tokens"),
    "AltCLIPModel": ("vision_model", "pooled"),
    "ChineseCLIPModel": ("vision_model", "pooled"),
    "SiglipModel": ("vision_model", "tokens"),
    "SiglipForImageClassification": ("vision_model", "tokens"),
    "Siglip2Model": ("vision_model", "tokens"),
    "VideoMAEForVideoClassification": ("videomae", "tokens"),
    "TimmWrapperModel": ("timm_model", "tokens"),
    "TimmWrapperForImageClassification": ("timm_model", "pooled"),
    "BlipModel": ("vision_model", "tokens"),
    "BlipForConditionalGeneration": ("vision_model", "tokens"),
    "BlipForQuestionAnswering": ("vision_model", "tokens"),
    "BlipForImageTextRetrieval": ("vision_model", "tokens"),
    "VisionTextDualEncoderModel": ("vision_model", "tokens"),
    "VisionEncoderDecoderModel": ("encoder", "tokens"),
    # What follows reads maps of a backbone.
    "DPTForDepthEstimation": ("backbone", "grid"),
    "DepthAnythingForDepthEstimation": ("backbone", "grid"),
    "UperNetForSemanticSegmentation": ("backbone", "grid"),
    # Vision-language models that read any number of tokens: by cross-attention, or one token of text for each.
    "Blip2Model": ("vision_model", "tokens"),
    "Blip2ForConditionalGeneration": ("vision_model", "tokens"),
    "Blip2ForImageTextRetrieval": ("vision_model", "tokens"),
    "Blip2VisionModelWithProjection": ("vision_model", "tokens"),
    "InstructBlipModel": ("vision_model", "tokens"),
    "InstructBlipForConditionalGeneration": ("vision_model", "tokens"),
    **_language("Llava", "tokens"),
    **_language("PaliGemma", "tokens"),
    # Those that merge neighbours on the grid.
    **_language("VipLlava", "grid"),
    **_language("LlavaNext", "grid"),
    **_language("LlavaNextVideo", "grid"),
    **_language("LlavaOnevision", "grid"),
    **_language("Gemma3", "grid"),
    **_language("AyaVision", "grid"),
    **_language("InternVL", "grid"),
    **_language("Janus", "grid", "vision_model"),
    **_language("Idefics2", "grid", "vision_model"),
    **_language("Idefics3", "grid", "vision_model"),
    **_language("SmolVLM", "grid", "vision_model"),
}

# Class of a model that cannot be pruned though its tower could -> why, and what to do.
REFUSED: dict[str, str] = {
    "Siglip2ForImageClassification": "its head averages the tokens by the padding mask of all patches; prune its "
    "vision_model, and average the tokens that are left",
    "ViTMAEModel": "it drops patches at random in its embeddings, and its decoder needs the others at their places; "
    "load the checkpoint as ViTModel",
    "ViTMAEForPreTraining": "its decoder needs the patches that its embeddings left at their places",
    "VideoMAEForPreTraining": "its decoder needs the patches that were not masked at their places",
}


def why_not(model: Any) -> str | None:
    """Why a model of transformers cannot be pruned though it holds a tower; None if nothing is known against it."""
    name = type(model).__name__
    if name in REFUSED:
        return f"transformers' {name} cannot be pruned: {REFUSED[name]}."
    if name == "VideoMAEForVideoClassification" and model.fc_norm is None:
        return (
            f"transformers' {name} with use_mean_pooling=False cannot be pruned: its head reads the first patch as if "
            "it were a class token, which may be pruned; use a checkpoint with use_mean_pooling=True."
        )
    return None
