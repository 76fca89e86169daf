"""Which images came out right, packed: against plain bits, and what is refused."""

import base64
import json

import numpy as np
import pytest

from entropatch.records.correct import (
    CorrectImages,
    aligned,
    packed,
    read_correct,
    same_images,
    unpacked,
    write_correct,
)


def run(bits, tested=None, listing="a" * 64, name="dense"):
    bits = np.array(bits, bool)
    return CorrectImages(listing, np.ones(len(bits), bool) if tested is None else np.array(tested, bool), {name: bits})


@pytest.mark.parametrize("images", [0, 1, 7, 8, 9, 1000])
def test_bits_come_back(images):
    bits = np.random.default_rng(images).random(images) < 0.7
    text = packed(bits)
    number = int.from_bytes(base64.b64decode(text), "big")  # the first image in the highest bit
    width = -(-images // 8) * 8
    assert [bool(number >> (width - 1 - i) & 1) for i in range(images)] == bits.tolist()
    assert (unpacked(text, images) == bits).all()
    assert len(text) <= images / 6 + 4


def test_a_file_holds_all_of_it(tmp_path):
    rng = np.random.default_rng(0)
    found = CorrectImages(
        "ab", rng.random(99) < 0.9, {"dense": rng.random(99) < 0.8, "Rényi, 0.7": rng.random(99) < 0.7}
    )
    path = write_correct(tmp_path, found)
    assert path.name == "correct.json"
    again = read_correct(tmp_path)
    assert again.listing == "ab"
    assert (again.tested == found.tested).all()
    assert list(again.correct) == ["dense", "Rényi, 0.7"]
    assert all((again.correct[name] == bits).all() for name, bits in found.correct.items())
    assert read_correct(tmp_path / "other") is None


def test_only_what_all_could_test_is_compared():
    a = [run([1, 0, 1, 1]), run([1, 1, 0, 1], [1, 1, 0, 1])]
    b = [run([0, 0, 1, 1], [0, 1, 1, 1])]
    first, second = aligned(a, b)
    assert first.tolist() == [[False, True], [True, True]]
    assert second.tolist() == [[False, True]]


def test_other_lists_and_several_settings_are_not_compared():
    assert same_images([run([1, 0]), run([0, 1])])
    assert not same_images([run([1, 0]), run([1, 0], listing="b" * 64)])
    assert not same_images([run([1, 0]), None])
    assert not same_images([])
    assert not same_images([None])
    with pytest.raises(ValueError, match="of one list of images, but got aaaaaaaa, bbbbbbbb"):
        aligned([run([1, 0])], [run([1, 0], listing="b" * 64)])
    both = CorrectImages("a", np.ones(1, bool), {"one": np.ones(1, bool), "two": np.ones(1, bool)})
    with pytest.raises(ValueError, match="of one setting, but got one, two"):
        aligned([both])
    assert aligned([both.only("two")])[0].tolist() == [[True]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 3000}, "take 375 bytes, but got 1"),
        ({"images": "3"}, "must hold listing, images, tested, correct"),
        ({"tested": "ä"}, "must be base64"),
        ({"correct": {"dense": 5}}, "must be base64"),
        ({"listing": None}, "must hold listing"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    (tmp_path / "correct.json").write_text(json.dumps(run([1, 0, 1]).to_dict() | change))
    with pytest.raises(ValueError, match=message) as refused:
        read_correct(tmp_path)
    assert str(tmp_path / "correct.json") in str(refused.value)
