"""What a pruned model carries, and how it is asked for: the setting, and who observes its forward passes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from entropatch.attention import BlockAttention
from entropatch.config import PruneConfig, Stage
from entropatch.criteria import Criterion
from entropatch.criteria.learned import LearnedCriterion, Note
from entropatch.surgery.adapters.base import Adapter
from entropatch.surgery.reduced import Reduced
from entropatch.surgery.wrappers import inside
from entropatch.tokens import Tokens

ATTRIBUTE = "_entropatch"
PREFIX = "entropatch"  # the module of a pruned model that holds the weights of a method that has its own


class Recorder(Protocol):
    """A trace, as a forward pass sees it."""

    thread: int

    def begin(self, config: PruneConfig, grid: tuple[int, ...], num_prefix_tokens: int) -> None: ...
    def end(
        self, config: PruneConfig, grid: tuple[int, ...], num_prefix_tokens: int, reduced: list[Reduced]
    ) -> None: ...
    def again(self) -> Callable[[], None]: ...


class Sharer(Protocol):
    """What forward passes of one batch share, as a forward pass sees it; see `entropatch.surgery.sharing`."""

    thread: int

    def resume(self, pruning: Pruning, recorded: bool) -> tuple[int, list[Any], list[Any]]: ...
    def keep(
        self, pruning: Pruning, recorded: bool, block: int, streams: Sequence[Any], reduced: Sequence[Any]
    ) -> None: ...


class Learner(Protocol):
    """A method's own loss, as a forward pass sees it; see `entropatch.method_loss`."""

    thread: int

    def end(self, notes: list[Note], streams: Sequence[Any]) -> None: ...


@dataclass
class Watch:
    """Somebody who looks at the attention of blocks while the model runs.

    Attributes:
        look: called with each block's attention and what its tokens stand for.
        blocks: which blocks; None for all.
        gradients: whether what `look` computes carries gradients.
        thread: identifier of the thread whose forward passes are watched.
        grid: (H, W), the patch grid of the last input.
    """

    look: Callable[[BlockAttention, Tokens], object]
    blocks: frozenset[int] | None
    gradients: bool
    thread: int
    grid: tuple[int, ...] | None = None


class Observers:
    """The traces and watches open on one model.

    They follow the forward passes of the thread that opened them, so threads that share a model do not mix. Copies and
    pickles of a model have none: a trace belongs to the `with` block that opened it.
    """

    def __init__(self) -> None:
        self.traces: list[Recorder] = []
        self.watches: list[Watch] = []
        self.shared: list[Sharer] = []
        self.learners: list[Learner] = []
        self.lent: PruneConfig | None = None  # the setting of a stock model, while it is watched

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Observers, ()

    def recorder(self) -> Recorder | None:
        """The trace this thread opened last."""
        mine = _of_this_thread(self.traces)
        return mine[-1] if mine else None

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """What was recorded stays so, although hooks of what follows the blocks may run the model again."""
        recorder = self.recorder()
        if recorder is None:
            yield
            return
        bring_back = recorder.again()
        try:
            yield
        finally:
            bring_back()

    def sharer(self) -> Sharer | None:
        """What this thread's passes share, if nobody looks at their blocks."""
        if torch.compiler.is_compiling() or not self.shared or torch.is_grad_enabled() or self.watching():
            return None
        mine = _of_this_thread(self.shared)
        return mine[-1] if mine else None

    def learning(self) -> list[Learner]:
        """The losses this thread gathers for."""
        return _of_this_thread(self.learners)

    def watching(self) -> list[Watch]:
        """The watches this thread opened."""
        return _of_this_thread(self.watches)


Observer = TypeVar("Observer", Recorder, Watch, Sharer, Learner)


def _of_this_thread(observers: list[Observer]) -> list[Observer]:
    if not observers or torch.compiler.is_compiling():  # compiled code cannot ask for its thread
        return observers
    thread = threading.get_ident()
    return [observer for observer in observers if observer.thread == thread]


