"""Which test images came out right, image by image, so that two methods can be compared on the same ones.

Written beside the records as correct.json: {"listing": …, "images": N, "tested": bits, "correct": {name: bits, …}},
bits packed eight to a byte, the first image in the highest bit, in base64: 1,000 images take 168 characters.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropatch.records.files import write_text

CORRECT_FILE = "correct.json"
Bits = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CorrectImages:
    """Which images of one list came out right under several settings.

    Attributes:
        listing: a hash of the list: its names, order and labels. Only what has the same one is compared.
        tested: (images,), False for damaged images, which could not be read.
        correct: by the name of the setting, (images,), False where not tested.
    """

    listing: str
    tested: Bits
    correct: Mapping[str, Bits]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "listing": self.listing,
            "images": len(self.tested),
            "tested": packed(self.tested),
            "correct": {name: packed(bits) for name, bits in self.correct.items()},
        }

    @classmethod
    def from_dict(cls, data: Any) -> CorrectImages:
        """What `to_dict` described. Raises ValueError for anything else."""
        fields = {"listing": str, "images": int, "tested": str, "correct": dict}
        if not isinstance(data, Mapping) or not all(type(data.get(key)) is kind for key, kind in fields.items()):
            raise ValueError(f"which images came out right must hold {', '.join(fields)}, but is {data!r:.60}.")
        images = data["images"]
        bits = {name: unpacked(text, images) for name, text in data["correct"].items()}
        return cls(data["listing"], unpacked(data["tested"], images), bits)

    def only(self, *names: str) -> CorrectImages:
        """The same of these settings alone."""
        return CorrectImages(self.listing, self.tested, {name: self.correct[name] for name in names})


def same_images(runs: Sequence[CorrectImages | None]) -> bool:
    """Whether all are there, and of the same list of images, so that they can be compared image by image."""
    return len({None if run is None else run.listing for run in runs} | {None}) == 2 and None not in runs


def aligned(*methods: Sequence[CorrectImages]) -> list[Bits]:
    """For each method its runs as (seeds, images), on the images that all runs of all of them could test.

    Args:
        methods: each a method's runs of one setting, one per seed.

    Raises:
        ValueError: runs of different lists of images, or of several settings.
    """
    runs = [run for method in methods for run in method]
    if not same_images(runs):
        raise ValueError(f"runs must be of one list of images, but got {', '.join(run.listing[:8] for run in runs)}.")
    if several := [run for run in runs if len(run.correct) != 1]:
        raise ValueError(f"a run must be of one setting, but got {', '.join(several[0].correct)}.")
    tested = np.logical_and.reduce([run.tested for run in runs])
    return [np.stack([next(iter(run.correct.values()))[tested] for run in method]) for method in methods]


def packed(bits: Bits) -> str:
    """Eight to a byte, in base64."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode("ascii")


def unpacked(text: Any, images: int) -> Bits:
    """So many bits of what `packed` wrote. Raises ValueError for anything else."""
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"packed bits must be base64, but got {text!r:.40}.") from error
    if images < 0 or len(data) != -(-images // 8):
        raise ValueError(f"packed bits of {images} images take {-(-images // 8)} bytes, but got {len(data)}.")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=images).astype(bool)


def write_correct(folder: str | Path, found: CorrectImages) -> Path:
    """Write correct.json into the folder, whole or not at all; one setting to a line."""
    path = Path(folder, CORRECT_FILE)
    write_text(path, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return path


def read_correct(folder: str | Path) -> CorrectImages | None:
    """What `write_correct` wrote into the folder; None if there is no such file, as in runs of older versions.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    path = Path(folder, CORRECT_FILE)
    if not path.exists():
        return None
    try:
        return CorrectImages.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} does not say which images came out right: {error}") from error
