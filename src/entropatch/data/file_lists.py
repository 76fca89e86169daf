"""Lists of file names that say which images a figure was measured on, and the images they name.

A list is a text file with a line for each image,

    train/<class>/<file>
    test/<class>/<file>

in the order in which they are used; empty lines and those that begin with # are passed over. A file counts by its name
without suffix, so a list fits the official archive as well as a copy saved in another format.
"""

from __future__ import annotations

import filecmp
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from entropatch.data.base import DataError, DataSet, ImageFiles

Line = tuple[str, str, str]  # split, class, file


def open_listed(path: str | Path, folders: Mapping[str, Path]) -> DataSet:
    """The images that a list names, as a data set. Its classes are those of the training lines, sorted.

    Args:
        path: the list.
        folders: the folder of class folders that each split's lines speak of; "train" is the training split, and the
            lines name one other.

    Raises:
        DataError: no such list; a line of another form; a split the data set does not have, or a second test split; a
            class or an image that is not there; an image named twice, or in both splits; splits of different classes.
    """
    text = _text(Path(path).expanduser())
    lines = _lines(text, str(path))
    test = _test_split(lines, folders, path)
    _check_twice(lines, path)
    files = _find(lines, folders, path)
    _check_both(files, path)
    classes = {split: sorted({name for where, name, _ in lines if where == split}) for split in ("train", test)}
    if classes["train"] != classes[test]:
        one, other = set(classes["train"]), set(classes[test])
        raise DataError(
            f"both splits of {path} must name the same classes, but only train has {some(one - other)} and only {test} "
            f"{some(other - one)}."
        )
    numbers = {name: number for number, name in enumerate(classes["train"])}

    def images(split: str) -> ImageFiles:
        chosen = [line for line in lines if line[0] == split]
        return ImageFiles([files[line] for line in chosen], [numbers[name] for _, name, _ in chosen])

    about = {"split_sha256": hashlib.sha256(text.encode()).hexdigest()}
    return DataSet(tuple(numbers), images("train"), images(test), about)


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of the names, sorted, and how many more there are."""
    listed = sorted(names)
    if not listed:
        return "nothing"
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"the list {path} cannot be read: {what}; split=… takes a text file of names.") from error


def _lines(text: str, path: str) -> list[Line]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.strip().split("/")
        if not line.strip() or line.startswith("#"):
            continue
        if len(parts) != 3 or not all(part.strip(".") for part in parts):
            raise DataError(f"line {number} of {path} must read <split>/<class>/<file>, but reads {line.strip()!r}.")
        found.append((parts[0], parts[1], parts[2]))
    return found


def _test_split(lines: list[Line], folders: Mapping[str, Path], path: str | Path) -> str:
    """The other split beside train."""
    splits = dict.fromkeys(split for split, _, _ in lines)
    tests = [split for split in splits if split != "train"]
    if "train" not in splits or len(tests) != 1 or tests[0] not in folders:
        allowed = " or ".join(f"{split}/" for split in folders if split != "train")
        raise DataError(
            f"the lines of {path} must begin with train/ and {allowed}, both splits there, but begin with "
            f"{some(f'{split}/' for split in splits)}."
        )
    return tests[0]


def _check_twice(lines: list[Line], path: str | Path) -> None:
    counts = Counter((split, name, Path(file).stem) for split, name, file in lines)
    if twice := ["/".join(image) for image, count in counts.items() if count > 1]:
        raise DataError(f"{path} must name each image once, but names twice {some(twice)}.")


def _find(lines: list[Line], folders: Mapping[str, Path], path: str | Path) -> dict[Line, Path]:
    """The file of each line."""
    there: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for split, name in dict.fromkeys((split, name) for split, name, _ in lines):
        folder, files = folders[split] / name, there.setdefault((split, name), {})
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            files.setdefault(file.stem, []).append(file)
    if unknown := {f"{split}/{name}" for (split, name), files in there.items() if not files}:
        where = " and ".join(sorted({str(folders[split]) for split, _, _ in lines}))
        raise DataError(f"{path} names classes of which {where} holds no image: {some(unknown)}.")
    found, missing = {}, []
    for line in lines:
        same = there[line[:2]].get(Path(line[2]).stem, [])
        exact = [file for file in same if file.name == line[2]]
        if len(exact or same) == 1:
            found[line] = (exact or same)[0]
        else:
            missing.append("/".join(line))
    if missing:
        raise DataError(
            f"{path} names {len(missing)} images that are not there, or of which several files may be meant: "
            f"{some(missing)}. The list must be of this data set, and its folder whole."
        )
    return found


def _check_both(files: Mapping[Line, Path], path: str | Path) -> None:
    """Raise if an image is trained and tested on; where the splits are two folders, by its name and content."""
    train = {(name, Path(file).stem): found for (split, name, file), found in files.items() if split == "train"}
    both = [
        f"{name}/{file}"
        for (split, name, file), found in files.items()
        if split != "train"
        and (other := train.get((name, Path(file).stem))) is not None
        and (other == found or filecmp.cmp(other, found, shallow=False))
    ]
    if both:
        raise DataError(f"{path} must not train on what it tests on, but both splits name {some(both)}.")
