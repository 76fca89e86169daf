"""Settings shared by all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import settings
from safetensors.torch import save_file

from entropatch import Criterion, Reduction, Schedule

# Wall-clock limits per example make a busy machine fail; `CI` replays the same examples on every run.
settings.register_profile("entropatch", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "entropatch")


@pytest.fixture(scope="module", autouse=True)
def _collections_look_at_what_is_new() -> None:
    """Accelerate and others collect garbage at every turn, which took longer the more the tests before had loaded."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random numbers, alone or in company."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _kinds_end_with_their_test() -> Iterator[None]:
    """A criterion, reduction or schedule that a test defines is known until its end."""
    families = (Criterion, Reduction, Schedule)
    before = [{kind: dict(classes) for kind, classes in family._known.items()} for family in families]
    yield
    for family, known in zip(families, before, strict=True):
        family._known.clear()
        family._known.update(known)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's smallest ViT, "test_vit": 100 patches, 6 blocks."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that handing work to a second thread costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def accelerate_forgets() -> Iterator[None]:
    """Accelerate's settings hold for the whole process: none are there before the test, and none are left by it."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
