"""benchmarks/scoring_cost.py: cells in processes of their own, taken up where it stopped; its table from records."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scoring_cost(monkeypatch):
    spec = importlib.util.spec_from_file_location("scoring_cost", HERE / "scoring_cost.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scoring_cost", module)  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


def written(folder, name, size, policy, low, high):
    """A record as `entropatch bench` writes it, as far as the table reads it."""
    base = {"batch_size": 1, "rounds": 40, "keep_rate": 0.7}
    middle = (low + high) / 2
    records = [
        {"method": "dense", "label": "Dense", **base, "keep_rate": None, "vs_random": None},
        {"method": "random", "label": "Random", **base, "vs_random": 1.0, "vs_random_low": None},
        {"method": "evit", "label": "EViT", **base, "vs_random": middle, "vs_random_low": low, "vs_random_high": high},
    ]
    records[2]["reaches"] = "yes"
    about = {"image_size": size, "dtype": "float32", "omp_wait_policy": policy, "hardware": "a CPU", "threads": 2}
    about |= {"torch": "2.11", "date": "2026-02-01T10:00:00+00:00", "load_average_before": 0.3, "bar": 0.97}
    (folder / f"{name}.json").write_text(json.dumps({"about": about, "records": records}))


def test_cells_are_run_once_under_both_policies_and_the_rest_is_named(scoring_cost, tmp_path, monkeypatch):
    run = []

    def bench(command, env, **options):
        run.append((command[command.index("--name") + 1], env.get("OMP_WAIT_POLICY"), command))
        if len(run) == 2:
            raise scoring_cost.subprocess.TimeoutExpired(command, 1)
        size = int(command[command.index("--image-size") + 1])
        written(tmp_path, run[-1][0], size, env.get("OMP_WAIT_POLICY"), 0.975, 0.985)
        return SimpleNamespace(returncode=0)

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(scoring_cost.subprocess, "run", bench)
    arguments = [str(tmp_path), "--sizes", "196", "1024", "--batches", "1", "--dtype", "float32"]
    assert scoring_cost.main(arguments) == 124
    names = [f"{size}-batch-1-float32-{policy}" for size in (196, 1024) for policy in ("passive", "unset")]
    assert [one[:2] for one in run] == list(zip(names, ["PASSIVE", None] * 2, strict=True))
    assert [one[2][one[2].index("--model") + 1] for one in run[1:3]] == [
        "vit_small_patch14_dinov2",
        "deit_small_patch16_224",
    ]
    assert {"--until-interval", "--bar"} <= set(run[0][2])
    text = (tmp_path / "scoring-cost.md").read_text()
    assert "not measured: 196-batch-1-float32-unset\n" in text
    assert scoring_cost.main(arguments) == 0
    assert [one[0] for one in run[4:]] == ["196-batch-1-float32-unset"]
    assert "not measured" not in (tmp_path / "scoring-cost.md").read_text()
    scoring_cost.main([*arguments, "--table"])
    assert len(run) == 5


def test_the_table_is_sorted_and_holds_interval_answer_and_policy(scoring_cost, tmp_path):
    written(tmp_path, "1024-batch-1-float32-unset", 1024, None, 0.93, 0.95)
    written(tmp_path, "224-batch-1-float32-passive", 224, "PASSIVE", 0.975, 0.985)
    rows = [line for line in scoring_cost.table(tmp_path).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["px", "batch", "dtype", "keep rate", "OMP_WAIT_POLICY", "rounds", "EViT"]
    assert cells[2:] == [
        ["224", "1", "float32", "0.7", "PASSIVE", "40", "0.980 (0.975 … 0.985): yes"],
        ["1024", "1", "float32", "0.7", "unset", "40", "0.940 (0.930 … 0.950): yes"],
    ]
    assert "measured on: a CPU, 2 threads, torch 2.11, 2026-02-01, load average before 0.3" in scoring_cost.table(
        tmp_path
    )
    assert "Nothing is measured yet" in scoring_cost.table(tmp_path / "none")


def test_a_gpu_has_one_policy(scoring_cost):
    given = scoring_cost.parsed(["--device", "cuda", "--dtype", "bfloat16", "--batches", "1", "64"])
    assert [cell.name for cell in scoring_cost.cells(given)][:2] == [
        "224-batch-1-bfloat16-unset",
        "224-batch-64-bfloat16-unset",
    ]
    assert len(scoring_cost.cells(given)) == 6
