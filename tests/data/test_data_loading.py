"""Batches and loaders: what is drawn, in which order, and what damaged images do."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.mixup import Mixup

from entropatch.data import DataError, LabelledImages, evaluation_loader, open_data, training_loader
from entropatch.data.batches import TrainingBatches
from entropatch.data.images import ImageError
from entropatch.data.loaders import evaluation_transform, training_transform
from entropatch.data.seeding import derived_seed, seeded, set_seeds

CONFIG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


class Noise(LabelledImages):
    """`size` random pictures; those in `damaged` cannot be read."""

    def __init__(self, size: int = 40, damaged=(), error: Exception | None = None):
        self.pixels = np.random.default_rng(0).integers(0, 256, (size, 20, 20, 3), dtype=np.uint8)
        self.damaged, self.error = damaged, error

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        if index in self.damaged:
            raise ImageError(f"image {index} is torn") from self.error
        return Image.fromarray(self.pixels[index])

    def label(self, index):
        return index % 10


def flat(lists: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def everything(batches: TrainingBatches, epoch: int = 0, step: int = 0) -> list[list[int]]:
    batches.start(epoch, step)
    found = list(batches)
    assert len(found) == len(batches)
    assert all(number == epoch for piece in found for number, _ in piece)
    return [[image for _, image in piece] for piece in found]


# ------------------------------------------------------------------------------------------------------- batches


def test_an_epoch_shows_each_image_at_most_once_and_leaves_out_less_than_a_batch():
    batches = TrainingBatches(43, 8, seed=1)
    shown = flat(everything(batches))
    assert len(shown) == len(set(shown)) == 40
    assert batches.steps_per_epoch == 5
    assert shown != sorted(shown)
    assert shown != flat(everything(batches, epoch=1))
    assert shown != flat(everything(TrainingBatches(43, 8, seed=2)))


def test_starting_in_the_middle_continues_the_same_plan():
    whole = everything(TrainingBatches(100, 8, seed=3, accumulate=2), epoch=4)
    rest = everything(TrainingBatches(100, 8, seed=3, accumulate=2), epoch=4, step=7)
    assert rest == whole[14:]
    assert len(rest) == 10


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1), (3, 4)])
def test_the_pieces_together_are_the_whole_batch_and_hold_mixups_partners(processes, accumulate):
    size = 48
    whole = everything(TrainingBatches(100, size, seed=0))
    split = [everything(TrainingBatches(100, size, 0, p, processes, accumulate)) for p in range(processes)]
    for step, batch in enumerate(whole):
        partner = dict(zip(batch, batch[::-1], strict=True))
        pieces = [split[p][step * accumulate + turn] for p in range(processes) for turn in range(accumulate)]
        assert sorted(flat(pieces)) == sorted(batch)
        for piece in pieces:
            assert len(piece) == size // (processes * accumulate)
            assert [partner[image] for image in piece] == piece[::-1]


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_the_pieces_is_mixing_the_batch(name):
    mixup = Mixup(mixup_alpha=0.8 * (name == "mixup"), cutmix_alpha=float(name == "cutmix"), num_classes=10)
    x, y = torch.rand(24, 3, 8, 8), torch.randint(10, (24,))

    def mixed(batch):
        with seeded(5):
            return mixup(x[batch].clone(), y[batch])

    (whole,) = everything(TrainingBatches(24, 24, seed=0))
    images, targets = mixed(whole)
    assert not torch.equal(images, x[whole])
    for process in range(3):
        (piece,) = everything(TrainingBatches(24, 24, 0, process, 3))
        places = [whole.index(image) for image in piece]
        some, labels = mixed(piece)
        assert torch.equal(some, images[places])
        assert torch.equal(labels, targets[places])


@pytest.mark.parametrize(
    ("images", "size", "processes", "message"),
    [
        (100, 10, 2, "multiple of 4"),
        (100, 7, 1, "multiple of 2"),
        (100, 0, 1, "but got 0"),
        (10, 12, 1, "exceed the 10"),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused(images, size, processes, message):
    with pytest.raises(ValueError, match=message):
        TrainingBatches(images, size, 0, 0, processes)


# ------------------------------------------------------------------------------------------------------- seeding


def test_seeded_draws_the_same_and_leaves_the_outer_numbers_alone():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    set_seeds(1)
    outer = [draw(), draw()]
    set_seeds(1)
    assert draw() == outer[0]
    with seeded(7):
        inner = draw()
    assert draw() == outer[1]
    with seeded(7):
        assert draw() == inner
    assert inner not in outer


def test_derived_seeds_differ_by_every_number_and_their_order():
    seeds = {derived_seed(a, b, c) for a in range(6) for b in range(6) for c in range(6)}
    assert len(seeds) == 216
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


# ------------------------------------------------------------------------------------------------------- loaders


def loaded(images, *, seed=0, epoch=0, workers=0, step=0, **options):
    batches = TrainingBatches(len(images), 8, seed)
    transform = training_transform(CONFIG, random_erasing=0.5, auto_augment="rand-m9-mstd0.5", **options)
    loader = training_loader(images, transform, batches, workers)
    batches.start(epoch, step)
    return list(loader)


def test_augmentation_depends_on_seed_epoch_and_image_alone():
    images = Noise()
    first = loaded(images)
    torch.rand(3), np.random.rand(3), random.random()
    again = loaded(images, workers=2)
    assert len(first) == 5
    assert first[0].images.shape == (8, 3, 16, 16)
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(first, again, strict=True)
    )
    middle = loaded(images, step=3)
    assert torch.equal(middle[0].images, first[3].images)
    assert len(middle) == 2

    def by_pixels(batches):
        return {image.numpy().tobytes() for batch in batches for image in batch.images}

    assert by_pixels(first).isdisjoint(by_pixels(loaded(images, epoch=1)))
    assert by_pixels(first).isdisjoint(by_pixels(loaded(images, seed=1)))


def test_the_loaders_leave_the_global_random_numbers_alone():
    set_seeds(3)
    expected = torch.rand(2), np.random.rand(), random.random()
    set_seeds(3)
    loaded(Noise())
    list(evaluation_loader(Noise(), evaluation_transform(CONFIG), 8))
    assert torch.equal(torch.rand(2), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_training_image_is_replaced_by_the_next_and_named(workers):
    batches = loaded(Noise(damaged=(5, 6)), workers=workers)
    sound = loaded(Noise())
    named = sorted(name for batch in batches for name in batch.damaged)
    assert named == ["image 5", "image 6", "image 6"]  # 6 once for itself, once in place of 5
    assert all(len(batch.labels) == 8 for batch in batches)
    plan = TrainingBatches(40, 8, 0)
    order = flat(everything(plan))
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert labels == [7 if image in (5, 6) else image % 10 for image in order]
    same = [
        torch.equal(a, b) for x, y in zip(batches, sound, strict=True) for a, b in zip(x.images, y.images, strict=True)
    ]
    assert [image for image, equal in zip(order, same, strict=True) if not equal] == [i for i in order if i in (5, 6)]


def test_a_damaged_test_image_is_left_out_and_named():
    batches = list(evaluation_loader(Noise(20, damaged=(0, 1, 2, 3, 9)), evaluation_transform(CONFIG), 4))
    assert [len(batch.labels) for batch in batches] == [0, 4, 3, 4, 4]
    assert torch.cat([batch.labels for batch in batches]).tolist() == [4, 5, 6, 7, 8, *range(10)]
    assert sum((batch.damaged for batch in batches), ()) == tuple(f"image {i}" for i in (0, 1, 2, 3, 9))


def test_many_damaged_images_in_a_row_are_an_error():
    with pytest.raises(DataError, match="10 images in a row are damaged"):
        loaded(Noise(damaged=range(40)))


def test_a_failing_disk_is_an_error_not_a_damaged_image():
    failing = Noise(damaged=(3,), error=OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output error"):
        list(evaluation_loader(failing, evaluation_transform(CONFIG), 4))
    torn = Noise(damaged=(3,), error=OSError("image file is truncated"))
    assert sum(len(b.damaged) for b in evaluation_loader(torn, evaluation_transform(CONFIG), 4)) == 1


def test_a_file_cut_short_is_a_damaged_image(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Noise().image(i).resize((64, 64)).save(tmp_path / split / name / f"{i}.jpg")
    torn = tmp_path / "val/b/1.jpg"
    torn.write_bytes(torn.read_bytes()[:600])
    (tmp_path / "val/a/2.jpg").write_bytes(b"<html>404 not found</html>")
    batches = list(evaluation_loader(open_data("folder", tmp_path).test, evaluation_transform(CONFIG), 6))
    assert batches[0].damaged == (str(tmp_path / "val/a/2.jpg"), str(torn))
    assert batches[0].labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_test_image_is_seen_once_whatever_the_number_of_processes(processes):
    found = []
    for process in range(processes):
        for batch in evaluation_loader(Noise(20), evaluation_transform(CONFIG), 4, process, processes):
            found += [image.numpy().tobytes() for image in batch.images]
    expected = [
        image.numpy().tobytes()
        for b in evaluation_loader(Noise(20), evaluation_transform(CONFIG), 4)
        for image in b.images
    ]
    assert sorted(found) == sorted(expected)
    assert len(set(found)) == 20
