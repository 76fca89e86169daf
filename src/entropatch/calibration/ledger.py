"""What was found so far, on disk, so that a calibration that was cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from entropatch.calibration.processes import rank_and_count
from entropatch.config import PruneConfig
from entropatch.records.files import write_text

LOSSES, ABOUT = "losses.jsonl", "calibrating.json"


class Ledger:
    """Losses by setting and batch, and measured costs by setting.

    Args:
        folder: where they are written down as they are found; None keeps them in memory only.
        about: what they hold for: model, images, objective. A folder of anything else is refused.

    Raises:
        ValueError: the folder holds another calibration, or a file of it is damaged.
    """

    def __init__(self, folder: str | Path | None, about: dict[str, Any]):
        self._losses: dict[tuple[str, int], np.ndarray] = {}
        self._costs: dict[str, float] = {}
        self._path = None if folder is None else Path(folder) / LOSSES
        if folder is not None:
            self._open(Path(folder), about)

    def get(self, key: str, batch: int) -> np.ndarray | None:
        return self._losses.get((key, batch))

    def add(self, key: str, config: PruneConfig, batch: int, losses: np.ndarray) -> None:
        self._losses[key, batch] = losses
        self._write({"setting": key, "batch": batch, "losses": losses.tolist(), "label": config.label})

    def cost(self, key: str) -> float | None:
        return self._costs.get(key)

    def add_cost(self, key: str, cost: float) -> None:
        self._costs[key] = cost
        self._write({"setting": key, "cost": cost})

    @staticmethod
    def key(config: PruneConfig) -> str:
        """A short name of a setting."""
        return hashlib.sha256(config.to_json().encode()).hexdigest()[:24]

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ABOUT
        if path.exists():
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is damaged: {error}; remove it to begin anew.") from None
            if not isinstance(held, dict):
                raise ValueError(f"{path} is damaged: it holds no object; remove it to begin anew.")
            changed = sorted(key for key in {*held, *about} if held.get(key) != about.get(key))
            if changed:
                raise ValueError(
                    f"{folder} holds a calibration of something else: {', '.join(changed)} differ; give another folder."
                )
        elif rank_and_count()[0] == 0:
            write_text(path, json.dumps(about, indent=2) + "\n")
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def _read(self, path: Path) -> None:
        *whole, last = path.read_text(encoding="utf-8").split("\n")
        if last and rank_and_count()[0] == 0:  # of a process that was killed while it wrote; it is found again
            write_text(path, "".join(f"{line}\n" for line in whole))
        try:
            for record in map(json.loads, whole):
                if "cost" in record:
                    self._costs[record["setting"]] = float(record["cost"])
                else:
                    self._losses[record["setting"], record["batch"]] = np.array(record["losses"], dtype=np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}; remove it to begin anew.") from None

    def _write(self, record: dict[str, Any]) -> None:
        if self._path is None or rank_and_count()[0] != 0:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
