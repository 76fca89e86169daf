"""Hugging Face transformers: the vision towers of `families`, alone or inside the larger models of `holders`."""

from entropatch.surgery.adapters.transformers.adapter import TransformersAdapter

__all__ = ["TransformersAdapter"]
