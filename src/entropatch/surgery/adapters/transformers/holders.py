"""The larger models of transformers that hold a tower: where it is, and what they read of its tokens.

A model is listed once its code was read: whoever reads patches at their places on the grid ("grid") is given all of
them, pruned ones as they were last. Models that are not listed are refused by name.
"""

from __future__ import annotations

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
    "TimmWrapperModel": ("timm_model", "tokens"),
    "TimmWrapperForImageClassification": ("timm_model", "pooled"),
}
