"""Damaged weights files: always the promised error in one line that names the file, never weights that differ."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file
from torch.serialization import set_crc32_options

from entropatch.models.checkpoint import WeightsFileError, classes_of, load_weights, read_about, save_weights
from entropatch.models.spec import ModelSpec

ABOUT = {"model": {"name": "test_vit", "arguments": {}}, "classes": 3, "image_size": 16, "data": {"name": "digits"}}


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))


def write(path):
    if path.suffix == ".safetensors":
        save_weights(model(), path, ABOUT)
    else:
        legacy = path.suffix == ".bin"  # of the time before archives
        torch.save({"model": model().state_dict()}, path, _use_new_zipfile_serialization=not legacy)


def damaged(data, draw):
    """One damage: bits, a lost or foreign piece, a swap, an end that is missing."""
    data, place = bytearray(data), draw.randrange(len(data))
    kind = draw.choice(("bit", "bytes", "cut", "lose", "foreign", "zeros", "swap"))
    piece = draw.randint(1, 64)
    if kind == "bit":
        data[place] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        data[place : place + piece] = draw.randbytes(piece)
    elif kind == "cut":
        del data[place:]
    elif kind == "lose":
        del data[place : place + piece]
    elif kind == "foreign":
        data[place:place] = draw.randbytes(piece)
    elif kind == "zeros":
        data[place : place + piece] = bytes(piece)
    else:
        data[:piece], data[place : place + piece] = data[place : place + piece], data[:piece]
    return bytes(data)


def refusal(path):
    """The message of the promised error, if it is raised; any other error passes."""
    try:
        load_weights(path)
        read_about(path)
    except WeightsFileError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_random_damage_is_the_promised_error_or_does_no_harm(tmp_path, name):
    path, draw = tmp_path / name, random.Random(0)
    write(path)
    whole, weights = path.read_bytes(), load_weights(path)
    refused = 0
    for _ in range(400):
        path.write_bytes(damaged(whole, draw))
        error = refusal(path)
        if error is not None:
            refused += 1
            assert str(path) in error
            assert "\n" not in error
            continue
        found = load_weights(path)
        if name != "w.bin":  # the only kind without checksums
            assert found.keys() == weights.keys()
            assert all(torch.equal(value, weights[key]) for key, value in found.items())
    assert refused > 200


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_one_bit_in_a_tensor_is_noticed(tmp_path, name):
    path = tmp_path / name
    write(path)
    data = bytearray(path.read_bytes())
    place = data.find(model()[2].weight.detach().numpy().tobytes())
    assert place > 0
    data[place + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsFileError, match=r"w\.(safetensors|pth) .*damaged"):
        load_weights(path)


def test_files_without_checksums_are_read(tmp_path):
    weights = model().state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    set_crc32_options(False)
    try:
        torch.save(weights, tmp_path / "w.pth")
    finally:
        set_crc32_options(True)
    for name in ("w.safetensors", "w.pth"):
        found = load_weights(tmp_path / name)
        assert all(torch.equal(value, weights[key]) for key, value in found.items())


def test_the_note_comes_back_as_it_was_and_equal_weights_are_equal_files(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_weights(model(), tmp_path / name, ABOUT)
        assert read_about(tmp_path / name) == ABOUT
    assert classes_of(tmp_path / "a.safetensors") == 3
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    "note",
    ["null", "[]", "3", '{"model": 3}', '{"model": {"name": 3}}', '{"classes": "ten"}', '{"data": []}', "[" * 100_000],
)
def test_a_note_that_is_something_else_is_the_promised_error(tmp_path, note):
    path = tmp_path / "w.safetensors"
    save_file(model().state_dict(), path, metadata={"entropatch": note})
    for read in (read_about, load_weights, classes_of):
        with pytest.raises(WeightsFileError, match=r"w\.safetensors") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("state", [{3: torch.ones(2)}, {"model": {0: torch.ones(1)}}, [], torch.ones(3), {"a": None}])
def test_what_is_not_tensors_by_name_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsFileError, match="tensors by name"):
        load_weights(tmp_path / "w.pth")


def test_weights_that_timm_cannot_translate_are_the_promised_error(tmp_path):
    """Names that timm takes for another library's, whose further tensors it then reaches for."""
    for name in ("visual.class_embedding", "mask_token", "pos_embed", "patch_embed.proj.weight"):
        torch.save({name: torch.ones(2)}, tmp_path / "w.pth")
        with pytest.raises(WeightsFileError, match=r"w\.pth does not hold the weights of this VisionTransformer"):
            ModelSpec("test_vit", weights=str(tmp_path / "w.pth")).build(10, 160)


def test_no_such_file_is_the_promised_error(tmp_path):
    for read in (read_about, load_weights, classes_of):
        with pytest.raises(WeightsFileError, match="does not exist"):
            read(tmp_path / "w.safetensors")
    (tmp_path / "note.json").write_text(json.dumps(ABOUT))
    with pytest.raises(WeightsFileError, match="cannot be read as weights"):
        load_weights(tmp_path / "note.json")
