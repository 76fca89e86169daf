"""Photographs in: any file Pillow can read as RGB, and the very pixels and tensor a model sees of it."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from entropatch.data.preprocessing import preprocessing_of
from entropatch.error_text import one_line
from entropatch.extras import require

# A picture longer than this is first cut to its middle: a 1×20000 strip scaled to 224 px on its short side would take
# 3 GB, of which the model sees the middle square.
MAX_ASPECT = 32


class ImageError(ValueError):
    """A file that cannot be used as a picture; the message is one line and names it."""


def load_image(path: str | Path) -> Image.Image:
    """The picture in a file as RGB, upright. `read_image` also tells what had to be chosen on the way.

    Raises:
        ImageError: no such file, a folder, not a picture, damaged, or too large; the message names the file.
    """
    return read_image(path)[0]


def read_image(path: str | Path) -> tuple[Image.Image, list[str]]:
    """The picture in a file as RGB, and notes on what was chosen.

    EXIF orientation is applied; transparency is laid on white; CMYK, palette and grey become RGB; 16 bits per channel
    become 8; of several frames or pages the first is taken (a note); floating-point and 32-bit values are stretched
    over the range they span (a note).

    Args:
        path: a file in any format Pillow reads, PostScript excepted.

    Returns:
        The picture in mode "RGB", and a list of notes, mostly empty.

    Raises:
        ImageError: no such file, a folder, not a picture, damaged, or of more than `PIL.Image.MAX_IMAGE_PIXELS`
            pixels; the message names the file.
    """
    path = Path(path)
    _check_file(path)
    return _read(path, printable(path))


def image_from_bytes(content: bytes, name: str) -> Image.Image:
    """The picture in an image file's bytes as RGB, by the rules of `read_image`.

    Raises:
        ImageError: not a picture, damaged, or too large; the message begins with `name`.
    """
    return _read(io.BytesIO(content), name)[0]


def _read(file: Path | IO[bytes], name: str) -> tuple[Image.Image, list[str]]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused below, and of damaged metadata, which the pixels do not depend on.
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                return _decode(image)
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image file that Pillow can read.") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too large: {_one_line(error)}") from error
    except MemoryError as error:
        raise ImageError(f"{name}: too large for the memory of this machine.") from error
    except Exception as error:  # Pillow's decoders let through whatever a damaged file provokes
        raise ImageError(f"{name}: cannot be read as an image: {_one_line(error)}") from error


def cropped(image: Image.Image, model: nn.Module) -> Image.Image:
    """The very pixels a model sees of an RGB image: resized and cropped as timm's data config or its own library says.

    Args:
        image: any size.
        model: a timm model, or one that carries its preprocessing; its own input size counts, not the one its weights
            were published at.

    Returns:
        An RGB image of the model's input size.

    Raises:
        ValueError: the model does not take three channels.
    """
    from torchvision.transforms.functional import to_pil_image

    return to_pil_image(_pixels(image, model))


def to_tensor(image: Image.Image, model: nn.Module) -> Tensor:
    """An RGB image as a model takes it: `cropped`, scaled to [0, 1], less the mean, over the standard deviation.

    Args:
        image: any size.
        model: as in `cropped`; mean, deviation, interpolation and crop are its own.

    Returns:
        (3, H, W), float32; stack several, or add a dimension, to make a batch.

    Raises:
        ValueError: the model does not take three channels.
    """
    from torchvision.transforms.functional import normalize

    own = preprocessing_of(model)
    if own is not None:
        return own.tensor(_middle(image.convert("RGB")))
    config = data_config(model)
    return normalize(_pixels(image, model).float() / 255, config["mean"], config["std"])


def sample_photographs() -> dict[str, Image.Image]:
    """Six photographs that scikit-image and scikit-learn carry in their packages; nothing is downloaded.

    Returns:
        RGB images by name: astronaut, cat, coffee, rocket, china, flower.

    Raises:
        ImportError: a package is missing; the message names the extra to install.
        ImageError: the installed version does not carry one of the files.
    """
    skimage = Path(str(require("skimage", "demo").__file__)).parent / "data"
    sklearn = Path(str(require("sklearn", "demo").__file__)).parent / "datasets" / "images"
    files = {
        "astronaut": skimage / "astronaut.png",
        "cat": skimage / "chelsea.png",
        "coffee": skimage / "coffee.png",
        "rocket": skimage / "rocket.jpg",
        "china": sklearn / "china.jpg",
        "flower": sklearn / "flower.jpg",
    }
    return {name: load_image(path) for name, path in files.items()}


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files named, and for a folder those in it (not below) whose suffix Pillow knows, by name.

    Raises:
        ImageError: a folder without image files. Files are not looked at, so one that is missing is found later.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        known = Image.registered_extensions()
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in known and file.is_file())
        if not found:
            raise ImageError(f"{printable(path)}: a folder without image files; name the files, or another folder.")
        files += found
    return files


def png_texts(path: str | Path) -> dict[str, str]:
    """The texts in an image file's header, by keyword, without decoding its pixels; none for any file without them.

    By them a program tells its own pictures from others, so whatever lies there, damaged or huge, is no error.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except Exception:  # Pillow's readers let through whatever a damaged file provokes
        return {}


