"""Errors in an evaluation's records: against pairs counted one by one, and what the table says of them."""

import math
import statistics

import numpy as np
import pytest
import torch
from torch import nn

from entropatch import PruneConfig
from entropatch.data.base import ImageFiles, limited, listing_hash
from entropatch.data.loaders import Batch, collate
from entropatch.measure.comparing import compared, evaluation_table
from entropatch.measure.evaluation import count_correct
from entropatch.records.correct import CorrectImages

SETTINGS = {
    "dense": None,
    "random, 0.5": PruneConfig(method="random", keep_rate=0.5),
    "random, 0.7": PruneConfig(method="random", keep_rate=0.7),
    "shannon, 0.7": PruneConfig(method="shannon", keep_rate=0.7),
    "evit, 0.7": PruneConfig(method="evit", keep_rate=0.7),
    "shannon, 0.6": PruneConfig(method="shannon", keep_rate=0.6),
    "shannon, late": PruneConfig(method="shannon", keep_rate=0.7, blocks=(9,)),
}


def outcomes():
    """400 images, of which 50 could not be read; Shannon well ahead of random at 0.7, EViT level with it."""
    rng = np.random.default_rng(3)
    tested = np.ones(400, bool)
    tested[rng.permutation(400)[:50]] = False
    rates = {"dense": 0.9, "shannon, 0.7": 0.85}
    bits = {name: tested & (rng.random(400) < rates.get(name, 0.6)) for name in SETTINGS}
    return CorrectImages("a", tested, bits)


def test_each_row_against_its_own_random_and_dense():
    correct = outcomes()
    found = compared(SETTINGS, correct)
    assert list(found) == list(SETTINGS)
    pairs = {
        ("shannon, 0.7", "dense"): "dense",
        ("shannon, 0.7", "random"): "random, 0.7",
        ("evit, 0.7", "random"): "random, 0.7",
        ("random, 0.5", "dense"): "dense",
    }
    for (name, kind), reference in pairs.items():
        mine, other = (
            [int(right) for right, there in zip(correct.correct[one], correct.tested, strict=True) if there]
            for one in (name, reference)
        )
        d = [a - b for a, b in zip(mine, other, strict=True)]
        record = found[name]
        assert record[f"top1_less_{kind}"] == pytest.approx(100 * statistics.fmean(d))
        assert record[f"top1_less_{kind}_se"] == pytest.approx(100 * statistics.stdev(d) / math.sqrt(350))
        p = sum(mine) / 350
        assert record["top1_se"] == pytest.approx(100 * math.sqrt(p * (1 - p) / 350))
        assert record["top1_low"] < 100 * p < record["top1_high"]
    for name in ("dense", "random, 0.5", "random, 0.7", "shannon, 0.6", "shannon, late"):
        assert found[name]["top1_less_random"] is None  # none at that rate and those blocks
        assert found[name]["against_random"] is None
    assert found["dense"]["against_dense"] is None
    assert found["shannon, 0.7"]["against_random"] == "ahead"
    assert found["evit, 0.7"]["against_random"] == "not told apart"
    assert found["random, 0.7"]["against_dense"] == "behind"


def test_the_table_is_bold_only_where_ahead_and_names_what_is_not_told_apart():
    correct = outcomes()
    rows = {name: 100 * bits[correct.tested].mean() for name, bits in correct.correct.items()}
    records = [
        {"name": name, "top1": rows[name], "top5": 99.0, "gflops": 1.0} | errors
        for name, errors in compared(SETTINGS, correct).items()
    ]
    text = evaluation_table(records)
    lines = text.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "",
        *["top-1 %", "− dense", "− random", "top-5 %", "GFLOPs"],
    ]
    assert [line.split("|")[1].strip() for line in lines if "**" in line] == ["shannon, 0.7"]
    assert text.count("**") == 2
    assert "Not told apart from random: evit, 0.7.\n" in text
    assert "Not told apart from dense" not in text
    assert "± is one standard error" in text


def test_one_image_has_no_paired_error():
    correct = CorrectImages("a", np.ones(1, bool), {"dense": np.ones(1, bool), "evit": np.zeros(1, bool)})
    found = compared({"dense": None, "evit": PruneConfig(method="evit")}, correct)
    assert found["evit"]["top1_less_dense"] is None
    assert found["dense"]["top1_low"] < 100


class Fixed(nn.Module):
    def forward(self, images):
        return images


def test_outcomes_stand_at_the_places_of_their_images():
    """Damaged images between sound ones leave gaps, in batches that are not all of one size."""
    rng = np.random.default_rng(1)
    sound = [bool(s) for s in rng.random(23) < 0.7]
    scores = torch.randn(23, 4)
    labels = rng.integers(0, 4, 23).tolist()
    samples = [
        (scores[i], labels[i], ()) if ok else (None, -1, (f"image {i}",))  # as `EvaluationImages` gives them
        for i, ok in enumerate(sound)
    ]
    batches = [collate(samples[start : start + 6]) for start in range(0, 23, 6)]
    found = count_correct({"": Fixed(), "negative": _Negative()}, batches)
    for name, sign in (("", 1), ("negative", -1)):
        right = [ok and int((sign * scores[i]).argmax()) == labels[i] for i, ok in enumerate(sound)]
        assert found[name].right.tolist() == right
        assert found[name].tested.tolist() == sound
        assert found[name].top1 == sum(right)
    plain = count_correct({"": Fixed()}, [Batch(scores, torch.tensor(labels))])[""]
    assert plain.tested.all()
    assert plain.right.tolist() == [int(row.argmax()) == label for row, label in zip(scores, labels, strict=True)]


class _Negative(nn.Module):
    def forward(self, images):
        return -images


def test_the_hash_of_a_list_is_of_names_order_and_labels_not_of_the_place(tmp_path):
    files = [f"cats/{i}.png" for i in range(4)] + ["dogs/0.png"]
    labels = [0, 0, 0, 0, 1]

    def hashed(root, names=files, numbers=labels):
        return listing_hash(ImageFiles([f"{root}/{name}" for name in names], numbers))

    assert hashed("/data/test") == hashed("/mnt/elsewhere/test")
    assert hashed("/data") != hashed("/data", numbers=[0, 0, 0, 1, 1])
    assert hashed("/data") != hashed("/data", names=files[::-1], numbers=labels)
    assert hashed("/data") != hashed("/data", names=["wolves/0.png", *files[1:]])
    whole = ImageFiles([f"/d/{name}" for name in files], labels)
    assert listing_hash(limited(whole, 4, "test_limit")) != listing_hash(whole)
