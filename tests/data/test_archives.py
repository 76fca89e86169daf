"""Data sets from their official archives: tiny trees as they unpack, the splits they give, and what is refused."""

import json
import urllib.error
from pathlib import Path

import pytest
from PIL import Image

from entropatch.data import DATASETS, DataError, caltech101, open_data
from entropatch.data.registry import data_text


def write(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (level, level, level)).save(path)
    return path


def level_of(image: Image.Image) -> int:
    return round(sum(image.getpixel((2, 2))) / 3)


def names(images) -> list[str]:
    """The files of a split, from the class folder on."""
    return ["/".join(Path(images.name(i)).parts[-2:]) for i in range(len(images))]


# -------------------------------------------------------------------------------------------------- Caltech-101


def caltech_tree(root: Path, images: dict[str, int]) -> Path:
    """caltech101/101_ObjectCategories as published, background class and all."""
    for name, count in {**images, "BACKGROUND_Google": 2}.items():
        for number in range(1, count + 1):
            write(root / "caltech101/101_ObjectCategories" / name / f"image_{number:04d}.jpg", number)
    return root


def test_caltech101_takes_thirty_to_train_and_at_most_fifty_to_test(tmp_path):
    assert (caltech101.TRAIN_PER_CLASS, caltech101.MOST_TESTED) == (30, 50)
    data = open_data("caltech101", caltech_tree(tmp_path, {"ant": 33, "bass": 90, "Faces": 31}))
    assert data.classes == ("Faces", "ant", "bass")
    counts = [[images.labels.count(label) for label in range(3)] for images in (data.train, data.test)]
    assert counts == [[30, 30, 30], [1, 3, 50]]
    train, test = names(data.train), names(data.test)
    assert not set(train) & set(test)
    assert train == sorted(train)
    assert all(data.classes[data.train.label(i)] == name.split("/")[0] for i, name in enumerate(train))
    again = open_data("caltech101", tmp_path)
    assert names(again.test) == test
    # Once and for all: the same on every machine, in every version.
    assert [int(name[10:14]) for name in test if "ant" in name] == [9, 13, 31]


def test_the_draw_is_no_mere_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(caltech101, "TRAIN_PER_CLASS", 6)
    data = open_data("caltech101", caltech_tree(tmp_path, {"ant": 12, "bass": 12}))
    drawn = [{name.split("_")[1] for name in names(data.train) if kind in name} for kind in ("ant", "bass")]
    assert drawn[0] != drawn[1]
    assert all(numbers != {f"{n:04d}.jpg" for n in range(1, 7)} for numbers in drawn)


def test_caltech101_that_is_not_there_or_not_whole(tmp_path):
    with pytest.raises(DataError, match=r"was not found under .*--download.*data\.caltech\.edu"):
        open_data("caltech101", tmp_path)
    assert not list(tmp_path.iterdir())  # torchvision's own class leaves an empty folder
    caltech_tree(tmp_path, {"ant": 40, "bass": 30})
    with pytest.raises(DataError, match=r"more than 30 images .* fewer are in bass;"):
        open_data("caltech101", tmp_path)


# ----------------------------------------------------------------------------------------------------- Imagenette


def imagenette_tree(root: Path, folder: str = "imagenette2") -> Path:
    for split, number in (("train", 1), ("val", 9)):
        for place, name in enumerate(("n01440764", "n03888257")):
            for i in range(2):
                write(root / folder / split / name / f"{name}_{number}{i}.JPEG", 20 * number + 40 * place + i)
    return root


def test_imagenette_takes_the_official_split_and_each_size(tmp_path):
    imagenette_tree(tmp_path)
    imagenette_tree(tmp_path, "imagenette2-160")
    data = open_data("imagenette", tmp_path)
    assert data.classes == ("n01440764", "n03888257")
    assert data.train.labels == data.test.labels == [0, 0, 1, 1]
    assert names(data.test)[0] == "n01440764/n01440764_90.JPEG"
    assert level_of(data.test.image(3)) == pytest.approx(221, abs=2)
    assert "imagenette2-160/train" in open_data("imagenette", tmp_path, size="160px").train.name(0)
    with pytest.raises(DataError, match=r"imagenette was not found whole"):
        open_data("imagenette", tmp_path, size="320px")
    with pytest.raises(DataError, match="size must be one of full, 320px, 160px, but got '224px'"):
        open_data("imagenette", tmp_path, size="224px")


# --------------------------------------------------------------------------------------------------- lists of files


def listing(path: Path, *lines: str) -> str:
    path.write_text("# what a figure was measured on\n\n" + "".join(f"{line}\n" for line in lines))
    return str(path)


