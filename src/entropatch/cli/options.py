"""Options that several subcommands share, from text to values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from entropatch.config import PruneConfig

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from entropatch.data import DataSet
    from entropatch.named_method import Method
    from entropatch.train import ModelSpec, Recipe

T = TypeVar("T")


def entries(text: str, kind: Callable[[str], T], option: str) -> tuple[T, ...]:
    """The values between commas. Raises ValueError for one that is not of that kind, or none at all."""
    try:
        found = tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{option} takes values with commas between, but got {text!r}.") from None
    if not found:
        raise ValueError(f"{option} takes at least one value, but got {text!r}.")
    return found


def named_methods(text: str | None) -> tuple[str, ...]:
    """The methods that --methods names, alone or as groups; none if it was not given."""
    from entropatch.methods import expanded_methods

    return () if text is None else expanded_methods(entries(text, str, "--methods"))


def named_configs(paths: Sequence[Path]) -> dict[str, PruneConfig]:
    """The settings in these files, by the names of the files without folder and suffix; of the folders, where several
    files have one name, as calibrated.json does."""
    stems = [path.stem for path in paths]
    found: dict[str, PruneConfig] = {}
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else path.resolve().parent.name
        if name in found:
            raise ValueError(
                f"a setting is called by its file's name, or by its folder's where files have one name, but two are "
                f"called {name}; rename one."
            )
        found[name] = PruneConfig.load(path)
    return found


def names_group(text: str | None) -> bool:
    """Whether --methods names a group, of which a model may refuse some, or nothing."""
    from entropatch.methods import ALL, TRAINING_FREE

    return text is None or bool({ALL, TRAINING_FREE}.intersection(part.strip() for part in text.split(",")))


def pairs(texts: Sequence[str], option: str) -> dict[str, Any]:
    """NAME=VALUE texts as a dictionary; a value is JSON where it can be read as such, and text otherwise."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"{option} takes NAME=VALUE, but got {text!r}.")
        try:
            found[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.replace("-", "_")] = value
    return found


