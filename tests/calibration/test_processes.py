"""Calibration in two processes, each with its share of the images: the answer of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from entropatch.calibration import processes

WORK = """
import json, sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from small_models import create
from entropatch.calibration import Goal, calibrated
dist.init_process_group("gloo")
images = torch.randn(20, 3, 80, 80, generator=torch.Generator().manual_seed(0))
found = calibrated(create("deit"), images, Goal(gflops=0.0016), batch_size=5, effort=0.2, blocks=(1, 2),
                   most_blocks=2, folder=sys.argv[2])
if dist.get_rank() == 0:
    losses = {row.name: row.losses.tolist() for row in found.rows if row.name != "random"}
    print(json.dumps({"config": found.config.to_dict(), "losses": losses}))
dist.destroy_process_group()
"""


def test_shares_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.arange(7.0)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank_and_count", lambda rank=rank: (rank, 3))
        parts.append(processes.share_of(batch).numpy())

    def gather(into: list[Any], value: Any) -> None:
        into[:] = parts

    monkeypatch.setattr(processes.dist, "all_gather_object", gather)
    np.testing.assert_array_equal(processes.gathered(parts[0]), batch.numpy())


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    pytest.importorskip("fvcore")
    found = []
    for count in (1, 2):
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613", "WORLD_SIZE": str(count)}
        command = [sys.executable, "-c", WORK, str(Path(__file__).parents[1]), str(tmp_path / str(count))]
        running = [
            subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        texts = [one.communicate(timeout=300)[0] for one in running]
        assert [one.returncode for one in running] == [0] * count
        found.append(json.loads(texts[0].splitlines()[-1]))
    one, two = found
    assert one["config"] == two["config"]
    for name, losses in one["losses"].items():
        np.testing.assert_allclose(two["losses"][name], losses, rtol=1e-3, atol=1e-6)
