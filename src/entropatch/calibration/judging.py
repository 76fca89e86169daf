"""How far a pruned model is from the dense one, image by image: the loss that calibration minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropatch.calibration.ledger import Ledger
from entropatch.calibration.processes import gathered
from entropatch.config import PruneConfig
from entropatch.surgery import prune_, restore, trace
from entropatch.surgery.sharing import Shared, sharing

OBJECTIVES = {
    "logits": "KL divergence of the dense model's classes from the pruned one's, in nats",
    "features": "1 - cosine of the pooled feature, dense and pruned",
    "dense": "1 - cosine of the patch features, dense and pruned, mean over the grid",
}
SHORT = {"logits": "KL(dense ‖ pruned), nats", "features": "1 - cosine of features", "dense": "1 - cosine of patches"}
WORST = 1e6  # the loss of an output that is not finite, where the dense model's is
MEMORY = 2**30  # bytes of blocks' inputs that passes share, of all batches together


class Judge:
    """Runs the pruned model on batches of images and says how far its output is from the dense model's.

    Args:
        model: pruned already, in evaluation mode.
        batches: images, (batch, 3, H, W) each; in several processes those of this one.
        objective: one of `OBJECTIVES`.
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


def output(model: Any, images: Tensor, objective: str) -> Tensor:
    """What the objective compares: logits or pooled features (batch, C), patch features (batch, patches, C)."""
    if objective == "dense":
        run = getattr(model, "forward_features", model)  # of transformers, a base model's last hidden state
        with trace(model) as seen:
            features = run(images)
        features = getattr(features, "last_hidden_state", features)
        if not isinstance(features, Tensor) or features.ndim != 3:
            raise ValueError(f"{type(model).__name__} gives no patch features; use objective='features' or 'logits'.")
        return restore(features, seen).flatten(1, -2).float()
    return pooled(model(images)).float()


def pooled(result: Any) -> Tensor:
    """The logits, or the pooled feature, among what a model returns: (batch, C)."""
    for name in ("logits", "image_embeds", "pooler_output", "last_hidden_state"):
        part = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
        if isinstance(part, Tensor):
            result = part
            break
    if isinstance(result, (tuple, list)) and result and isinstance(result[0], Tensor):
        result = result[0]
    if not isinstance(result, Tensor) or result.ndim not in (2, 3):
        raise ValueError(
            f"the model must return logits or features (batch, C), or a mapping with logits, but got "
            f"{_described(result)}; wrap it in one that does."
        )
    return result if result.ndim == 2 else result[:, 0]


def _described(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"a tensor {tuple(result.shape)}"
    names = f" of {', '.join(map(str, result))}" if isinstance(result, Mapping) else ""
    return f"{type(result).__name__}{names}"


def distance(dense: Tensor, pruned: Tensor, objective: str) -> Tensor:
    """The loss of each image, (batch,)."""
    if objective == "logits":
        expected, got = dense.log_softmax(-1), pruned.log_softmax(-1)
        return (expected.exp() * (expected - got)).sum(-1).clamp_min(0)
    away = 1 - F.cosine_similarity(dense, pruned, dim=-1)
    return away if away.ndim == 1 else away.mean(1)


def has_head(model: Any) -> bool:
    """Whether what the model returns are logits of classes, as far as it says so."""
    classes = getattr(model, "num_classes", None)
    if classes is None:
        classes = getattr(getattr(model, "config", None), "num_labels", None) if hasattr(model, "classifier") else None
    if classes is None:
        classes = len(getattr(model, "heads", ()) or ())  # torchvision
    return bool(classes)
