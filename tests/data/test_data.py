"""Data sets: the real loaders on tiny trees in each official format, and what each refuses."""

import gzip
import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from entropatch.data import DataError, open_data
from entropatch.data.fashion_mnist import DEBIAN, read_idx
from entropatch.data.imagenet100 import class_ids
from entropatch.data.images import ImageError
from entropatch.data.photos import SPECKS, GarmentsOnPhotographs


def colour(number: int) -> tuple[int, int, int]:
    return (number * 37 % 256, number * 91 % 256, number * 53 % 256)


def write_image(path: Path, number: int = 0, suffix: str = ".png") -> Path:
    """A small picture of one colour that tells its number."""
    path = path.with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), colour(number)).save(path)
    return path


def folder_tree(root: Path, classes=("cat", "dog"), splits=("train", "val"), images: int = 2) -> Path:
    for split in splits:
        for i, name in enumerate(classes):
            for j in range(images):
                write_image(root / split / name / f"{split}{j}", 10 * i + j)
    return root


# ------------------------------------------------------------------------------------------------- image folders


def test_folder_gives_the_images_of_each_class_their_label(tmp_path):
    data = open_data("folder", folder_tree(tmp_path))
    assert data.classes == ("cat", "dog")
    assert [data.train.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert [image.getpixel((0, 0)) for image, _ in data.test] == [colour(n) for n in (0, 1, 10, 11)]
    assert data.train.name(0).endswith("train/cat/train0.png")
    assert dict(data.description) == {
        "name": "folder",
        "root": str(tmp_path),
        "options": {},
        "classes": 2,
        "train": 4,
        "test": 4,
    }


def test_folder_refuses_an_empty_class_by_name(tmp_path):
    folder_tree(tmp_path)
    (tmp_path / "train/bird").mkdir()
    write_image(tmp_path / "val/bird/a")
    with pytest.raises(DataError, match=r"these are empty: bird\. Fill them"):
        open_data("folder", tmp_path)


def test_folder_refuses_splits_of_different_classes(tmp_path):
    folder_tree(tmp_path)
    write_image(tmp_path / "val/bird/a")
    with pytest.raises(DataError, match="only the first has nothing and only the second has bird"):
        open_data("folder", tmp_path)


def test_folder_with_two_test_splits_must_be_told_which(tmp_path):
    folder_tree(tmp_path, splits=("train", "val", "test"))
    with pytest.raises(DataError, match="holds test, val; say which"):
        open_data("folder", tmp_path)
    assert "/test/" in open_data("folder", tmp_path, test_split="test").test.name(0)


def test_folder_of_another_layout_is_told_what_it_needs_and_what_it_has(tmp_path):
    layout = rf"the layout is {tmp_path}/\w+/train/<class>/<image> and {tmp_path}/\w+/val/<class>/<image>"

    def refusal(root):
        with pytest.raises(DataError) as caught:
            open_data("folder", root)
        return str(caught.value)

    for number in range(32):
        write_image(tmp_path / "flat" / f"{number}", number, ".jpg")
    text = refusal(tmp_path / "flat")
    assert re.search(layout, text)
    assert "But it has 32 images and no folder; sort them into one folder per class" in text
    for name in ("cat", "dog"):
        write_image(tmp_path / "classes" / name / "0")
    text = refusal(tmp_path / "classes")
    assert re.search(layout, text)
    assert "the folders cat, dog, with images; if these are the classes, move them into train" in text
    folder_tree(tmp_path / "whole")
    text = refusal(tmp_path / "whole/train")
    assert f"give the folder that holds train, {tmp_path / 'whole'}, if these are the classes" in text
    for split in ("train", "val"):
        write_image(tmp_path / "unsorted" / split / "0")
    text = refusal(tmp_path / "unsorted")
    assert f"{tmp_path / 'unsorted/train'} must hold one folder per class" in text
    assert "but has 1 image and no folder; sort them" in text


def test_folder_that_is_not_there_or_not_named(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        open_data("folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="--root"):
        open_data("folder")
    with pytest.raises(DataError, match=r"must hold a folder named train: .* But it has nothing\."):
        open_data("folder", tmp_path)


def test_a_listed_file_that_is_gone_is_an_error_not_a_damaged_image(tmp_path):
    data = open_data("folder", folder_tree(tmp_path))
    Path(data.train.name(1)).unlink()
    with pytest.raises(DataError, match="does not exist"):
        data.train.image(1)


# ------------------------------------------------------------------------------------------------- ImageNet-100


def imagenet_tree(root: Path, train=("train",), test="val", others=("n01440764", "n09999999")) -> Path:
    """Every class once in each split; the classes spread over several training folders if there are several."""
    for number, name in enumerate((*class_ids(), *others)):
        write_image(root / train[number % len(train)] / name / f"{name}_1", number, ".JPEG")
        write_image(root / test / name / f"ILSVRC2012_val_{number:08d}", number, ".JPEG")
    return root


def test_the_class_list_is_the_published_one():
    names = class_ids()
    assert len(set(names)) == 100
    assert list(names) == sorted(names)
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in names)
    # Four that CMC's list is known to hold.
    assert {"n02869837", "n01749939", "n02488291", "n13037406"} <= set(names)


@pytest.mark.parametrize("layout", ["imagenet", "archive", "split", "parts"])
def test_imagenet100_in_every_layout_gives_the_same_labels(tmp_path, layout):
    root = tmp_path
    if layout == "imagenet":
        imagenet_tree(root)
    elif layout == "archive":
        imagenet_tree(root / "ILSVRC/Data/CLS-LOC")
    elif layout == "split":
        imagenet_tree(root, others=())
    else:
        imagenet_tree(root, tuple(f"train.X{i}" for i in range(1, 5)), "val.X", others=())
    data = open_data("imagenet100", root)
    assert data.classes == class_ids()
    assert len(data.train) == len(data.test) == 100
    found = {Path(data.train.name(i)).parent.name: data.train.label(i) for i in range(100)}
    assert found == {name: number for number, name in enumerate(class_ids())}


def test_imagenet100_says_which_classes_are_missing(tmp_path):
    imagenet_tree(tmp_path)
    gone = tmp_path / "train" / class_ids()[5]
    next(gone.iterdir()).unlink()
    with pytest.raises(DataError, match=f"these are empty: {class_ids()[5]}"):
        open_data("imagenet100", tmp_path)
    gone.rmdir()
    with pytest.raises(DataError, match=f"but 1 are missing: {class_ids()[5]}"):
        open_data("imagenet100", tmp_path)


def test_imagenet100_explains_a_flat_validation_folder(tmp_path):
    imagenet_tree(tmp_path, test="sorted")
    write_image(tmp_path / "val/ILSVRC2012_val_00000001", suffix=".JPEG")
    with pytest.raises(DataError, match=r"is flat.*torchvision.datasets.ImageNet"):
        open_data("imagenet100", tmp_path)


# ------------------------------------------------------------------------------------------ Aircraft and Flowers


def aircraft_tree(root: Path) -> Path:
    """fgvc-aircraft-2013b as published: data/images, variants.txt, and one list per split and level."""
    data = root / "fgvc-aircraft-2013b/data"
    lists = {"trainval": ["0000001", "0000002", "0000003"], "test": ["0000004"], "train": [], "val": []}
    variants = {"0000001": "707-320", "0000002": "A380", "0000003": "707-320", "0000004": "A380"}
    families = {"707-320": "Boeing 707", "A380": "A380"}
    for number, name in enumerate(variants):
        write_image(data / "images" / name, number, ".jpg")
    (data / "variants.txt").write_text("707-320\nA380\n")
    (data / "families.txt").write_text("A380\nBoeing 707\n")
    for split, names in lists.items():
        lines = [f"{name} {variants[name]}\n" for name in names]
        (data / f"images_variant_{split}.txt").write_text("".join(lines))
        lines = [f"{name} {families[variants[name]]}\n" for name in names]
        (data / f"images_family_{split}.txt").write_text("".join(lines))
    return root


def test_aircraft_takes_the_official_splits(tmp_path):
    data = open_data("aircraft", aircraft_tree(tmp_path))
    assert data.classes == ("707-320", "A380")
    assert [label for _, label in data.train] == [0, 1, 0]
    assert [label for _, label in data.test] == [1]
    assert data.test.name(0).endswith("0000004.jpg")
    families = open_data("aircraft", tmp_path, level="family")
    assert families.classes == ("A380", "Boeing 707")
    assert [label for _, label in families.train] == [1, 0, 1]


def flowers_tree(root: Path, monkeypatch) -> Path:
    """flowers-102 as published: jpg/image_00001.jpg …, imagelabels.mat and setid.mat with 1-based numbers."""
    savemat = pytest.importorskip("scipy.io").savemat
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    for number in range(1, 6):
        write_image(folder / "jpg" / f"image_{number:05d}", number, ".jpg")
    savemat(folder / "imagelabels.mat", {"labels": [[77, 1, 102, 5, 6]]})
    savemat(folder / "setid.mat", {"trnid": [[3, 1]], "valid": [[5, 2]], "tstid": [[4, 5]]})
    # torchvision knows the checksums of the two published files; these are not they.
    sums = {
        name: (entry[0], hashlib.md5((folder / entry[0]).read_bytes()).hexdigest())
        for name, entry in Flowers102._file_dict.items()
        if name != "image"
    }
    monkeypatch.setattr(Flowers102, "_file_dict", Flowers102._file_dict | sums)
    return root


def test_flowers102_joins_train_and_val(tmp_path, monkeypatch):
    data = open_data("flowers102", flowers_tree(tmp_path, monkeypatch))
    assert len(data.classes) == 102
    assert data.classes[0] == "pink primrose"
    assert [data.train.label(i) for i in range(4)] == [101, 76, 5, 0]
    assert [Path(data.train.name(i)).name for i in range(4)] == [f"image_0000{n}.jpg" for n in (3, 1, 5, 2)]
    assert [label for _, label in data.test] == [4, 5]


@pytest.mark.parametrize("name", ["aircraft", "flowers102"])
def test_nothing_is_downloaded_unasked(tmp_path, name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match="--download"):
        open_data(name, tmp_path)
    with pytest.raises(DataError, match="--root"):
        open_data(name)


# ----------------------------------------------------------------------------------------- digits and Fashion-MNIST


def test_digits_are_all_there_and_split_once():
    sklearn = pytest.importorskip("sklearn.datasets")
    data = open_data("digits")
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.classes == tuple("0123456789")
    whole = sklearn.load_digits()
    assert [data.test.label(i) for i in range(360)] == whole.target[::5].tolist()
    image = np.asarray(data.test.image(1))
    assert image.shape == (8, 8, 3)
    assert (image[..., 0] == np.round(whole.images[5] * 255 / 16)).all()


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def fashion_tree(root: Path, packed: bool = False, train: int = 6, test: int = 3) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("t10k", test)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, :8] = images[:, 20:] = images[:, :, :8] = images[:, :, 20:] = 0
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, values in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
            if packed:
                (root / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
            else:
                (root / name).write_bytes(idx(values))
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_from_idx_files(tmp_path, packed):
    data = open_data("fashion-mnist", fashion_tree(tmp_path, packed))
    assert (len(data.train), len(data.test)) == (6, 3)
    draw = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    image, label = data.train[4]
    assert label == 4
    assert (np.asarray(image)[10:20, 10:20, 2] == draw[4, 10:20, 10:20]).all()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_is_whole():
    data = open_data("fashion-mnist")
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert np.bincount([data.test.label(i) for i in range(10000)]).tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with"),
        (b"\x89PNG" + b"\0" * 40, "begins with 89 50 4e 47"),
        (bytes([0, 0, 13, 1]) + b"\0" * 8, "unsigned bytes"),
        (bytes([0, 0, 8, 3, 0, 0]), "as its header says"),
        (idx(np.zeros((2, 3, 3), np.uint8))[:-1], r"must hold \(2, 3, 3\) bytes .* but holds 17"),
        (idx(np.zeros(4, np.uint8)) + b"\0", "but holds 5"),
    ],
)
def test_a_file_that_is_no_whole_idx_file_is_refused(tmp_path, content, message):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_a_torn_gzip_file_is_refused(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(np.arange(100, dtype=np.uint8)))[:-12])
    with pytest.raises(DataError, match="whole gzip file"):
        read_idx(path)


