"""Pictures of what pruning does: entropy heat maps over the image, and the patches that remain.

Everything is drawn from arrays, none of it touches a model, and none of matplotlib's global state is used, so the
functions run without a display and leave the caller's plots alone. Sizes and fonts are the same in all figures.
"""

from entropatch.figures.patches import entropy_and_stages, overview
from entropatch.figures.saving import save_figure
from entropatch.figures.style import ENTROPY_COLOURS

__all__ = ["ENTROPY_COLOURS", "entropy_and_stages", "overview", "save_figure"]
