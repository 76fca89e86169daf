"""A-ViT: tokens halt one by one, when the halting scores that they say of themselves have added up to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from entropatch.criteria.learned import Decision, Entering, LearnedCriterion, Seen, weight
from entropatch.schedule import number

SUM, CLASS_SUM, OUTPUT, PONDER = "halting", "halting of the class token", "class output", "ponder"


@dataclass(frozen=True)
class Halting(LearnedCriterion):
    """A-ViT's halting (Yin et al. 2022): a patch stays while its score is above 0.

    Behind block l = 1 … L, of each token t_k that has not halted, from its first channel:

        h_k^l = σ(γ · t_k^l[0] - β),    h_k^L = 1
        N_k = the least l with Σ_{l' ≤ l} h_k^{l'} ≥ 1 - ε,    r_k = 1 - Σ_{l' < N_k} h_k^{l'}
        p_k^l = h_k^l for l < N_k, r_k for l = N_k, 0 behind it

    A token that has halted takes no further part. Its score here, before the next block, is 1 - ε - Σ h_k, and the
    schedule `AboveZeroEverywhere`: halted patches are dropped, so that images, whose numbers differ, run in groups. The
    class token t_c halts like any, after which no other token attends to it. What the model reads of it in the end is
    the mean field over the blocks, before the final norm:

        t_o = Σ_l p_c^l t_c^l

    While the model trains halted tokens stay and are masked, as in the released code, with the same output. Its loss,
    beside the cross entropy, with the K tokens of an image, class token included:

        ponder_weight · mean over images and tokens of (N_k + r_k)
        + prior_weight · KL(H ‖ H*),   H^l ∝ Σ_k h_k^l over the tokens that had not halted, of the batch,
                                       H*^l ∝ exp(-(l - target_depth)² / 2)

    γ and β are numbers of the setting, not learnt, as the paper fixes them for all blocks and tokens (there with the
    sign of β turned): the backbone's weights learn to write the halting score into the first channel. So there are no
    weights of its own. β = 75 is that for DeiT-S; DeiT-Ti was trained with 30. A model that was not trained so either
    halts at once or never.

    What differs: H is normalised to be a distribution; target_depth, where none is given, is two thirds of the depth.
    Prefix tokens beside the class token never halt and are no part of the loss.

    Args:
        scale, centre: γ and β.
        epsilon: ε, in (0, 1).
        ponder_weight, prior_weight: as above.
        target_depth: at which block, counted from 1, tokens are to halt; None for two thirds of the depth.
    """

    needs_class_token: ClassVar[bool] = True
    decides: ClassVar[bool] = True
    has_weights: ClassVar[bool] = False
    closes: ClassVar[bool] = True
    every: ClassVar[bool] = True

    scale: float = 10.0
    centre: float = 75.0
    epsilon: float = 0.01
    ponder_weight: float = 5e-4
    prior_weight: float = 1e-3
    target_depth: float | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "centre"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        for name in ("ponder_weight", "prior_weight"):
            object.__setattr__(self, name, weight(name, getattr(self, name)))
        object.__setattr__(self, "epsilon", number("epsilon", self.epsilon))
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon must lie in (0, 1), but got {self.epsilon!r}.")
        if self.target_depth is not None:
            object.__setattr__(self, "target_depth", number("target_depth", self.target_depth))

    @property
    def label(self) -> str:
        return "halting"

    def decide(self, entering: Entering) -> Decision:
        state, note = self._behind(entering, last=False)
        sums, class_sum = state[SUM], state[CLASS_SUM]
        scores = (1 - self.epsilon - sums).detach()
        carried = {SUM: sums}
        states = {name: state[name] for name in (CLASS_SUM, OUTPUT) if name in state}
        prefix = torch.ones(sums.shape[0], entering.num_prefix_tokens, device=sums.device)
        prefix[:, 0] = (class_sum < 1 - self.epsilon).float()
        if entering.training:
            carried[PONDER], states[PONDER] = state["patches ponder"], state["class ponder"]
            mask = entering.masked((sums < 1 - self.epsilon).float(), prefix)
            return Decision(scores, mask, carried=carried, states=states, note=note)
        return Decision(scores, prefix_mask=prefix, carried=carried, states=states)

    def close(self, entering: Entering) -> tuple[Tensor, Mapping[str, Tensor]]:
        state, note = self._behind(entering, last=True)
        x = torch.cat((state[OUTPUT][:, None].to(entering.x.dtype), entering.x[:, 1:]), dim=1)
        return x, note

    def losses(self, seen: Seen) -> dict[str, Tensor]:
        ponder = next(note.values["ponder"] for note in seen.notes if "ponder" in note.values)
        halting = torch.stack([note.values["halting"] for note in seen.notes])
        found = halting / halting.sum()
        depth = torch.arange(1, seen.depth + 1, device=found.device, dtype=found.dtype)
        centre = 2 * seen.depth / 3 if self.target_depth is None else self.target_depth
        wanted = (-(depth - centre).square() / 2).log_softmax(0)
        prior = (torch.xlogy(found, found) - found * wanted).sum()
        return {"ponder": self.ponder_weight * ponder, "prior": self.prior_weight * prior}

    def level(self, scores: Tensor) -> Tensor:
        """The score itself: above 0 while the patch has not halted."""
        return scores.float()

    def _behind(self, entering: Entering, last: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sums, output and ponder behind the block before this one; and the note for the loss."""
        x, prefix = entering.x, entering.num_prefix_tokens
        first = entering.block == 1
        if not first and CLASS_SUM not in entering.states:
            raise ValueError(
                f"A-ViT adds up over the blocks from the first, so the model cannot be run from block {entering.block} "
                "on; run it whole."
            )
        # The class token is one more, before the patches; a sum decides, so it is kept in single precision at least.
        gate = torch.cat((x[:, :1, 0], x[:, prefix:, 0]), dim=1)
        gate = gate if gate.dtype == torch.float64 else gate.float()
        h = torch.ones_like(gate) if last else (self.scale * gate - self.centre).sigmoid()
        if first:
            before, ponder = torch.zeros_like(h), torch.zeros_like(h)
            output = torch.zeros_like(x[:, 0], dtype=h.dtype)
        else:
            before = torch.cat((entering.states[CLASS_SUM][:, None], entering.carried[SUM]), dim=1)
            output, ponder = entering.states[OUTPUT], torch.zeros_like(h)
            if entering.training:
                ponder = torch.cat((entering.states[PONDER][:, None], entering.carried[PONDER]), dim=1)
        bound = 1 - self.epsilon
        running = (before < bound).detach()
        sums = torch.where(running, before + h, before)
        stops = running if last else running & (sums >= bound)
        share = torch.where(stops, 1 - before, torch.where(running, h, 0.0))
        output = output + share[:, :1] * x[:, 0].to(h.dtype)
        ponder = ponder + running.to(h.dtype) + torch.where(stops, 1 - before, 0.0)
        state = {
            SUM: sums[:, 1:],
            CLASS_SUM: sums[:, 0],
            OUTPUT: output,
            "patches ponder": ponder[:, 1:],
            "class ponder": ponder[:, 0],
        }
        note = {"halting": torch.where(running, h, 0.0).mean()} if entering.training else {}
        if last and entering.training:
            note["ponder"] = ponder.mean()
        return state, note
