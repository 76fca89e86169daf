"""How far a pruned model is from the dense one, image by image: the loss that calibration minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropatch.calibration.answers import output
from entropatch.calibration.ledger import Ledger
from entropatch.calibration.processes import gathered
from entropatch.config import PruneConfig
from entropatch.surgery import prune_
from entropatch.surgery.sharing import Shared, sharing

WORST = 1e6  # the loss of an output that is not finite, where the dense model's is
MEMORY = 2**30  # bytes of blocks' inputs that passes share, of all batches together


class Judge:
    """Runs the pruned model on batches of images and says how far its output is from the dense model's.

    Args:
        model: pruned already, in evaluation mode.
        batches: images, (batch, 3, H, W) each; in several processes those of this one.
        objective: one of `entropatch.calibration.answers.OBJECTIVES`.
        ledger: what was found before, and where it is written down.
        on_step: called after each batch, also one that was known already.
    """

    model: nn.Module
    batches: Sequence[Tensor]
    objective: str
    ledger: Ledger
    on_step: Callable[[], None]
    passes: int

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Tensor],
        objective: str,
        ledger: Ledger,
        on_step: Callable[[], None] = lambda: None,
    ):
        self.model, self.batches, self.objective = model, batches, objective
        self.ledger, self.on_step = ledger, on_step
        self.passes = 0
        self._shared = [Shared(MEMORY // max(len(batches), 1)) for _ in batches]
        self._dense: dict[int, Tensor] = {}

    def losses(self, config: PruneConfig, batches: Sequence[int]) -> np.ndarray:
        """The loss of each image of these batches, (images,), float64; in the order of the batches."""
        key, found = self.ledger.key(config), []
        for batch in batches:
            known = self.ledger.get(key, batch)
            if known is None:
                known = gathered(self._run(config, batch))
                self.ledger.add(key, config, batch, known)
            found.append(known)
            self.on_step()
        return np.concatenate(found)

    def loss(self, config: PruneConfig, batches: Sequence[int]) -> float:
        """Their mean."""
        return float(self.losses(config, batches).mean())

    def _run(self, config: PruneConfig, batch: int) -> np.ndarray:
        device = next(self.model.parameters()).device
        images = self.batches[batch].to(device)
        with torch.inference_mode(), sharing(self.model, self._shared[batch]):
            if batch not in self._dense:
                prune_(self.model, PruneConfig(keep_rate=1.0))
                self._dense[batch] = sound(output(self.model, images, self.objective), self.objective)
            prune_(self.model, config)
            got = output(self.model, images, self.objective)
            losses = distance(self._dense[batch], got, self.objective)
        self.passes += 1
        return losses.double().nan_to_num(WORST, WORST).cpu().numpy()


def sound(dense: Tensor, objective: str) -> Tensor:
    """The dense model's output, if something can be compared with it.

    Raises:
        ValueError: it is not finite, or one class alone, whose probability is always 1.
    """
    if bad := int((~dense.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(
            f"the dense model's output must be finite, but it is not on {bad} of {len(dense)} images; see its weights."
        )
    if objective == "logits" and dense.shape[-1] < 2:
        raise ValueError("logits must be of two classes or more, since one has always probability 1, but got one.")
    return dense


def distance(dense: Tensor, pruned: Tensor, objective: str) -> Tensor:
    """The loss of each image, (batch,)."""
    if objective == "value map":
        away = (pruned - dense).abs().flatten(1).sum(1)
        return away / dense.abs().flatten(1).sum(1).clamp_min(torch.finfo(dense.dtype).tiny)
    if objective in ("logits", "class map"):
        expected, got = dense.log_softmax(-1), pruned.log_softmax(-1)
        away = (expected.exp() * (expected - got)).sum(-1).clamp_min(0)
    else:
        away = 1 - F.cosine_similarity(dense, pruned, dim=-1)
    return away if away.ndim == 1 else away.mean(1)
