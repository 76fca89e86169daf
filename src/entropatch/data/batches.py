"""Which images make up which batch, on which process: a plan that depends on (seed, epoch, step) alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from entropatch.data.seeding import derived_seed


class TrainingBatches:
    """The batches of one process, as a PyTorch batch sampler that can start anywhere.

    Every epoch is one shuffle of the data set, cut into global batches; what does not fill a batch is left out. A
    global batch is split into processes × accumulate pieces. Piece m takes the images from m·h to (m+1)·h and those at
    the mirrored places from the end, h being half a piece. timm's Mixup and CutMix mix image i with image N-1-i of
    their batch, so each image finds its partner inside its own piece, and the pieces together are mixed exactly as the
    whole batch would be:

        global batch   0 1 2 3 4 5 6 7          partners (0,7) (1,6) (2,5) (3,4)
        two pieces     0 1 6 7 | 2 3 4 5

    Iterating yields one list of (epoch, image number) per piece of this process, from `start` on to the epoch's end.

    Args:
        images: size of the data set.
        batch_size: global batch, over all processes and accumulated passes.
        seed: of the shuffles.
        process, processes: this process's number, and how many there are.
        accumulate: passes that each process makes for one batch.

    Raises:
        ValueError: the batch cannot be split into pieces of an even size, or exceeds the data set.
    """

    images: int
    batch_size: int
    seed: int
    process: int
    processes: int
    accumulate: int
    epoch: int
    step: int

    def __init__(
        self, images: int, batch_size: int, seed: int, process: int = 0, processes: int = 1, accumulate: int = 1
    ):
        pieces = processes * accumulate
        if batch_size < 2 or batch_size % (2 * pieces):
            raise ValueError(
                f"batch_size must be a multiple of {2 * pieces}, an even number of images for each of {processes} "
                f"processes × {accumulate} accumulated passes, but got {batch_size}."
            )
        if batch_size > images:
            raise ValueError(f"batch_size must not exceed the {images} training images, but got {batch_size}.")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.process, self.processes, self.accumulate = process, processes, accumulate
        self.epoch, self.step = 0, 0

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return self.images // self.batch_size

    def start(self, epoch: int, step: int = 0) -> None:
        """Where the next iteration begins: global batch `step` of `epoch`."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffle = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(self.images, generator=shuffle).tolist()
        half = self.batch_size // (2 * self.processes * self.accumulate)
        for step in range(self.step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            for turn in range(self.accumulate):
                first = (turn * self.processes + self.process) * half
                last = self.batch_size - first
                piece = batch[first : first + half] + batch[last - half : last]
                yield [(self.epoch, image) for image in piece]