def test_fashion_mnist_refuses_files_that_do_not_belong_together(tmp_path):
    fashion_tree(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(5, np.uint8)))
    with pytest.raises(DataError, match=r"\(6, 28, 28\) and \(5,\)"):
        open_data("fashion-mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.full(6, 10, np.uint8)))
    with pytest.raises(DataError, match="one is 10"):
        open_data("fashion-mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        open_data("fashion-mnist", tmp_path)


# ------------------------------------------------------------------------------------------ garments on photographs


@pytest.fixture
def photos(tmp_path):
    root, backgrounds = tmp_path / "idx", tmp_path / "photographs"
    root.mkdir()
    draw = np.random.default_rng(1)
    for name in ("a", "b", "c"):
        backgrounds.mkdir(exist_ok=True)
        # Strong colours: no garment pixel, being grey, can be mistaken for a background pixel.
        pixels = np.stack([draw.integers(180, 256, (80, 90)), draw.integers(0, 60, (80, 90)), np.zeros((80, 90))], -1)
        Image.fromarray(pixels.astype(np.uint8)).save(backgrounds / f"{name}.png")
    return open_data("fashion-mnist-photos", fashion_tree(root), backgrounds=str(backgrounds), size=64)


def test_the_mask_is_exactly_where_the_garment_shows(photos):
    for i in range(len(photos.train)):
        pixels = np.asarray(photos.train.image(i)).astype(int)
        mask = photos.train.mask(i)
        assert pixels.shape == (64, 64, 3)
        assert mask.shape == (64, 64)
        grey = (pixels[..., 0] == pixels[..., 1]) & (pixels[..., 1] == pixels[..., 2])
        assert (grey == mask).all()
        # The garment is 12 of 28 pixels wide here, scaled to between 32/28 and 48/28, less cloth darker than a speck.
        assert 0.5 * 12**2 * (32 / 28) ** 2 < mask.sum() <= (13 * 48 / 28) ** 2


def test_no_black_rim_is_mixed_into_the_garment():
    garment = np.zeros((1, 28, 28), np.uint8)
    garment[0, 6:20, 5:21] = 200
    garment[0, 2, 2] = SPECKS  # no cloth
    images = GarmentsOnPhotographs(garment, np.zeros(1), [Image.new("RGB", (90, 80), "red")], 64, 0)
    pixels, mask = np.asarray(images.image(0)), images.mask(0)
    assert (pixels[mask] == 200).all()
    assert (pixels[~mask] == (255, 0, 0)).all()
    rows, columns = np.nonzero(mask)
    assert mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # a rectangle, as the garment is
    assert np.ptp(columns) + 1 == pytest.approx((np.ptp(rows) + 1) * 16 / 14, abs=2)


def test_an_image_depends_on_split_and_index_alone(photos):
    first = [np.asarray(photos.train.image(i)) for i in range(6)]
    again = [np.asarray(photos.train.image(i)) for i in reversed(range(6))][::-1]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first[0] == first[1]).all()
    assert not (photos.train.mask(0) == photos.test.mask(0)).all()


def test_backgrounds_of_the_splits_differ(photos):
    def photographs(images):
        return {np.asarray(photograph).tobytes() for photograph in images.photographs}

    assert photographs(photos.train).isdisjoint(photographs(photos.test))


def test_bundled_photographs_are_the_default(tmp_path):
    pytest.importorskip("skimage")
    data = open_data("fashion-mnist-photos", fashion_tree(tmp_path))
    assert data.train.image(0).size == (112, 112)
    assert (len(data.train.photographs), len(data.test.photographs)) == (4, 2)


def test_too_few_photographs_are_refused(tmp_path):
    write_image(tmp_path / "p/small")
    with pytest.raises(DataError, match=r"holds 1, of which too small: .*small\.png"):
        open_data("fashion-mnist-photos", fashion_tree(tmp_path), backgrounds=str(tmp_path / "p"))
    with pytest.raises(DataError, match="at least 28"):
        open_data("fashion-mnist-photos", tmp_path, size=20)


# ------------------------------------------------------------------------------------------------- Hugging Face


def hub_folder(root: Path, labels, feature, test="test", image="image", label="label") -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({image: datasets.Image(), label: feature(datasets)})
    files = [str(write_image(root.parent / "pictures" / str(i), i)) for i in range(4)]
    for split, rows in (("train", slice(0, 3)), (test, slice(3, 4))):
        table = datasets.Dataset.from_dict({image: files[rows], label: labels[rows]}, features=features)
        root.mkdir(exist_ok=True)
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


def test_hugging_face_data_set_with_class_labels(tmp_path):
    root = hub_folder(tmp_path / "set", [1, 0, 1, 1], lambda d: d.ClassLabel(names=["cat", "dog"]))
    data = open_data(f"hf:{root}", tmp_path / "cache")
    assert data.classes == ("cat", "dog")
    assert [label for _, label in data.train] == [1, 0, 1]
    assert data.train.image(2).getpixel((0, 0)) == colour(2)
    assert data.test.image(0).getpixel((0, 0)) == colour(3)
    assert data.test.name(0).endswith("test, row 0")


def test_hugging_face_labels_that_are_words_are_numbered(tmp_path):
    root = hub_folder(
        tmp_path / "set", ["dog", "cat", "eel", "dog"], lambda d: d.Value("string"), "validation", "img", "kind"
    )
    with pytest.raises(DataError, match=r"label_column\) must be named: none was recognised among img, kind"):
        open_data(f"hf:{root}", tmp_path / "cache")
    data = open_data(f"hf:{root}", tmp_path / "cache", label_column="kind")
    assert data.classes == ("cat", "dog", "eel")
    assert [data.train.label(i) for i in range(3)] == [1, 0, 2]
    assert data.test.label(0) == 1


def test_hugging_face_images_are_read_by_the_rules_of_files(tmp_path):
    root, picture = tmp_path / "set", tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(picture)
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    root.mkdir()
    for split in ("train", "test"):
        rows = {"image": [picture.read_bytes(), b"torn"], "label": [0, 0]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f"{split}-00000-of-00001.parquet")
    train = open_data(f"hf:{root}", tmp_path / "cache").train
    assert train.image(0).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ImageError, match="train, row 1: not an image file"):
        train.image(1)


