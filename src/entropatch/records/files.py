"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from entropatch.records.owner import is_dead, this_process

# A temporary file is written in seconds. One this old whose writer cannot be asked for, since it ran elsewhere, is left
# over.
LEFT_OVER_SECONDS = 24 * 3600
_TEMPORARY = re.compile(r"\..*\.entropatch-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}(\.[^.]*)?", re.DOTALL)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block ends well and removed when it does not.

    The parent folder is made if missing. The data is on disk before the rename, and the file has the permissions of
    any new file (0666 less the umask), whatever the block did. What a killed process left in the folder under such a
    temporary name is removed.

    Example:
        >>> with replacing("table.json") as temporary:
        ...     temporary.write_text(text)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(path.parent.absolute(), os.getpid())
    # The suffix stays, since writers such as matplotlib's choose the format by it.
    temporary = path.with_name(f".{path.stem[:40]}.entropatch-{_writer()}-{secrets.token_hex(4)}{path.suffix}")
    mode = create(temporary)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # some writers put a file of their own, of mode 0600, in its place
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def create(path: Path) -> int:
    """Make an empty file where there is none, and return its permissions: the system's, by the umask.

    Raises:
        FileExistsError: there is one, or a link.
    """
    # The mode is read back: asking for the umask means setting it, for a moment and for all threads.
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=256)
def remove_left_over(folder: Path, process: int) -> None:
    """Remove the temporary files of `replacing` in a folder whose writers are dead; once per process and folder.

    Only files named as `replacing` names them are touched, never links; a writer of this machine must be gone, and a
    file of another machine's writer a day old.
    """
    del process  # a forked process looks for itself
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and entry.is_file(follow_symlinks=False) and _is_left_over(entry, *found.groups()[:3]):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108


def _is_left_over(entry: os.DirEntry[str], machine: str, pid: str, started: str) -> bool:
    here = this_process()
    if here["machine"] is not None and machine == _short(here["machine"]):
        return is_dead({"machine": here["machine"], "pid": int(pid), "started": int(started)})
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFT_OVER_SECONDS


def _writer() -> str:
    """This process, as part of a file name."""
    here = this_process()
    return f"{_short(here['machine'])}-{here['pid']}-{here['started'] or 0}"


def _short(machine: str | None) -> str:
    return hashlib.sha256(str(machine).encode()).hexdigest()[:8]