def printable(path: str | Path) -> str:
    """The path for a message: as it is, or quoted and escaped if a line break or a control character is in it."""
    return text if (text := str(path)).isprintable() else repr(text)


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ImageError(f"{printable(path)}: no such file.") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{printable(path)}: cannot be opened: {_one_line(error)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{printable(path)}: a folder; name the image files in it.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{printable(path)}: not a regular file.")
    if status.st_size == 0:
        raise ImageError(f"{printable(path)}: the file is empty.")


def _decode(image: Image.Image) -> tuple[Image.Image, list[str]]:
    notes: list[str] = []
    if image.format == "EPS":
        raise ValueError("PostScript is a program, which is not run here; convert it to PNG first.")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(
            f"an image may have {limit:,} pixels, but it has {image.width:,}×{image.height:,}; make it smaller first."
        )
    # A phone's MPO holds a preview or a depth map beside the photograph: no frames in any sense that matters here.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"{frames} frames or pages; the first is used")
        image.seek(0)
    image.load()
    upright = _upright(image, notes)
    return _to_rgb(upright, notes), notes


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata; the pixels are sound
        notes.append("its EXIF orientation is unreadable; shown as stored")
        return image


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _eight_bits(image, notes).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """A grey picture of 16 or 32 bits, or floating point, in 8 bits; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.float64)
    # Older versions of Pillow open a 16-bit PNG in mode "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise ValueError("no pixel has a finite value.")
    low, high = float(finite.min()), float(finite.max())
    notes.append(f"values from {low:g} to {high:g} stretched to 0 … 255")
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-300)
    return Image.fromarray(np.rint(scaled * 255).astype(np.uint8))


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data config of the model, with the input size the model was really built for; or its own in such words."""
    own = preprocessing_of(model)
    if own is not None:
        return own.config
    from timm.data import resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]

    config = resolve_model_data_config(model)
    embed = getattr(model, "patch_embed", None)
    channels = getattr(getattr(embed, "proj", None), "in_channels", config["input_size"][0])
    if channels != 3:
        raise ValueError(f"images are RGB, three channels, but this {type(model).__name__} takes {channels}.")
    size = getattr(embed, "img_size", None)
    return config if size is None else config | {"input_size": (3, *size)}


def _pixels(image: Image.Image, model: nn.Module) -> Tensor:
    """The cropped image as bytes: (3, H, W), uint8."""
    own = preprocessing_of(model)
    if own is not None:
        return own.pixels(_middle(image.convert("RGB")))
    from timm.data import create_transform  # pyright: ignore[reportPrivateImportUsage]

    transform: Any = create_transform(**data_config(model), is_training=False, normalize=False)
    return torch.as_tensor(transform(_middle(image.convert("RGB"))))


def _middle(image: Image.Image) -> Image.Image:
    """The image, its long side cut evenly at both ends to at most `MAX_ASPECT` times the short one."""
    longest = MAX_ASPECT * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = (min(side, longest) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _one_line(error: BaseException) -> str:
    return one_line(error.strerror if isinstance(error, OSError) and error.strerror else error)