def with_options(changes: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What --set gives, and recipe settings with an option of their own; those not given are None.

    Raises ValueError for one that is given both ways.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if twice := sorted(set(given) & set(changes)):
        option = twice[0].replace("_", "-")
        raise ValueError(f"--{option} and --set {twice[0]}=… say the same; give one of them.")
    return changes | given


def pruning(
    method: str | None,
    keep_rate: str | None,
    blocks: str | None,
    config: Path | None,
    orders: str | None = None,
    coverage: str | None = None,
) -> PruneConfig | None:
    """What --method or --order, --keep-rate, --blocks and --coverage, or --config say; None is dense.

    Each is one value, or one for each block with commas between; those not given are None.

    Raises:
        ValueError: an option would have no effect beside another, or is out of range.
        OSError: the file of --config cannot be read.
    """
    from entropatch.methods import DENSE, PAPER_METHOD, parse_order

    beside = {"--order": orders, "--coverage": coverage, "--keep-rate": keep_rate, "--blocks": blocks}
    if config is not None:
        _refuse_beside("--config says how to prune", {"--method": method, **beside})
        return PruneConfig.load(config)
    if method == DENSE:
        _refuse_beside("--method dense prunes nothing", beside)
        return None
    fields: dict[str, Any] = {}
    if keep_rate is not None:
        fields["keep_rate"] = _one_or_each(keep_rate, float, "--keep-rate")
    if orders is not None:
        if method not in (None, PAPER_METHOD):
            raise ValueError(f"--order names the entropy that scores, and so does --method {method}; give one of them.")
        fields["order"] = _one_or_each(orders, parse_order, "--order")
    else:
        fields["method"] = _one_or_each(method or PAPER_METHOD, str, "--method")
    if coverage is not None:
        fields["coverage"] = _one_or_each(coverage, _side, "--coverage")
    return PruneConfig(blocks=None if blocks is None else entries(blocks, int, "--blocks"), **fields)


def _refuse_beside(why: str, options: Mapping[str, str | None]) -> None:
    """Raise ValueError for options that were given, by name, and would have no effect."""
    if given := [f"{name} {value}" for name, value in options.items() if value is not None]:
        raise ValueError(f"{why}, so {' and '.join(given)} would have no effect; leave out one or the other.")


def check_folder(output: Path) -> None:
    """Raise ValueError for a file in the place of a folder, before anything is done whose results go there."""
    from entropatch.data.images import printable

    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, but {printable(output)} is a file.")


def _one_or_each(text: str, kind: Callable[[str], T], option: str) -> T | tuple[T, ...]:
    found = entries(text, kind, option)
    return found[0] if len(found) == 1 else found


def _side(text: str) -> int | None:
    return None if text == "none" else int(text)


def possible(model: nn.Module, names: Sequence[str], insist: bool, say: Callable[[str], None]) -> list[str]:
    """The methods this model allows. Where they are only the default, the others are left out with a line."""
    from entropatch.look.inspection import possible_methods
    from entropatch.methods import method_label, stand_in

    found, refused = possible_methods(model, names)
    chosen = []
    for name in names:
        if name in found:
            chosen.append(name)
            continue
        if insist:
            raise ValueError(f"{name}: {refused[name]}")
        other = stand_in(name)
        if other is not None and other not in names and other in possible_methods(model, [other, *found])[0]:
            say(f"{method_label(other)} stands in for {method_label(name)}: {refused[name]}")
            chosen.append(other)
        else:
            say(f"{method_label(name)} is left out: {refused[name]}")
    return list(dict.fromkeys(chosen))


def say_untaught(
    rows: Mapping[str, Method | PruneConfig], about: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Name the rows whose method must be trained with the model, where the weights do not say that they were."""
    from entropatch.criteria.learned import LearnedCriterion

    def kinds(row: Method | PruneConfig) -> set[type]:
        method = row.named if isinstance(row, PruneConfig) else row
        every = method is not None and method.trained
        return {type(part[0]) for part in row.parts if every or isinstance(part[0], LearnedCriterion)}

    wanted = {name: found for name, row in rows.items() if (found := kinds(row))}
    if not wanted:
        return
    try:
        taught = kinds(PruneConfig.from_dict(about["prune"])) if about.get("prune") else set()
    except (ValueError, TypeError):  # of a module that was not imported, or a newer version
        taught = set()
    names = [name for name, found in wanted.items() if found - taught]
    if names:
        say(
            f"These weights do not say that they were trained with {'; '.join(names)}; without that, accuracy says "
            "nothing of the method. Train with entropatch finetune --method NAME."
        )


def remarks_on(image: Image, model: nn.Module, name: str) -> list[str]:
    """What to say of an image before it is drawn under a name: little is seen of it, or the name cannot be written."""
    from entropatch.data.views import cropping_note
    from entropatch.figures.fonts import is_legible

    note = cropping_note(image, model)
    remarks = [] if note is None else [note]
    if not is_legible(name):
        remarks.append(
            "no font of this machine has all letters of its name, so the picture spells some out; "
            "install one, such as Noto Sans CJK"
        )
    return remarks


def recipe_of(name: str, changes: dict[str, Any]) -> Recipe:
    """The recipe of that name with changes, as --recipe and --set give them."""
    from entropatch.train import RECIPES

    if name not in RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}, but got {name!r}.")
    known = [entry.name for entry in dataclasses.fields(RECIPES[name])]
    unknown = set(changes) - set(known)
    if unknown:
        raise ValueError(f"--set knows {', '.join(known)}, but got {', '.join(sorted(unknown))}.")
    return dataclasses.replace(RECIPES[name], **changes)


def weights_about(weights: str, model: str | None, data: str | None, library: str | None = None) -> dict[str, Any]:
    """What the weights file says of itself, which must not leave model or data open.

    Another library than timm has weights by name too, which say nothing.
    """
    from entropatch.models.words import WORDS
    from entropatch.train import read_about

    named = weights in WORDS or (library not in (None, "timm") and not Path(weights).is_file())
    about = {} if named else read_about(weights)
    for value, key, option in ((model, "model", "--model"), (data, "data", "--data")):
        if value is None and key not in about:
            raise ValueError(f"{weights} does not say which {key} it belongs to; give {option}.")
    return about


def model_spec(
    about: dict[str, Any],
    weights: str,
    model: str | None,
    drop_path: float,
    arguments: dict[str, Any],
    library: str | None = None,
) -> ModelSpec:
    """The model that is asked for, or that the weights file is of."""
    from entropatch.models.libraries import TIMM, check_library
    from entropatch.models.words import RANDOM_WEIGHTS
    from entropatch.train import ModelSpec

    noted = about.get("model", {})
    start = None if weights == RANDOM_WEIGHTS else weights
    of = library or noted.get("library", TIMM)
    check_library(of)
    return ModelSpec(model or noted["name"], start, drop_path, arguments or noted.get("arguments", {}), of)


def input_side(model: nn.Module) -> int:
    """Side of the square images that a model of another library than timm takes."""
    from entropatch.data.images import data_config

    _, height, width = data_config(model)["input_size"]
    if height != width:
        raise ValueError(f"the model takes images of {height}×{width} pixels, but square ones are needed here.")
    return height


def data_of(
    about: dict[str, Any],
    name: str | None,
    root: Path | None,
    download: bool,
    test_limit: int | None,
    options: dict[str, Any],
    train_limit: int | None = None,
) -> DataSet:
    """The data set that is asked for; where it is the one trained on, with what was said of it then."""
    from entropatch.data import open_data

    trained = about.get("data", {})
    name = str(name or trained["name"])
    if name == trained.get("name"):
        options = trained.get("options", {}) | options
        root = root or trained.get("root")
    return open_data(name, root, download=download, train_limit=train_limit, test_limit=test_limit, **options)
