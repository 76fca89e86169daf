"""Options by either number: what a command lists, and what a user may guess."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import typer

from entropatch.cli import COMMANDS, app
from entropatch.cli.spelling import in_known_spelling

for name in COMMANDS:
    import_module(f"entropatch.cli.{name}")
BY_NAME: dict[str, Any] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
GUESSES = {
    "bench": ("--method=evit", "--keep-rate=0.5", "--batch-size=2", "--runtime=compile"),
    "calibrate": ("--batch-sizes=2",),
    "check": ("--order=2", "--method=evit", "--keep-rates=0.5"),
    "demo": ("--keep-rate=0.5",),
    "evaluate": ("--method=evit", "--keep-rate=0.5", "--batch-sizes=2"),
    "export": ("--methods=evit", "--keep-rates=0.5", "--image=a.png"),
    "figures": ("--order=2", "--method=evit", "--keep-rate=0.5"),
    "finetune": ("--methods=evit", "--keep-rates=0.5", "--orders=2", "--seed=1"),
    "search": ("--method=evit", "--keep-rate=0.5", "--batch-sizes=2", "--seed=1"),
    "segment": ("--methods=evit", "--keep-rates=0.5", "--batch-sizes=2", "--seeds=1"),
    "visualize": ("--order=2", "--method=evit", "--keep-rates=0.5"),
}


def options(name: str) -> dict[str, Any]:
    return {option: param for param in BY_NAME[name].params for option in param.opts if option.startswith("--")}


@pytest.mark.parametrize(("name", "guess"), [(name, guess) for name, all_ in GUESSES.items() for guess in all_])
@pytest.mark.parametrize("apart", [False, True])
def test_a_guess_of_the_other_number_is_understood(name, guess, apart):
    option, _, value = guess.partition("=")
    assert option not in options(name)
    listed = option[:-1] if option.endswith("s") else f"{option}s"
    key = options(name)[listed].name

    def given(*words: str) -> Any:
        return BY_NAME[name].make_context(name, list(words), resilient_parsing=True).params[key]

    found = given(option, value) if apart else given(guess)
    assert found == given(listed, value) != given()
    assert f"{option} " not in BY_NAME[name].get_help(typer.Context(BY_NAME[name]))


@pytest.mark.parametrize("name", BY_NAME)
def test_several_values_have_a_plural_name(name):
    """Where values stand between commas the name is plural, but for a setting that is one or one per block."""
    for option, param in options(name).items():
        text = param.help or ""
        if "commas between" in text and option not in ("--compare", "--coverage"):
            assert option.endswith("s") == (not ("one per block" in text and "or one" in text)), option


def test_what_is_known_stays():
    known = ("--methods", "--method-file", "--s")
    assert in_known_spelling(["--method", "a", "--", "--method"], known) == ["--methods", "a", "--", "--method"]
    assert in_known_spelling(["--methods", "a", "method", "-s"], known) == ["--methods", "a", "method", "-s"]
    assert in_known_spelling(["--wait", "--waits"], ("--waits",), ("--wait",)) == ["--wait", "--waits"]
    assert in_known_spelling(["--none", "--nones=1", "--"], known) == ["--none", "--nones=1", "--"]


def test_a_flag_has_one_name():
    with pytest.raises(Exception, match="No such option"):
        BY_NAME["bench"].make_context("bench", ["--amps"])
