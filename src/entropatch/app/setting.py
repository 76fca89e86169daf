"""What was chosen on the page: a method at a keep rate, or a setting that was found."""

from __future__ import annotations

from dataclasses import dataclass

from entropatch.app.calibrating import method_of_config
from entropatch.config import PruneConfig
from entropatch.measure.variants import Variant
from entropatch.methods import Method, find_method


@dataclass(frozen=True)
class Setting(Variant):
    """A method and a keep rate that were chosen on the page; one that takes none has none.

    `given` is a whole setting in place of both, which `method` is then the label of. Raises ValueError for an unknown
    method or a rate out of range.
    """

    given: PruneConfig | None = None

    def __post_init__(self) -> None:
        if self.given is not None:
            return
        if not find_method(self.method).takes_keep_rate:
            object.__setattr__(self, "keep_rate", None)
        self.pruning()

    def pruning(self) -> PruneConfig:
        """What is pruned."""
        config = self.given or self.config()
        assert config is not None
        return config

    @property
    def shown(self) -> Method:
        """The method, or the setting as if it were one."""
        return find_method(self.method) if self.given is None else method_of_config(self.given, self.method)
