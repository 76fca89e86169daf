"""What the training of a `TaughtCriterion` is compared with: noise handed over, the teacher's loss, all gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from entropatch import method_loss

Terms = Mapping[str, Any]


def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The Gumbel noise that is drawn from now on, a tensor for each stage."""
    noise: list[Tensor] = []

    def gumbel(logits: Tensor, hard: bool, dim: int) -> Tensor:
        drawn = -torch.empty_like(logits).exponential_().log()
        noise.append(drawn)
        soft = (logits + drawn).softmax(dim)
        return F.one_hot(soft.argmax(dim), 2) - soft.detach() + soft

    monkeypatch.setattr(F, "gumbel_softmax", gumbel)
    return noise


def hard_share(log_shares: Tensor, noise: Tensor) -> Tensor:
    """The decision about one token, 0 or 1, with the gradients of the soft one; (2,) each."""
    soft = (log_shares + noise).softmax(0)
    return (1.0 if soft[0] > soft[1] else 0.0) - soft[0].detach() + soft[0]


def train_pass(model: Any, images: Tensor, teacher: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the terms of the method's own loss."""
    torch.manual_seed(7)
    with method_loss(model, teacher) as own:
        logits = model(images)
        if teacher is not None:
            with torch.no_grad():
                teacher(images)
        return logits, own.terms()


def apart_from(teacher: Any, image: Tensor, tokens: Tensor, counted: Sequence[Any], prefix: int) -> list[Tensor]:
    """Mean squares, for each patch that counts at the end, of the difference to the teacher's token."""
    with torch.no_grad():
        taught = teacher.forward_features(image[None])
    places = [prefix + j for j, d in enumerate(counted) if d > 0.5]
    return [(tokens[0, j] - taught[0, j]).square().mean() for j in places]


def gradients(logits: Tensor, terms: Terms, *modules: torch.nn.Module) -> list[dict[str, Tensor]]:
    """The gradients, by module, of a weighted sum of the logits and of the terms."""
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    ((logits * weights).sum() + sum(terms.values())).backward()
    return [{key: p.grad for key, p in module.named_parameters() if p.grad is not None} for module in modules]


def assert_alike(
    model: Any, logits: Tensor, terms: Terms, stock: Any, parts: Mapping[int, Any], expected: Tensor, twin_terms: Terms
) -> dict[str, Tensor]:
    """Logits, terms and all gradients as the twin's, made of the stock model and the parts of the blocks."""
    torch.testing.assert_close(logits, expected)
    assert terms.keys() == twin_terms.keys()
    for key, value in twin_terms.items():
        torch.testing.assert_close(terms[key].double(), value, rtol=1e-5, atol=1e-7)
    (own,) = gradients(logits, terms, model)
    compared, *others = gradients(expected, twin_terms, stock, *parts.values())
    for block, grads in zip(parts, others, strict=True):
        compared |= {f"entropatch.{block}.{key}": grad for key, grad in grads.items()}
    assert own.keys() == compared.keys()
    for key, value in own.items():
        torch.testing.assert_close(value, compared[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: key + text)
    return own
