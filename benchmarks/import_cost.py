"""What `import entropatch` adds to `import torch`.

python benchmarks/import_cost.py FOLDER
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from entropatch.measure import environment, time_interleaved
from entropatch.records.tables import write_records

STATEMENTS = {"torch": "import torch", "entropatch": "import entropatch"}


def main(folder: Annotated[Path, typer.Argument(help="For import.md, .csv and .json.")]) -> None:
    """Start fresh interpreters in turns, and write what they took."""

    def run(statement: str) -> None:
        subprocess.run([sys.executable, "-c", statement], check=True)

    runs = {name: (lambda statement=statement: run(statement)) for name, statement in STATEMENTS.items()}
    timings = time_interleaved(runs, 1, repeats=15, warmup=2)
    base = timings["torch"].p50_ms
    records = [
        {"statement": STATEMENTS[name], "p50_ms": timing.p50_ms, "p95_ms": timing.p95_ms, "ratio": timing.p50_ms / base}
        for name, timing in timings.items()
    ]
    about = environment() | {"timing": "start of a fresh interpreter included; medians of 15, in turns"}
    paths = write_records(records, folder, "import", title="Cost of the import", about=about)
    sys.stdout.write(paths[0].read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
