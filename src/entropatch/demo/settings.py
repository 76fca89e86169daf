"""What the demo measures and draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from entropatch.measure.variants import Variant, takes_keep_rate
from entropatch.methods import DENSE, RANDOM, compared_methods, pictured_methods

MADE_BY = "entropatch demo"
STEM, OVERVIEW = "results", "overview"

# The phases of a run, and what is counted in each.
UNITS = {
    "accuracy": "batches and fits",
    "GFLOPs": "models",
    "speed": "timed calls",
    "pictures": "pictures",
}

# Told the phase, the steps done and the steps in all.
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DemoSettings:
    """What the demo measures and draws.

    Args:
        methods: names of `entropatch.methods`; each is a row at every keep rate, after the dense row.
        keep_rates: ρ in (0, 1]. A third one lengthens the demo by a sixth.
        digits: how many of scikit-learn's digits; all 1,797 when None.
        digit_size, digit_batch_size: what they are enlarged to, in pixels, and how many go through the model at a time.
        image_size: input of the speed measurement and the pictures, in pixels.
        batch_size: images per call of the speed measurement.
        repeats, warmup: its timed and untimed rounds.
        photographs: names of `entropatch.data.images.sample_photographs`; all six when None.
        picture_methods, picture_keep_rate: what the pictures show.
        seed: of the choice, order and split of the digits, and of the speed measurement's random images.

    Raises:
        ValueError: an unknown method, a keep rate out of range, or none of either.
    """

    methods: tuple[str, ...] = field(default_factory=lambda: tuple(filter(takes_keep_rate, compared_methods())))
    keep_rates: tuple[float, ...] = (0.7, 0.5)
    digits: int | None = None
    digit_size: int = 112
    digit_batch_size: int = 32
    image_size: int = 224
    batch_size: int = 4
    repeats: int = 7
    warmup: int = 1
    photographs: tuple[str, ...] | None = None
    picture_methods: tuple[str, ...] = field(default_factory=lambda: tuple(pictured_methods((2.0,))))
    picture_keep_rate: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("methods", "keep_rates"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise ValueError(f"{name} must hold at least one entry, but got none.")
            object.__setattr__(self, name, values)
        for method in self.methods:
            if not takes_keep_rate(method):
                raise ValueError(f"methods must take a keep rate, which the demo compares them at, but got {method!r}.")
            for rate in self.keep_rates:
                Variant(method, rate).config()

    @property
    def rows(self) -> dict[str, Variant]:
        """Dense, then every method at each keep rate, each under a name of its own."""
        variants = [Variant(DENSE)]
        variants += [Variant(method, rate) for rate in self.keep_rates for method in self.methods]
        return {f"{variant.method} {variant.keep_rate}": variant for variant in variants}


FULL = DemoSettings()
QUICK = DemoSettings(
    methods=(RANDOM, *pictured_methods((1.0, 2.0))),
    keep_rates=(0.5,),
    digits=240,
    batch_size=2,
    repeats=3,
    photographs=("astronaut", "cat"),
)


def counter(phase: str, total: int, on_step: Step) -> Callable[[], None]:
    """A function that counts its calls and tells `on_step`."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        on_step(phase, done, total)

    on_step(phase, 0, total)
    return step
