"""The folder of one run: its settings, its records, and the lock that keeps a second process out.

run.json            what is trained, on what, how; compared when the run is started again
epochs.jsonl        one record per epoch, with each block's mean attention entropy, over log n, on 16 test images
checkpoints/        to continue from, or a link to where they are; removed when the run is complete, files of others not
best.safetensors    weights of the epoch with the highest top-1 so far
final.safetensors   weights after the last epoch
machine.json        where and with what versions it was trained last
result.json         the outcome; the run is complete when it is there
tensorboard/        curves, also of those entropies by block and head
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from torch import nn

from entropatch.models.checkpoint import fingerprint
from entropatch.records.files import write_text
from entropatch.train.recipe import ADDED, Recipe

# Not compared when a run is continued: data may have moved, and the package may have been updated.
# `learning_rates` follows from the recipe, which is compared.
FREE = ("entropatch", "data.root", "about", "learning_rates")


class RunMismatchError(ValueError):
    """The folder holds a run with other settings, or another process is writing to it."""


class RunBusyError(RunMismatchError):
    """Another process is writing to the folder."""


def check_or_write(path: Path, settings: Mapping[str, Any], write: bool) -> None:
    """Write the settings of a new run, or compare them with those of the run that is there.

    Raises:
        RunMismatchError: a setting differs; the message names each that does.
    """
    if not path.exists():
        if write:
            write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
        return
    there = read_json(path, "the settings of a run")
    differ = differences(there, settings, FREE)
    if differ:
        raise RunMismatchError(
            f"{path.parent} holds a run with other settings: {'; '.join(differ)}. Give another output folder, or the "
            "same settings to continue that run."
        )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file of a run. Raises RunMismatchError, naming the file, if it holds anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunMismatchError(f"{path} is not {what} ({error}); give another output folder.") from error
    if not isinstance(found, dict):
        raise RunMismatchError(f"{path} is not {what} but {str(found)[:60]!r}; give another output folder.")
    return found


def differences(there: Any, here: Mapping[str, Any], free: Sequence[str] = ()) -> list[str]:
    """What differs between noted settings and these: "recipe.epochs is 2 there and 3 here".

    Args:
        there: the settings as they were read from JSON.
        here: these settings, of values JSON can hold.
        free: names that are not compared, nor what is under them.

    Two spellings of the path of one file or folder are no difference, nor is a setting that an earlier version did not
    know, where it is off.
    """
    old, new = _flat(there), _flat(json.loads(json.dumps(here)))
    usual = Recipe().to_dict()
    old = {f"recipe.{name}": usual[name] for name in ADDED if f"recipe.{name}" in new} | old
    ignored = tuple(f"{name}." for name in free)
    return [
        f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not f"{key}.".startswith(ignored)
        and not _is_one_file(old.get(key), new.get(key))
    ]


def _is_one_file(one: Any, other: Any) -> bool:
    """Whether both are paths of the same file or folder, which is there."""
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    try:
        return Path(one).expanduser().samefile(Path(other).expanduser())
    except (OSError, ValueError, RuntimeError):  # not there, no path at all, or of an unknown user's home
        return False


def digest(model: nn.Module) -> str:
    """A fingerprint of names, shapes and values of all parameters and buffers."""
    return fingerprint(model.state_dict())


def write_epochs(path: Path, history: list[dict[str, Any]]) -> None:
    """One JSON record per line; all of them each time, so that a continued run neither repeats nor lacks one."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in history))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder; freed by the system however this process ends.

    Raises:
        RunMismatchError: another process has it, or the lock file is a link or no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has none
        yield
        return
    with _open_lock(folder / ".lock") as file:
        try:
            # lockf, not flock: a lock of this process alone, which its loading processes do not inherit.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise RunBusyError(
                    f"another process is training into {folder}; wait for it, stop it, or give another output folder."
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # some network disks have no locks
                raise
        yield


def _open_lock(path: Path) -> IO[bytes]:
    """The lock file, made if missing. Nothing is ever written to it: by a hard link it may be somebody's file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if not path.is_symlink():
            raise
        raise RunMismatchError(
            f"{path} must be a file of the run, but is a link to {path.readlink()}; remove it."
        ) from error
    file = os.fdopen(descriptor, "rb+", buffering=0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise RunMismatchError(f"{path} must be a file of the run, but is none; remove it.")
    return file


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for k, v in value.items() for key, leaf in _flat(v, f"{name}.{k}" if name else k).items()}
