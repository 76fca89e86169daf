"""The formats there are: one file each, and one line here."""

from __future__ import annotations

from pathlib import Path

from entropatch.export import onnx_format, torch_formats
from entropatch.export.format import Format

FORMATS: dict[str, Format] = {
    one.name: one for one in (onnx_format.FORMAT, torch_formats.TORCH_EXPORT, torch_formats.AOTINDUCTOR)
}


def find_format(name: str | None, path: Path) -> Format:
    """The format of that name, or, without one, the first whose files end as `path` does. Raises ValueError."""
    endings = ", ".join(f"{one.suffix} ({one.name})" for one in FORMATS.values())
    if name is not None and name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, but got {name!r}.")
    found = FORMATS[name] if name else next((one for one in FORMATS.values() if one.suffix == path.suffix), None)
    if found is None or path.suffix != found.suffix:
        raise ValueError(f"the name of an exported file must end in {endings}, but got {path.name!r}.")
    return found
