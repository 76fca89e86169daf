"""ToMe's schedules as cuts: how many tokens go where, and that a calibration knows them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import create, photographs

import entropatch
from entropatch import BipartiteMerge, PruneConfig, Renyi
from entropatch.calibration import Goal, calibrated
from entropatch.calibration.proposal import config_of
from entropatch.calibration.spreading import LABELS, spread, spread_within
from entropatch.measure import count_flops

pytestmark = pytest.mark.usefixtures("one_thread")


def removed(cuts: Any, patches: int) -> dict[int, int]:
    found, n = {}, patches
    for cut in cuts:
        found[cut.block] = n - math.ceil(cut.rate * n)
        n -= found[cut.block]
    return found


def test_equally_many_tokens_go_in_each_block() -> None:
    assert removed(spread(196, range(12), 156, False), 196) == dict.fromkeys(range(12), 13)
    assert sum(removed(spread(196, range(12), 100, False), 196).values()) == 100
    assert set(removed(spread(196, range(12), 100, False), 196).values()) == {8, 9}


def test_linearly_fewer_down_to_none() -> None:
    gone = removed(spread(196, range(12), 66, True), 196)
    assert gone == {block: 11 - block for block in range(11)}


def test_no_block_removes_more_than_the_matching_can_pair() -> None:
    n = 25
    for block, gone in removed(spread(25, range(4), 75, True), 25).items():
        assert gone <= n // 2, block
        n -= gone


def test_even_is_tome_by_its_number_of_tokens() -> None:
    model = create("deit")
    images = photographs(model)
    outputs = []
    for config in (config_of(spread(25, range(4), 12, False)), PruneConfig(method="tome", r=3)):
        entropatch.prune_(model, config)
        with torch.no_grad():
            outputs.append(model(images))
    assert torch.equal(*outputs)


def test_both_meet_the_budget_with_as_few_as_they_can() -> None:
    costly: Any = SimpleNamespace(patches=100, of=lambda cuts: 100.0 - sum(removed(cuts, 100).values()))
    for cuts in spread_within(costly, 60.0, range(8)).values():
        assert sum(removed(cuts, 100).values()) == 40
    assert spread_within(costly, 0.5, [3]) == {}  # a single block cannot


def test_a_calibration_stands_beside_tome_and_may_choose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entropatch.calibration.calibrating.offered_criteria", lambda: [Renyi(2.0)])
    monkeypatch.setattr("entropatch.calibration.comparing.compared_methods", lambda: ["tome"])
    model = create("deit")
    images = torch.cat([photographs(model, batch=4) for _ in range(3)]) + torch.randn(12, 1, 1, 1)
    dense = count_flops(model, images[:1]).total / 1e9
    settings: dict[str, Any] = {"batch_size": 6, "effort": 0.0}
    found = calibrated(model, images, Goal(gflops=0.75 * dense), **settings)
    rows = {row.name: row for row in found.rows}
    assert set(LABELS) <= set(rows)
    assert all(rows[name].cost <= 0.75 * dense for name in LABELS)
    assert all(stage.reduction == BipartiteMerge() for stage in rows["tome"].config.stages(4))
    few = calibrated(model, images, Goal(gflops=0.75 * dense), most_blocks=2, **settings)
    assert len(few.config.stages(4)) <= 2
