"""Accuracy, multiply-adds and speed side by side: counted against a slow twin, and what is refused."""

import csv
import json
from importlib import import_module

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import entropatch
from entropatch import ClassAttention, PruneConfig, Renyi, Threshold
from entropatch.cli import app
from entropatch.data import DataSet, LabelledImages, evaluation_loader, open_data
from entropatch.data.images import ImageError
from entropatch.data.loaders import Batch, data_config, evaluation_transform
from entropatch.gallery import accuracy_records
from entropatch.measure import count_flops
from entropatch.measure.evaluation import Speed, class_places, count_correct, count_steps, evaluate
from entropatch.records.correct import read_correct
from entropatch.records.uncertainty import paired_difference
from entropatch.train import ModelSpec, save_weights

SETTINGS = {
    "dense": None,
    "evit": PruneConfig(keep_rate=0.5, criterion=ClassAttention(), reduction="fuse"),
    "shannon": PruneConfig(keep_rate=0.5, criterion=Renyi(1.0)),
}


def model(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, patch_size=8, num_classes=classes).eval()


class Fixed(nn.Module):
    """Gives the scores it was made with, whatever the images."""

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.as_tensor(scores)

    def forward(self, images):
        return self.scores[: len(images)]


def counted(scores, labels, **options):
    batch = Batch(torch.zeros(len(labels), 3, 4, 4), torch.tensor(labels))
    return count_correct({"": Fixed(scores)}, [batch], **options)[""]


def test_a_schedule_by_image_is_counted_on_test_images():
    stock, data = model(), open_data("digits", test_limit=12)
    config = PruneConfig(schedule=Threshold(0.00015, (0.25, 0.5, 0.75)), order=2.0, blocks=(1,))
    (record,) = evaluate(stock, data, {"by image": config}, image_size=32, batch_size=12)
    pruned = entropatch.prune_(model(), config)
    (batch,) = evaluation_loader(data.test, evaluation_transform(data_config(stock, 32)), 12)
    alone = {count_flops(pruned, image[None]).total for image in batch.images}
    assert len(alone) > 1
    assert min(alone) < 1e9 * record["gflops"] < max(alone)


# ----------------------------------------------------------------------------------------------------------- counts


def test_counts_are_those_of_a_slow_twin():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(200, 12)).astype(np.float32)
    labels = draw.integers(0, 12, 200).tolist()
    places = [sorted(range(12), key=lambda c: -row[c]).index(label) for row, label in zip(scores, labels, strict=True)]
    found = counted(scores, labels)
    assert found.top1 == sum(place == 0 for place in places)
    assert found.top5 == sum(place < 5 for place in places)
    assert found.images == 200
    assert found.top1_percent == pytest.approx(found.top1 / 2)
    assert found.top5_percent == pytest.approx(found.top5 / 2)


def test_ties_go_to_the_lower_class_and_nan_never_wins():
    nan = float("nan")
    scores = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [nan, 1.0, 0.0], [nan, nan, nan], [0.0, nan, 1.0]]
    assert counted(scores, [0, 1, 1, 0, 1]).top1 == 2  # the first and the third
    assert counted(scores, [0, 0, 1, 1, 2]).top1 == 4
    assert counted([[float("inf"), 0.0], [0.0, float("inf")]], [0, 1]).top1 == 2


def test_only_the_classes_in_question_count():
    scores = [[9.0, 1.0, 2.0, 3.0]]
    assert counted(scores, [1], classes=torch.tensor([1, 3])).top1 == 1
    assert counted(scores, [0], classes=torch.tensor([1, 3])).top1 == 0


def test_modes_are_put_back_and_no_gradients_are_kept():
    net = model().train()
    net.blocks[1].eval()
    batch = Batch(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))
    steps = []
    count_correct({"": net}, [batch, batch], on_batch=lambda: steps.append(net.training))
    assert steps == [False, False]
    assert net.training
    assert not net.blocks[1].training
    assert all(p.grad is None for p in net.parameters())


# --------------------------------------------------------------------------------------------------------- evaluate