def this_thread() -> int:
    """Identifier of the thread; 0 in compiled code, which cannot ask."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


@contextmanager
def among(observers: list[Observer], observer: Observer) -> Iterator[Observer]:
    """Let `observer` follow the forward passes while the block runs."""
    observers.append(observer)
    try:
        yield observer
    finally:
        remove(observers, observer)


def remove(observers: list[Observer], observer: Observer) -> None:
    """Take one out by identity, since equal observers may be open at once."""
    observers[:] = [other for other in observers if other is not observer]


@dataclass(frozen=True)
class Pruning:
    """What a pruned model carries; replaced as a whole when the setting changes.

    Attributes:
        config: the setting.
        adapter: of the model's library.
        stages: what each block does, by its index; None for a block that only computes.
        observers: the traces and watches open on the model.
        reads: what is read of its tokens afterwards: one of `entropatch.surgery.adapters.base.READS`.
        unsound: what is wrong with blocks that must not be given fewer tokens, by their index.
        followers: the criteria that follow each block, by its index, each after its `Criterion.state_key`.
        parker: the last stage whose tokens wait until the last block; None if none's do.
        closer: the criterion that changes the tokens behind the last block; None if none does.
    """

    config: PruneConfig
    adapter: Adapter
    stages: tuple[Stage | None, ...]
    observers: Observers
    reads: str = "pooled"
    unsound: Mapping[int, str] = field(default_factory=dict)
    followers: tuple[Mapping[str, Criterion], ...] = field(init=False, repr=False, compare=False)
    parker: Stage | None = field(init=False, repr=False, compare=False)
    closer: LearnedCriterion | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Found once, since compiled code should not look for them.
        after = [self.stages[block:] for block in range(len(self.stages))]
        object.__setattr__(self, "followers", tuple(map(_followers, after)))
        there = [stage for stage in self.stages if stage is not None]
        object.__setattr__(self, "parker", next((one for one in reversed(there) if one.reduction.parks), None))
        learned = [one.criterion for one in there if isinstance(one.criterion, LearnedCriterion)]
        object.__setattr__(self, "closer", next((one for one in learned if one.closes), None))

    @property
    def detours(self) -> bool:
        """Whether tokens wait beside blocks until others have run them."""
        return any(stage is not None and stage.reduction.detours for stage in self.stages)

    @property
    def proportional(self) -> bool:
        """Whether attention counts a token as often as it stands for patches, once tokens were merged."""
        return any(stage is not None and stage.reduction.proportional for stage in self.stages)

    def stage(self, block: int) -> Stage | None:
        """What a block does; None if it only computes."""
        return self.stages[block] if block < len(self.stages) else None

    def followers_of(self, block: int) -> Mapping[str, Criterion]:
        """The criteria that follow a block: those that score it or a later one, and want to see it."""
        return self.followers[block] if block < len(self.followers) else {}


def _followers(stages: Sequence[Stage | None]) -> dict[str, Criterion]:
    scoring = [stage.criterion for stage in stages if stage is not None and stage.reduction.needs_scores]
    return {one.state_key: one for criterion in scoring for one in criterion.followed}


def unwrap(model: nn.Module) -> nn.Module:
    """The pruned module inside wrappers such as torch.compile's or FSDP's; else the module inside torch.compile's."""
    return inside(model, _carries) or getattr(model, "_orig_mod", model)


def _carries(module: nn.Module) -> bool:
    # Where somebody changed the class, what is left of a pruning has no effect.
    pruning = vars(module).get(ATTRIBUTE)
    return isinstance(pruning, Pruning) and pruning.adapter.is_swapped(module)


def is_pruned(model: nn.Module) -> bool:
    """Whether the model is pruned, or the module inside a wrapper such as torch.compile's, or one that it holds."""
    return _carries(unwrap(model)) or any(_carries(part) for part in model.modules())


def pruned_part(model: nn.Module) -> nn.Module:
    """The pruned module: the model, the one inside its wrappers, or the only one that it holds.

    Raises:
        ValueError: it is not pruned, or holds several that are.
    """
    target = unwrap(model)
    if _carries(target):
        return target
    held = {name: part for name, part in model.named_modules() if _carries(part)}
    if not held:
        raise ValueError(f"{type(model).__name__} is not pruned; call entropatch.prune_(model, …) first.")
    if len(held) > 1:
        names = ", ".join(f".{name}" for name in held)
        raise ValueError(
            f"{type(model).__name__} holds {len(held)} pruned models, {names}; give the one that is meant."
        )
    return next(iter(held.values()))


def pruning_of(model: nn.Module) -> Pruning:
    """What the pruned module of a model carries. Errors as of `pruned_part`."""
    return vars(pruned_part(model))[ATTRIBUTE]


def pruning_config(model: nn.Module) -> PruneConfig:
    """The setting a pruned model works with. Raises ValueError for a model that is not pruned.

    A checkpoint of transformers is that of the stock model; the setting goes beside it, and comes back by

        model.save_pretrained("pruned")
        entropatch.pruning_config(model).save("pruned/entropatch.json")

        model = transformers.AutoModelForImageClassification.from_pretrained("pruned")
        entropatch.prune_(model, entropatch.PruneConfig.load("pruned/entropatch.json"))

    A method with weights of its own begins with new ones then; its trained ones are in the same checkpoint:

        safetensors.torch.load_model(model, "pruned/model.safetensors")
    """
    return pruning_of(model).config


def undisturbed(model: nn.Module) -> AbstractContextManager[None]:
    """While a pruned module runs what follows its blocks: what was recorded stays, although hooks may run it again."""
    # Compiled code runs no hooks of that kind, and knows few context managers.
    return nullcontext() if torch.compiler.is_compiling() else vars(model)[ATTRIBUTE].observers.undisturbed()