def test_hugging_face_split_with_hidden_labels_is_refused(tmp_path):
    root = hub_folder(tmp_path / "set", [0, 1, 0, -1], lambda d: d.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(DataError, match="some are -1"):
        open_data(f"hf:{root}", tmp_path / "cache")


def test_hugging_face_name_that_is_not_cached_is_not_downloaded(tmp_path, monkeypatch):
    pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with pytest.raises(DataError, match="or allow the download with --download"):
        open_data("hf:entropatch-no-such/data-set", tmp_path)


# ------------------------------------------------------------------------------------------------- names and limits


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"imagenet100, imagenette, .*hf:NAME, but got 'cifar'"):
        open_data("cifar")
    with pytest.raises(TypeError, match="takes the options level, but got levle"):
        open_data("aircraft", levle="family")
    with pytest.raises(TypeError, match="takes no options, but got level"):
        open_data("digits", level="family")


def test_a_limit_takes_the_same_images_every_time():
    pytest.importorskip("sklearn")
    some = open_data("digits", train_limit=50, test_limit=20)
    more = open_data("digits", train_limit=60)
    assert (len(some.train), len(some.test)) == (50, 20)
    assert some.train.places == more.train.places[:50]
    assert len(set(some.train.places)) == 50
    assert some.train.places != sorted(some.train.places)
    with pytest.raises(ValueError, match=r"test_limit must lie in 1 … 360.* but got 361"):
        open_data("digits", test_limit=361)
    with pytest.raises(IndexError):
        some.train[50]
