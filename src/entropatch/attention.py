"""One block's attention as a criterion sees it, and the entropy of attention from queries and keys."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from entropatch import kernels
from entropatch.entropy import attention_logits, check_order, finite_bias


def attention_entropy(q: Tensor, k: Tensor, order: float, scale: float | None = None, backend: str = "auto") -> Tensor:
    """Rényi entropy of each query's attention distribution over the keys, in nats.

    p_i = softmax_j(scale · q_i·k_j) and H_α(p_i) = log(Σ_j p_ij^α) / (1 - α): Definitions 1 to 3 of arXiv 2604.03803.
    To follow the paper pass the queries and keys of the patch tokens only, without class or register tokens.

    Args:
        q: queries (…, n, d), any floating dtype.
        k: keys (…, m, d), same leading shape, width and device; where its dtype is another, both take the wider one.
        order: α in (0, ∞]; 1 is Shannon, `math.inf` the min-entropy.
        scale: factor of the logits; 1/√d when None.
        backend: "auto"; or "reference" (forms the whole matrix), "streaming" (blocks of rows) or "triton" (CUDA).

    Returns:
        Entropies (…, n) in nats, between 0 and log m; float32, or float64 for float64 input. Differentiable in q and k;
        blocks of rows are formed again for it, so that the matrix never exists, except in the reference, which alone
        has second derivatives.

    Raises:
        ValueError: order ≤ 0 or NaN; shapes that do not fit; no keys, or of width 0; a scale that is not finite; a
            backend that is unknown or cannot run here.
        TypeError: q or k is not floating point.
    """
    order = check_order(order)
    for name, x in (("q", q), ("k", k)):
        if not x.is_floating_point():
            raise TypeError(
                f"{name} must be a floating-point tensor, but got {x.dtype}; convert it with {name}.float()."
            )
    if q.ndim < 2 or k.ndim != q.ndim or q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            "q and k must be (…, n, d) and (…, m, d) with the same leading shape and width, "
            f"but got {tuple(q.shape)} and {tuple(k.shape)}."
        )
    if k.shape[-2] == 0:
        raise ValueError(f"k must hold at least one key, but got shape {tuple(k.shape)}.")
    if k.shape[-1] == 0:
        raise ValueError(f"the width of q and k must be at least 1, but got shape {tuple(k.shape)}.")
    if isinstance(scale, float) and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, but got {scale}; leave it out for 1/√d.")
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    q, k = (x.to(torch.promote_types(q.dtype, k.dtype)) for x in (q, k))
    q4, k4 = (x.flatten(0, -4) if x.ndim > 4 else x.reshape(*(1,) * (4 - x.ndim), *x.shape) for x in (q, k))
    entropy = kernels.attention_entropy(q4, k4, order, factor, kernels.choose_backend(backend, q))
    return entropy.reshape(q.shape[:-1])


class BlockAttention:
    """The attention of one block during one forward pass; a criterion asks it for what it needs.

    What nobody asks for is never computed, so the block's own fused attention stays fused.

    Attributes:
        q, k, v: (batch, heads, tokens, head width), exactly as the model's own attention multiplies them: after
            norm1, the projection, any q/k norm and any rotary embedding. Prefix tokens come first.
        scale: factor of the logits; 1/√d unless the model says otherwise.
        key_bias: None, or (batch, tokens), prefix tokens included, added to every logit of its key: the logarithm of a
            token's size for proportional attention, -inf for padding. An image all of whose patches have -inf has the
            entropies of even attention over them.
        num_prefix_tokens: class, distillation and register tokens; never scored.
        has_class_token: whether token 0 is a class token.
        block: index of the block, 0-based.
        backend: which of `entropatch.kernels` computes entropies here.
        positions: the original patch at which each patch token stands, (batch, patches), -1 for none; None while every
            token stands where it stood.
        total: patches that entered the first block; None if not known.
        carried: what criteria handed on from block to block, (batch, patches, …) each; see `Criterion.follow`.
        mask: how much each token counts as a key for the others, (batch, tokens), with gradients; None: all do fully.
            Only the output has them; whatever else is asked takes `key_bias`, which says the same without.
        mask_epsilon: as in `masked_softmax`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    key_bias: Tensor | None
    positions: Tensor | None
    total: int | None
    carried: Mapping[str, Tensor]
    backend: str
    mask: Tensor | None
    mask_epsilon: float

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        key_bias: Tensor | None = None,
        num_prefix_tokens: int = 0,
        has_class_token: bool = False,
        dropout: float = 0.0,
        block: int = 0,
        backend: str = "auto",
        output_wanted: bool = True,
        positions: Tensor | None = None,
        total: int | None = None,
        carried: Mapping[str, Tensor] | None = None,
        projection: Tensor | None = None,
        mask: Tensor | None = None,
        mask_epsilon: float = 0.0,
    ):
        self.q, self.k, self.v = q, k, v
        self.scale = q.shape[-1] ** -0.5 if scale is None else scale
        self.key_bias = None if key_bias is None else _check_key_bias(key_bias, k)
        self.num_prefix_tokens = num_prefix_tokens
        self.has_class_token = has_class_token
        self.dropout = dropout
        self.block = block
        self.positions, self.total, self.carried = positions, total, {} if carried is None else carried
        self._projection, self.mask, self.mask_epsilon = projection, mask, mask_epsilon
        self.backend = kernels.choose_backend(backend, q)
        # Output and entropy come from one pass unless the output needs dropout or a gradient: the selection needs none,
        # and the output then keeps PyTorch's differentiable fused kernel.
        self._in_one_pass = output_wanted and not dropout and mask is None and not _differentiated(q, k, v, key_bias)
        self._output: Tensor | None = None
        self._class_attention: Tensor | None = None

    @property
    def num_patches(self) -> int:
        """Tokens that are scored: all but the prefix tokens."""
        return self.q.shape[2] - self.num_prefix_tokens

    def entropy(self, order: float) -> Tensor:
        """Entropy of each patch's attention over the patches, per head: (batch, heads, patches), in nats.

        Differentiable in q, k and key_bias. A pruning block scores without gradients.
        """
        order = check_order(order)
        if self._in_one_pass and self._output is None:
            self._output, entropy = kernels.attend_with_entropy(
                self.q, self.k, self.v, order, self.scale, self.num_prefix_tokens, self.backend, self.key_bias
            )
            return entropy
        q, k = self.q[:, :, self.num_prefix_tokens :], self.k[:, :, self.num_prefix_tokens :]
        bias = None if self.key_bias is None else self.key_bias[:, self.num_prefix_tokens :]
        return kernels.attention_entropy(q, k, order, self.scale, self.backend, bias)

    def class_attention(self) -> Tensor:
        """The class token's attention weights on the patches, per head: (batch, heads, patches).

        The softmax runs over all tokens, so a row sums to less than one. One row per head is computed, never n×n.
        """
        if not self.has_class_token:
            raise ValueError("class_attention() needs a class token, but this model has none; use Renyi(order).")
        if self._class_attention is not None and not torch.is_grad_enabled():
            return self._class_attention
        logits = attention_logits(self.q[:, :, :1], self.k, self.scale, self.key_bias)
        row = logits.softmax(-1)[:, :, 0, self.num_prefix_tokens :]
        self._class_attention = row
        return row

    def column_norms(self, power: float) -> Tensor:
        """(Σ_i Ā_ij^p)^(1/p) of each patch j over all queries i, Ā the mean head: (batch, patches).

        The softmax runs over all tokens. Power ∞ is the largest. Without gradients, and without the n×n matrix.
        """
        with torch.no_grad():
            return kernels.column_norms(
                self.q, self.k, power, self.scale, self.num_prefix_tokens, self.backend, self.key_bias
            )

    def mean_head_entropy(self) -> Tensor:
        """-Σ_j Ā_ij log Ā_ij of each patch i over the patches j, Ā the mean head, in nats: (batch, patches).

        The softmax runs over all tokens, and Ā is not renormalised over the patches. Without gradients.
        """
        with torch.no_grad():
            return kernels.row_entropies(
                self.q, self.k, self.scale, self.num_prefix_tokens, self.backend, self.key_bias
            )

    def take(self, rows: Tensor) -> BlockAttention:
        """That of some images: `rows` (images,) are their numbers in the batch. Nothing computed so far is shared."""
        bias = None if self.key_bias is None else self.key_bias.index_select(0, rows)
        q, k, v = (x.index_select(0, rows) for x in (self.q, self.k, self.v))
        taken = self._like(q, k, v, bias)
        taken.positions = None if self.positions is None else self.positions.index_select(0, rows)
        taken.carried = {name: values.index_select(0, rows) for name, values in self.carried.items()}
        taken.mask = None if self.mask is None else self.mask.index_select(0, rows)
        return taken

    def without_output(self) -> BlockAttention:
        """The same attention for later questions: its entropies are computed alone, and give no output beside them."""
        return self._like(self.q, self.k, self.v, self.key_bias)

    def _like(self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None) -> BlockAttention:
        return BlockAttention(
            q,
            k,
            v,
            scale=self.scale,
            key_bias=key_bias,
            num_prefix_tokens=self.num_prefix_tokens,
            has_class_token=self.has_class_token,
            dropout=self.dropout,
            block=self.block,
            backend=self.backend,
            output_wanted=False,
            positions=self.positions,
            total=self.total,
            carried=self.carried,
            projection=self._projection,
            mask=self.mask,
            mask_epsilon=self.mask_epsilon,
        )

    def output_projection(self) -> Tensor:
        """W_O, which the output of all heads, one beside another, is multiplied by: (width, heads · head width).

        Laid out as the weight of a `torch.nn.Linear`. Raises ValueError where the model did not hand it over.
        """
        if self._projection is None:
            raise ValueError(f"the attention of block {self.block} was not given its model's output projection.")
        return self._projection

    def matrix(self) -> Tensor:
        """The whole attention matrix over all tokens: (batch, heads, tokens, tokens). Quadratic memory."""
        return attention_logits(self.q, self.k, self.scale, self.key_bias).softmax(-1)

    def output(self) -> Tensor:
        """Attention output before the projection: (batch, heads, tokens, head width).

        What the entropies were computed from already gave it as well; otherwise PyTorch's fused kernel does.
        """
        if self.mask is not None:
            logits = attention_logits(self.q, self.k, self.scale, None)
            weights = masked_softmax(logits, self.mask, self.mask_epsilon)
            return F.dropout(weights, self.dropout).to(self.v.dtype) @ self.v
        kept = self._output
        if kept is not None and (kept.requires_grad or not _differentiated(self.q, self.k, self.v, self.key_bias)):
            return kept
        if _differentiated(self.key_bias) and not self.dropout:
            # PyTorch's fused kernels have no gradient for a mask: it would form the matrix.
            return kernels.attend_with_entropy(
                self.q, self.k, self.v, math.inf, self.scale, self.num_prefix_tokens, self.backend, self.key_bias
            )[0]
        mask = None if self.key_bias is None else finite_bias(self.key_bias, self.q.dtype)[:, None, None]
        return F.scaled_dot_product_attention(self.q, self.k, self.v, mask, self.dropout, scale=self.scale)


