"""The backends there are: one file each, and one line here."""

from __future__ import annotations

from entropatch.kernels import flash, reference, streaming
from entropatch.kernels.backend import Backend

# In the order in which "auto" asks them.
BACKENDS: tuple[Backend, ...] = (
    flash.BACKEND,
    streaming.BACKEND,
    reference.BACKEND,
)


def names() -> tuple[str, ...]:
    """What `backend=` may be: "auto", then the backends."""
    return ("auto", *sorted(backend.name for backend in BACKENDS))


def named(name: str) -> Backend:
    """The backend of a name, which `names` knows and which is not "auto"."""
    return next(backend for backend in BACKENDS if backend.name == name)
