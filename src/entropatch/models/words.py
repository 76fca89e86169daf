"""The words by which weights are asked for in place of a file."""

from __future__ import annotations

PRETRAINED = "pretrained"  # the library's own
RANDOM_WEIGHTS = "none"
BUNDLED = "bundled"  # those of `entropatch.models.encoder.load_bundled_encoder`
WORDS = (PRETRAINED, BUNDLED, RANDOM_WEIGHTS)
