"""timm's `VisionTransformer` and `Eva` families. Whatever the tables of `adapter` do not list is refused by name."""

from entropatch.surgery.adapters.timm.adapter import TimmAdapter

__all__ = ["TimmAdapter"]
