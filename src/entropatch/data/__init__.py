"""Image data sets by name, and the loaders that training and evaluation read them with.

    data = entropatch.data.open_data("imagenet100", "/data/imagenet")
    image, label = data.test[0]

What each name means, and the folder it needs, is written in the file of that data set.
"""

from entropatch.data.base import DataError, DataSet, LabelledImages
from entropatch.data.loaders import Batch, EvaluationImages, TrainingImages, evaluation_loader, training_loader
from entropatch.data.registry import DATASETS, open_data

__all__ = [
    "DATASETS",
    "Batch",
    "DataError",
    "DataSet",
    "EvaluationImages",
    "LabelledImages",
    "TrainingImages",
    "evaluation_loader",
    "open_data",
    "training_loader",
]
