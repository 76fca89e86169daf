"""Pictures of what pruning does: entropy over the image, the patches that remain, accuracy against cost.

Everything is drawn from arrays and records, none of it touches a model, and none of matplotlib's global state is used,
so the functions run without a display and leave the caller's plots alone. Sizes and fonts are the same in all figures.
"""

from entropatch.figures.accuracy import accuracy_against
from entropatch.figures.blocks import entropy_in_blocks, stages_side_by_side
from entropatch.figures.charts import entropy_against_distance, entropy_histograms
from entropatch.figures.foreground import auroc_in_blocks, aurocs_of_models
from entropatch.figures.patches import entropy_and_stages, overview, remaining_title
from entropatch.figures.saving import save_figure
from entropatch.figures.style import ENTROPY_COLOURS
from entropatch.figures.tradeoff import trade_off

__all__ = [
    "ENTROPY_COLOURS",
    "accuracy_against",
    "auroc_in_blocks",
    "aurocs_of_models",
    "entropy_against_distance",
    "entropy_and_stages",
    "entropy_histograms",
    "entropy_in_blocks",
    "overview",
    "remaining_title",
    "save_figure",
    "stages_side_by_side",
    "trade_off",
]