def test_every_row_is_what_the_model_gives_when_pruned_alone():
    pytest.importorskip("sklearn")
    data, net = open_data("digits", test_limit=50), model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    records = evaluate(net, data, SETTINGS, image_size=32, batch_size=16)
    assert [record["name"] for record in records] == list(SETTINGS)
    loader = evaluation_loader(data.test, evaluation_transform(data_config(net, 32)), 50)
    (batch,) = loader
    for record, config in zip(records, SETTINGS.values(), strict=True):
        alone = model()
        if config is not None:
            entropatch.prune_(alone, config)
        with torch.no_grad():
            scores = alone(batch.images)
        first = (scores.argmax(1) == batch.labels).sum()
        five = (scores.topk(5).indices == batch.labels[:, None]).any(1).sum()
        assert record["top1"] == pytest.approx(100 * int(first) / 50)
        assert record["top5"] == pytest.approx(100 * int(five) / 50)
        assert record["gflops"] * 1e9 == count_flops(alone, batch.images[:1]).total
        assert (record["images"], record["damaged"]) == (50, 0)
        assert record["keep_rate"] == (None if config is None else 0.5)
    assert len({record["top1"] for record in records}) > 1  # pruning changes something here
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not hasattr(net, "_entropatch")


def test_speed_is_measured_for_every_row_and_steps_are_announced():
    pytest.importorskip("sklearn")
    data, steps = open_data("digits", test_limit=20), []
    speed = Speed(batch_size=2, repeats=3, warmup=1)
    records = evaluate(
        model(), data, SETTINGS, image_size=32, batch_size=8, speed=speed, on_step=lambda: steps.append(1)
    )
    assert all(record["images_per_second"] > 0 and record["p50_ms"] <= record["p95_ms"] for record in records)
    assert len(steps) == count_steps(data, 3, 8, speed) == 3 + 3 * 4


def test_bfloat16_runs_under_autocast():
    pytest.importorskip("sklearn")
    data = open_data("digits", test_limit=20)
    (record,) = evaluate(model(), data, {"dense": None}, image_size=32, precision="bfloat16")
    assert record["images"] == 20
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        evaluate(model(), data, {"dense": None}, image_size=32, precision="int8")


class Torn(LabelledImages):
    def __init__(self, damaged):
        self.damaged = damaged

    def __len__(self):
        return 10

    def image(self, index):
        if index in self.damaged:
            raise ImageError("torn")
        return Image.new("RGB", (32, 32), (index * 20, 0, 0))

    def label(self, index):
        return index % 2


def test_damaged_images_are_counted_and_left_out():
    data = DataSet(("a", "b"), Torn(()), Torn((2, 5)))
    (record,) = evaluate(model(2), data, {"dense": None}, image_size=32)
    assert (record["images"], record["damaged"]) == (8, 2)
    with pytest.raises(ValueError, match="no image could be read, of 10; the first: image 0"):
        evaluate(model(2), DataSet(("a", "b"), Torn(()), Torn(range(10))), {"dense": None}, image_size=32)


# ---------------------------------------------------------------------------------------------------------- classes


def test_an_imagenet_classifier_is_read_at_the_classes_of_the_data_set():
    names = ("n01440764", "n15075141", "n02119789")  # tench, toilet tissue, kit fox: 0, 999 and 278
    assert class_places(model(1000), names).tolist() == [0, 999, 278]
    from entropatch.data.imagenet100 import class_ids

    places = class_places(model(1000), class_ids())
    assert places.tolist() == sorted(set(places.tolist()))
    assert len(places) == 100


def test_a_classifier_for_other_classes_is_refused():
    assert class_places(model(10), tuple("0123456789")) is None
    with pytest.raises(ValueError, match="has a classifier for 7 classes, but the data set has 3"):
        class_places(model(7), ("a", "b", "c"))
    with pytest.raises(ValueError, match="has a classifier for 1000 classes"):
        class_places(model(1000), ("cat", "dog"))
    with pytest.raises(ValueError, match="no classifier, but the data set has 2"):
        class_places(model(0), ("a", "b"))
    with pytest.raises(ValueError, match="at least one row"):
        evaluate(model(), DataSet((), Torn(()), Torn(())), {}, image_size=32)