def test_a_list_names_the_very_images_of_caltech101(tmp_path):
    caltech_tree(tmp_path, {"ant": 4, "bass": 3, "crab": 2})
    lines = ["train/bass/image_0003.jpg", "train/ant/image_0002.jpg", "test/ant/image_0004.jpg", "test/bass/image_0001"]
    given = listing(tmp_path / "list.txt", *lines)
    data = open_data("caltech101", tmp_path, split=given)
    assert data.classes == ("ant", "bass")  # those it names
    assert names(data.train) == ["bass/image_0003.jpg", "ant/image_0002.jpg"]
    assert data.train.labels == [1, 0]
    assert names(data.test) == ["ant/image_0004.jpg", "bass/image_0001.jpg"]
    assert data.description["options"] == {"split": given}
    before = data.description["split_sha256"]
    listing(tmp_path / "list.txt", *lines, "test/ant/image_0003.jpg")
    assert open_data("caltech101", tmp_path, split=given).description["split_sha256"] != before


def test_a_list_fits_a_copy_in_another_format(tmp_path):
    imagenette_tree(tmp_path)
    for file in tmp_path.glob("imagenette2/*/*/*.JPEG"):
        write(tmp_path / "copy" / file.relative_to(tmp_path / "imagenette2").with_suffix(".png"))
    lines = [
        *("train/n01440764/n01440764_11.JPEG", "train/n03888257/n03888257_10.JPEG"),
        *("val/n01440764/n01440764_90.JPEG", "val/n03888257/n03888257_91.JPEG"),
    ]
    given = listing(tmp_path / "list.txt", *lines)
    official = open_data("imagenette", tmp_path, split=given)
    copy = open_data("folder", tmp_path / "copy", split=given)
    assert [Path(name).stem for name in names(official.train)] == ["n01440764_11", "n03888257_10"]
    assert [Path(name).with_suffix(".JPEG") for name in names(copy.test)] == list(map(Path, names(official.test)))
    assert names(copy.test)[0].endswith(".png")
    write(tmp_path / "copy/train/n01440764/n01440764_11.webp")
    with pytest.raises(DataError, match=r"or of which several files may be meant: train/n01440764/n01440764_11\.JPEG"):
        open_data("folder", tmp_path / "copy", split=given)


WHOLE = ["train/ant/image_0001.jpg", "train/bass/image_0001.jpg", "test/ant/image_0002.jpg", "test/bass/image_0002.jpg"]


