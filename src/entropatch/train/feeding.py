"""The batches of a run, for training and for testing."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from entropatch.data.batches import TrainingBatches
from entropatch.data.loaders import (
    EvaluationImages,
    collate,
    data_config,
    evaluation_loader,
    evaluation_transform_of,
    training_loader,
    training_transform,
)
from entropatch.train.job import Job

FEW = 16


def loaders(job: Job, accelerator: Any) -> tuple[TrainingBatches, DataLoader[Any], DataLoader[Any]]:
    """The plan of this process's training batches, what loads them, and what loads its share of the test set."""
    recipe, runtime, data = job.recipe, job.runtime, job.data
    processes, process = accelerator.num_processes, accelerator.process_index
    pin = accelerator.device.type == "cuda"
    config = data_config(job.model, recipe.image_size)
    batches = TrainingBatches(len(data.train), recipe.batch_size, job.seed, process, processes, runtime.accumulate)
    transform = training_transform(
        config,
        scale=recipe.crop_scale,
        horizontal_flip=recipe.horizontal_flip,
        random_erasing=recipe.random_erasing,
        auto_augment=recipe.auto_augment,
        color_jitter=recipe.color_jitter,
    )
    training = training_loader(data.train, transform, batches, runtime.workers, pin)
    tested = evaluation_transform_of(job.model, recipe.image_size)
    size = runtime.evaluation_batch_size or 2 * recipe.batch_size // (processes * runtime.accumulate)
    testing = evaluation_loader(data.test, tested, size, process, processes, runtime.workers, pin)
    return batches, training, testing


def few_test_images(job: Job) -> Tensor:
    """Up to 16 images from all over the test set, (images, 3, H, W), to look at after each epoch; no damaged ones."""
    transform = evaluation_transform_of(job.model, job.recipe.image_size)
    images, count = EvaluationImages(job.data.test, transform), len(job.data.test)
    some = min(FEW, count)
    return collate([images[count * place // some] for place in range(some)]).images
