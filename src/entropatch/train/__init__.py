"""Fine-tuning: dense or pruned, by the paper's protocol; stopped at any moment and continued.

    model = ModelSpec("deit_small_patch16_224", weights="pretrained").build(num_classes=100, image_size=224, seed=0)
    outcome = finetune(model, data, "runs/renyi-0.7", prune=PruneConfig(keep_rate=0.7, criterion=Renyi(2.0)))

Needs the extra `train` (Accelerate).
"""

from entropatch.models.checkpoint import WeightsFileError, load_weights, read_about, save_weights
from entropatch.models.spec import ModelSpec
from entropatch.train.checkpoints import CheckpointError
from entropatch.train.divergence import DivergedError
from entropatch.train.fine_tuning import Outcome, finetune
from entropatch.train.recipe import RECIPES, Recipe, provenance
from entropatch.train.run_folder import RunMismatchError
from entropatch.train.runtime import Runtime
from entropatch.train.segmentation import SegmentationOutcome, load_segmenter, segment
from entropatch.train.segmentation_recipe import SegmentationRecipe
from entropatch.train.summary import summarise

__all__ = [
    "RECIPES",
    "CheckpointError",
    "DivergedError",
    "ModelSpec",
    "Outcome",
    "Recipe",
    "RunMismatchError",
    "Runtime",
    "SegmentationOutcome",
    "SegmentationRecipe",
    "WeightsFileError",
    "finetune",
    "load_segmenter",
    "load_weights",
    "provenance",
    "read_about",
    "save_weights",
    "segment",
    "summarise",
]
