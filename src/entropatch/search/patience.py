"""A study's database that waits where it is locked or away, rather than lose a trial that is about to end."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from entropatch.error_text import one_line
from entropatch.extras import require

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

LOCK_SECONDS = 10.0  # how long SQLite itself waits for a lock
PATIENCE_SECONDS = 600.0  # how long it is tried again
LONGEST_PAUSE = 5.0


class StudyUnreachableError(OSError):
    """The study's database was locked or away for too long. What is finished is noted, and the search can go on."""


def patient_storage(address: str, on_text: Callable[[str], None], **arguments: Any) -> RDBStorage:
    """Optuna's storage of that address, each of whose calls is tried again while the database is locked or away.

    A call that failed so was rolled back. Should the connection have been lost between a change and its confirmation,
    the change is made twice at worst: a second trial of a setting gives way to the first, and a claim that nobody
    signed is taken back.

    Args:
        address: as Optuna takes it.
        on_text: told in a line when the waiting begins and when it ends.
        **arguments: of `RDBStorage`.
    """
    return _patient_class()(address, **arguments)._told(on_text)


@functools.cache
def _patient_class() -> Any:
    optuna = require("optuna", "search")
    from optuna.storages import RDBStorage

    class PatientStorage(RDBStorage):
        def __init__(self, *arguments: Any, **named: Any):
            self._patience = Patience(lambda text: None)
            with self._patience.off():  # the making of tables has its own rule
                super().__init__(*arguments, **named)

        def _told(self, on_text: Callable[[str], None]) -> PatientStorage:
            self._patience.on_text = on_text
            return self

        def record_heartbeat(self, trial_id: int) -> None:
            # One beat less does no harm; an error would end the thread, and with it all further beats.
            with contextlib.suppress(StudyUnreachableError, optuna.exceptions.StorageInternalError):
                beat(self, trial_id)

    beat = _patiently(RDBStorage.record_heartbeat)
    for name, function in list(RDBStorage.__dict__.items()):
        if inspect.isfunction(function) and not name.startswith("__") and name != "record_heartbeat":
            setattr(PatientStorage, name, _patiently(function))
    return PatientStorage


def _patiently(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return self._patience.insist(lambda: function(self, *arguments, **named))

    return call


class Patience:
    """Tries a call again while a database is locked or away; of calls within each other, the outermost alone.

    Args:
        on_text: told in a line when the waiting begins and when it ends.
    """

    def __init__(self, on_text: Callable[[str], None]):
        self.on_text = on_text
        self._inside = threading.local()
        self._in_vain = False  # nothing has been reached since the patience ran out
        self._waiting, self._lock = False, threading.Lock()

    def off(self) -> Any:
        """A context in which calls of this thread are made once."""
        return _Inside(self._inside)

    def insist(self, call: Callable[[], Any]) -> Any:
        """The call's value. Raises StudyUnreachableError if the database stays locked or away for too long."""
        if getattr(self._inside, "depth", 0):
            return call()
        since, pause = time.monotonic(), 0.0
        while True:
            try:
                with self.off():
                    value = call()
                break
            except Exception as error:
                reason = unreachable(error)
                if reason is None:
                    raise
                if self._in_vain or time.monotonic() - since > PATIENCE_SECONDS:
                    self._in_vain = True
                    raise StudyUnreachableError(
                        f"the study's database could not be reached for {PATIENCE_SECONDS:g} s: {reason}. What is "
                        "finished is noted in it; free it, and start the same command again."
                    ) from error
                self._tell(
                    True, f"the study's database cannot be reached, {reason}: waiting up to {PATIENCE_SECONDS:g} s"
                )
                pause = min(2 * pause + 0.1, LONGEST_PAUSE)
                time.sleep(pause)
        self._tell(False, "the study's database answers again")
        self._in_vain = False
        return value

    def _tell(self, waiting: bool, text: str) -> None:
        """Once when the waiting begins and once when it ends, whichever threads wait."""
        with self._lock:
            before, self._waiting = self._waiting, waiting
        if before != waiting:
            self.on_text(text)


class _Inside:
    def __init__(self, local: threading.local):
        self.local = local

    def __enter__(self) -> None:
        self.local.depth = getattr(self.local, "depth", 0) + 1

    def __exit__(self, *error: object) -> None:
        self.local.depth -= 1


def unreachable(error: BaseException) -> str | None:
    """Why the database is locked or away, in a line, if that is what the error says; else None."""
    from sqlalchemy.exc import DBAPIError, OperationalError

    found: BaseException | None = error
    while found is not None and not isinstance(found, DBAPIError):
        found = found.__cause__
    if found is None:
        return None
    text = one_line(found.orig or found, first=True)
    lite = type(found.orig).__module__.startswith("sqlite3")
    away = ("locked" in text or "busy" in text) if lite else isinstance(found, OperationalError)
    return text if away or found.connection_invalidated else None
