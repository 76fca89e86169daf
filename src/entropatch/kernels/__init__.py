"""Fast twins of the reference entropy, and the choice among them.

Every backend computes the same two things, tested against a float64 twin:

    attention_entropy(q, k, order, scale)                    -> entropy
    attend_with_entropy(q, k, v, order, scale, num_prefix)   -> (attention output, entropy of the patches)

The second forms each logit once for both results.
"""

from entropatch.kernels.choice import BACKENDS, choose_backend
from entropatch.kernels.ops import attend_with_entropy, attention_entropy

__all__ = ["BACKENDS", "attend_with_entropy", "attention_entropy", "choose_backend"]