@pytest.mark.parametrize(
    ("lines", "refusal"),
    [
        (["train/ant/image_0009.jpg"], "names 1 images that are not there, .*: train/ant/image_0009.jpg"),
        (["train/owl/image_0001.jpg"], "names classes of which .*101_ObjectCategories holds no image: train/owl"),
        (["test/ant/image_0001.jpg"], "must not train on what it tests on, but both splits name ant/image_0001"),
        (["test/ant/image_0002.png"], "must name each image once, but names twice test/ant/image_0002"),
        (["train/crab/image_0001.jpg"], "the same classes, but only train has crab and only test nothing"),
        (["val/ant/image_0003.jpg"], r"must begin with train/ and test/, .* begin with test/, train/, val/"),
        (["train/ant/more/image_0003.jpg"], "line 7 of .* must read <split>/<class>/<file>, but reads"),
        (["train/../image_0003.jpg"], "line 7 of .* must read"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, lines, refusal):
    caltech_tree(tmp_path, {"ant": 4, "bass": 3, "crab": 2})
    assert len(open_data("caltech101", tmp_path, split=listing(tmp_path / "ok.txt", *WHOLE)).test) == 2
    with pytest.raises(DataError, match=refusal):
        open_data("caltech101", tmp_path, split=listing(tmp_path / "list.txt", *WHOLE, *lines))


def test_a_list_of_one_split_or_none_is_refused(tmp_path):
    caltech_tree(tmp_path, {"ant": 4})
    with pytest.raises(DataError, match="both splits there, but begin with train/"):
        open_data("caltech101", tmp_path, split=listing(tmp_path / "list.txt", "train/ant/image_0001.jpg"))
    with pytest.raises(DataError, match=r"the list .*none.txt cannot be read: No such file"):
        open_data("caltech101", tmp_path, split=str(tmp_path / "none.txt"))


def test_folders_with_a_list_share_no_image_but_may_share_names(tmp_path):
    for split, level in (("train", 10), ("test", 200), ("val", 10)):
        write(tmp_path / split / "cat/0.png", level)
    lines = ["train/cat/0.png", "test/cat/0.png"]
    data = open_data("folder", tmp_path, split=listing(tmp_path / "a.txt", *lines))
    assert [level_of(data.test.image(0)), level_of(data.train.image(0))] == [200, 10]
    same = listing(tmp_path / "b.txt", "train/cat/0.png", "val/cat/0.png")
    with pytest.raises(DataError, match="both splits name cat/0"):
        open_data("folder", tmp_path, split=same)
    with pytest.raises(DataError, match="must begin with train/ and val/"):
        open_data("folder", tmp_path, test_split="val", split=str(tmp_path / "a.txt"))


@pytest.mark.parametrize(("name", "other"), [("caltech101", "test"), ("imagenette", "val")])
def test_the_committed_lists_are_of_the_official_names(name, other):
    lines = (Path(__file__).parents[2] / "benchmarks/evidence/files" / f"{name}.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    parts = [line.split("/") for line in lines]
    images = {split: {(kind, file) for where, kind, file in parts if where == split} for split in ("train", other)}
    assert not images["train"] & images[other]
    assert sum(map(len, images.values())) == len(lines)
    classes = {split: {kind for kind, _ in found} for split, found in images.items()}
    assert classes["train"] == classes[other]
    if name == "caltech101":
        assert (len(classes["train"]), len(images["train"]), len(images["test"])) == (101, 3530, 1763)
        assert all(file[:6] == "image_" and file[10:] == ".jpg" and file[6:10].isdigit() for _, _, file in parts)
    else:
        assert (len(classes["train"]), len(images["train"]), len(images["val"])) == (10, 2000, 1000)
        assert all(file.startswith((f"{kind}_", "ILSVRC2012_val_")) for _, kind, file in parts)
        assert {Path(file).suffix for _, _, file in parts} == {".JPEG"}


# ------------------------------------------------------------------------------------------ the others of torchvision


def test_pets_take_the_official_split(tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    lists = {"trainval": ["Abyssinian_1 1 1 1", "beagle_7 2 2 1"], "test": ["beagle_8 2 2 1", "Abyssinian_2 1 1 1"]}
    for split, lines in lists.items():
        for line in lines:
            write(folder / "images" / f"{line.split()[0]}.jpg", 50)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    data = open_data("pets", tmp_path)
    assert data.classes == ("Abyssinian", "Beagle")
    assert (data.train.labels, data.test.labels) == ([0, 1], [1, 0])
    assert names(data.test) == ["images/beagle_8.jpg", "images/Abyssinian_2.jpg"]
    assert level_of(data.test.image(0)) == pytest.approx(50, abs=2)


def test_food101_takes_the_official_split(tmp_path):
    meta = tmp_path / "food-101/meta"
    meta.mkdir(parents=True)
    for split, files in {"train": ["5", "6"], "test": ["7"]}.items():
        named = {kind: [f"{kind}/{file}" for file in files] for kind in ("waffles", "tacos")}
        (meta / f"{split}.json").write_text(json.dumps(named))
        for file in (file for files in named.values() for file in files):
            write(tmp_path / "food-101/images" / f"{file}.jpg", 70)
    data = open_data("food101", tmp_path)
    assert data.classes == ("tacos", "waffles")
    assert (data.train.labels, data.test.labels) == ([1, 1, 0, 0], [1, 0])
    assert level_of(data.test.image(1)) == pytest.approx(70, abs=2)
    (meta / "test.json").write_text(json.dumps({"tacos": ["tacos/7"]}))
    with pytest.raises(DataError, match="food101 must have the same classes in every split, but has 2 in one and 1"):
        open_data("food101", tmp_path)


def test_dtd_joins_train_and_val_of_the_partition(tmp_path):
    folder = tmp_path / "dtd/dtd"
    (folder / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        lines = [f"{kind}/{kind}_{number}.jpg" for kind in ("woven", "banded")]
        (folder / "labels" / f"{split}3.txt").write_text("\n".join(lines))
        for line in lines:
            write(folder / "images" / line, 10 * number)
    data = open_data("dtd", tmp_path, partition=3)
    assert data.classes == ("banded", "woven")
    assert names(data.train) == ["woven/woven_0.jpg", "banded/banded_0.jpg", "woven/woven_1.jpg", "banded/banded_1.jpg"]
    assert (data.train.labels, data.test.labels) == ([1, 0, 1, 0], [1, 0])
    with pytest.raises(DataError, match=r"dtd was not found whole .*train1\.txt"):
        open_data("dtd", tmp_path)
    with pytest.raises(DataError, match="partition must be an integer in 1 … 10, but got 11"):
        open_data("dtd", tmp_path, partition=11)


def cars_tree(root: Path) -> Path:
    import numpy as np

    savemat = pytest.importorskip("scipy.io").savemat
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    kinds = np.array(["AM General Hummer", "Audi S4"], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": kinds})
    fields = [("class", "O"), ("fname", "O")]
    for split, file, numbers in (
        ("train", "devkit/cars_train_annos.mat", [2, 1, 2]),
        ("test", "cars_test_annos_withlabels.mat", [1, 2]),
    ):
        rows = [(number, f"{i + 1:05d}.jpg") for i, number in enumerate(numbers)]
        savemat(folder / file, {"annotations": np.array(rows, dtype=fields)})
        for number, name in rows:
            write(folder / f"cars_{split}" / name, 20 * number)
    return root


def test_cars_take_the_official_split_and_are_never_fetched(tmp_path):
    with pytest.raises(DataError, match=r"cannot be downloaded: .*vision/issues/7545; what is needed is .*cars_train"):
        open_data("cars", tmp_path, download=True)
    data = open_data("cars", cars_tree(tmp_path), download=True)
    assert data.classes == ("AM General Hummer", "Audi S4")
    assert (data.train.labels, data.test.labels) == ([1, 0, 1], [0, 1])
    assert names(data.test) == ["cars_test/00001.jpg", "cars_test/00002.jpg"]
    assert level_of(data.test.image(1)) == pytest.approx(40, abs=2)


# ------------------------------------------------------------------------------------------------------ CUB-200-2011


def cub_tree(root: Path) -> Path:
    """Numbers are not in order, as nothing says they must be; neither are they from one on."""
    folder = root / "CUB_200_2011"
    images = {4: "001.Albatross/A_1.jpg", 2: "002.Auklet/B_1.jpg", 7: "001.Albatross/A_2.jpg", 9: "002.Auklet/B_2.jpg"}
    for number, file in images.items():
        write(folder / "images" / file, 10 * number)
    texts = {
        "classes.txt": {1: "001.Albatross", 2: "002.Auklet"},
        "images.txt": images,
        "image_class_labels.txt": {2: 2, 4: 1, 7: 1, 9: 2},
        "train_test_split.txt": {2: 1, 4: 1, 7: 0, 9: 0},
    }
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    return root


def test_cub200_takes_the_official_split(tmp_path):
    data = open_data("cub200", cub_tree(tmp_path))
    assert data.classes == ("001.Albatross", "002.Auklet")
    assert names(data.train) == ["001.Albatross/A_1.jpg", "002.Auklet/B_1.jpg"]
    assert (data.train.labels, data.test.labels) == ([0, 1], [0, 1])
    assert [level_of(image) for image, _ in data.test] == pytest.approx([70, 90], abs=2)


@pytest.mark.parametrize(
    ("file", "text", "refusal"),
    [
        ("train_test_split.txt", "2 1\n4 1\n7 0\n", "train_test_split.txt must give one of 2 values for each image"),
        ("train_test_split.txt", "2 1\n4 1\n7 0\n9 3\n", "must give one of 2 values"),
        ("image_class_labels.txt", "2 2\n4 1\n7 1\n9 3\n", "image_class_labels.txt must give one of 2 values"),
        ("images.txt", "2 a.jpg\n2 b.jpg\n", "images.txt must hold lines of a number, each once"),
        ("classes.txt", "", "classes.txt must hold lines"),
    ],
)
def test_cub200_that_is_damaged_is_refused(tmp_path, file, text, refusal):
    (cub_tree(tmp_path) / "CUB_200_2011" / file).write_text(text)
    with pytest.raises(DataError, match=refusal):
        open_data("cub200", tmp_path)


# ------------------------------------------------------------------------------------------------------- downloads

FETCHED = ["caltech101", "cub200", "dtd", "food101", "imagenette", "pets"]


@pytest.mark.parametrize("name", FETCHED)
def test_nothing_is_fetched_unasked_and_what_fails_names_the_archive(tmp_path, name, monkeypatch):
    asked = []

    def refuse(request, *args, **kwargs):
        asked.append(getattr(request, "full_url", request))
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match=r"--root"):
        open_data(name)
    with pytest.raises(DataError, match=r"not found .*--download.* [Oo]fficial archive: https://"):
        open_data(name, tmp_path)
    assert not asked
    with pytest.raises(DataError, match=r"could not be fetched .*no network here.*get the official archive from https"):
        open_data(name, tmp_path, download=True)
    assert asked
    if name == "cub200":
        assert asked[0] == "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"


def test_help_texts_name_every_data_set():
    for name in DATASETS:
        assert name in data_text().split(" or ")[0].split(", ")
    assert data_text().endswith(" or hf:NAME")