# ----------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def weights(tmp_path):
    pytest.importorskip("sklearn")
    about = {
        "model": {"name": "test_vit", "arguments": {"patch_size": 8}},
        "classes": 10,
        "image_size": 32,
        "data": {"name": "digits", "root": None, "options": {}},
        "prune": {"keep_rate": 0.5, "criterion": {"name": "Renyi", "order": 1.0}, "blocks": None, "reduction": "drop"},
    }
    save_weights(ModelSpec("test_vit", None, 0.0, {"patch_size": 8}).build(10, 32), tmp_path / "w.safetensors", about)
    return tmp_path / "w.safetensors"


def command(*arguments):
    import_module("entropatch.cli.evaluate")  # registers the subcommand
    shown = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--workers", "0", "--repeats", "1"])
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
    return shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size"),
        (["--speed-batch-size", "-1"], "--speed-batch-size"),
        (["--blocks", "0"], "--blocks 0 says where the rows of --methods and --keep-rates prune"),
    ],
)
def test_options_that_make_no_sense_are_said(weights, options, message):
    shown = command("--weights", weights, *options)
    assert shown.exit_code in (1, 2)
    assert message in shown.output


def test_records_as_json_with_errors_and_pairs(weights, tmp_path):
    arguments = ["--test-limit", "60", "--speed-batch-size", "0", "--methods", "dense,random,shannon"]
    shown = command("--weights", weights, *arguments, "--keep-rates", "0.5", "--json", "--output", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    records = json.loads(shown.stdout)
    assert records == json.loads((tmp_path / "out/evaluate.json").read_text())["records"]
    known = read_correct(tmp_path / "out")
    for record in records:
        assert 100 * known.correct[record["name"]].mean() == pytest.approx(record["top1"])
    mine, other = (known.correct[name] for name in ("Shannon, 0.5", "Random, 0.5"))
    difference = paired_difference(mine, other)
    assert records[2]["top1_less_random"] == pytest.approx(difference.value)
    assert records[2]["top1_less_random_se"] == pytest.approx(difference.standard_error)


def test_a_file_of_a_run_says_all_that_is_needed(weights, tmp_path):
    shown = command("--weights", weights, "--test-limit", "20", "--speed-batch-size", "2", "--output", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    assert "dense" in shown.output
    assert "as trained" in shown.output
    lines = (tmp_path / "out/evaluate.csv").read_text().splitlines()
    assert lines[0].startswith("name,keep_rate,top1,top5,gflops")
    with (tmp_path / "out/evaluate.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["dense", "as trained: Shannon, 0.5"]
    # A figure of these points has one curve of that name, its rate beside the point.
    points = accuracy_records(json.loads((tmp_path / "out/evaluate.json").read_text()))
    assert [(point["label"], point["keep_rate"]) for point in points] == [
        ("dense", None),
        ("as trained: Shannon", 0.5),
    ]


def test_methods_and_keep_rates_make_the_rows(weights, tmp_path):
    (tmp_path / "mine.json").write_text(PruneConfig(keep_rate=0.25).to_json())
    shown = command(
        *("--weights", weights, "--test-limit", "20", "--speed-batch-size", "0"),
        *("--methods", "dense,renyi-0.5", "--keep-rates", "0.7,0.3", "--config", tmp_path / "mine.json"),
    )
    assert shown.exit_code == 0, shown.output
    rows = [line.split("|")[1].strip() for line in shown.output.splitlines() if line.startswith("|")][2:]
    assert rows == ["dense", "Rényi, order 0.5, 0.7", "Rényi, order 0.5, 0.3", "mine: Rényi, order 2, 0.25"]
    assert "images/s" not in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "pretrained"], "does not say which model it belongs to; give --model"),
        (["--weights", "pretrained", "--model", "test_vit"], "which data it belongs to; give --data"),
        (["--data", "cifar"], "a data set is one of"),
        (["--model", "deit_tiny_patch16_224"], "holds a test_vit"),
        (["--methods", "best"], "a method is one of"),
        (["--keep-rates", "x"], "--keep-rates takes values with commas"),
        (["--data-option", "level"], "--data-option takes NAME=VALUE"),
        (["--image-size", "30"], "multiple of test_vit's patches of (8, 8), but got 30"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(weights, arguments, message):
    given = arguments if "--weights" in arguments else ["--weights", str(weights), *arguments]
    shown = command(*given)
    assert shown.exit_code == 1
    assert message in shown.output
    assert "Traceback" not in shown.output
