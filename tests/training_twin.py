"""A training run written out as a loop, for what `finetune` computes to be compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn
from training_case import SIZE, SPEC, data

import entropatch
from entropatch import PruneConfig
from entropatch.data.batches import TrainingBatches
from entropatch.data.loaders import TrainingImages, data_config, training_transform
from entropatch.data.seeding import derived_seed, seeded, set_seeds
from entropatch.train import Recipe


def slow_training(
    settings: Recipe,
    prune: PruneConfig,
    seed: int = 0,
    term: Callable[[nn.Module, Tensor], Tensor] | None = None,
    share: Callable[[str, int], float] = lambda name, epoch: 1.0,
) -> dict[str, Tensor]:
    """The whole run again: one process, plain tensors, AdamW and the cosine written out.

    `term` is added to the loss, from the model and a batch of its images; `share` is that of the learning rate which a
    parameter has in an epoch.
    """
    model, images = SPEC.build(10, SIZE), data().train
    transform = training_transform(data_config(model, SIZE), random_erasing=0.25)
    samples = TrainingImages(images, transform, seed)
    mixup = Mixup(0.8, 1.0, num_classes=10, label_smoothing=0.1)
    entropatch.prune_(model, prune)
    plan = TrainingBatches(len(images), settings.batch_size, seed)
    total, done = settings.epochs * plan.steps_per_epoch, 0
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    model.train()
    for epoch in range(settings.epochs):
        plan.start(epoch)
        for step, keys in enumerate(plan):
            x = torch.stack([samples[key][0] for key in keys])
            y = torch.tensor([samples[key][1] for key in keys])
            with seeded(derived_seed(seed, epoch, step, 0)):
                x, target = mixup(x, y)
            model.zero_grad()
            set_seeds(derived_seed(seed, epoch, step, 1))
            loss = -(target * F.log_softmax(model(x), dim=1)).sum(1).mean()
            (loss if term is None else loss + term(model, x)).backward()
            high, low = (
                r * settings.batch_size / 512 for r in (settings.learning_rate, settings.minimum_learning_rate)
            )
            rate = low + (high - low) * (1 + math.cos(math.pi * done / total)) / 2
            done += 1
            for name, p in model.named_parameters():
                first, second = moments[name]
                first.mul_(0.9).add_(0.1 * p.grad)
                second.mul_(0.999).add_(0.001 * p.grad**2)
                update = (first / (1 - 0.9**done)) / ((second / (1 - 0.999**done)).sqrt() + 1e-8)
                decayed = p.ndim > 1 and name not in ("pos_embed", "cls_token")
                p.data -= rate * share(name, epoch) * (update + (settings.weight_decay * p.data if decayed else 0))
    return model.state_dict()


def assert_same_training(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The weights of two runs under Adam, but for rounding."""
    for name, got in found.items():
        difference = got - expected[name]
        if name.endswith("qkv.bias"):
            # Attention does not depend on the keys' bias, so its gradient is rounding, which Adam blows up to a step.
            difference = torch.cat([difference.chunk(3)[0], difference.chunk(3)[2]])
        assert difference.abs().max() < 5e-5, name