def masked_softmax(logits: Tensor, mask: Tensor, epsilon: float = 0.0) -> Tensor:
    """Attention in which a key counts as much as its mask says, but a token always for itself (DynamicViT, Rao 2021).

        A_ij = G_ij exp(S_ij) / Σ_k G_ik exp(S_ik),    G_ij = 1 where i = j, else mask_j

    With an ε it is, of N tokens, as DynamicViT's released code has it:

        A_ij = (G_ij exp(S_ij - m_i) + ε/N) / (Σ_k G_ik exp(S_ik - m_i) + ε),    m_i = max_k S_ik over all k

    Differentiable in the mask, also where it is 0. Forms the matrix.

    Args:
        logits: S, (batch, heads, tokens, tokens).
        mask: (batch, tokens).
        epsilon: ε.
    """
    own = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    counted = torch.where(own, 1.0, mask[:, None, None].to(logits.dtype))
    highest = logits if epsilon else logits.detach().masked_fill(counted.detach() == 0, -torch.inf)
    # What is far above all that count, and does not count, must not become infinite: 0 · ∞ is no number.
    weights = (logits - highest.amax(-1, keepdim=True)).clamp(max=80.0).exp() * counted
    return (weights + epsilon / logits.shape[-1]) / (weights.sum(-1, keepdim=True) + epsilon)


def _differentiated(*tensors: Tensor | None) -> bool:
    """Whether what is computed from these tensors now is to be differentiated."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _check_key_bias(key_bias: Tensor, k: Tensor) -> Tensor:
    expected = (k.shape[0], k.shape[2])
    if not key_bias.is_floating_point():
        raise TypeError(f"key_bias must be a floating-point tensor, but got {key_bias.dtype}; a mask is 0 and -inf.")
    if key_bias.shape != expected:
        raise ValueError(
            f"key_bias must be (batch, tokens) = {expected}, prefix tokens included, but got {tuple(key_bias.shape)}."
        )
    return key_bias
