"""Fast twins of the reference entropy, and the choice among them.

Every backend computes the same two things, tested against a float64 twin:

    attention_entropy(q, k, order, scale, key_bias)                    -> entropy
    attend_with_entropy(q, k, v, order, scale, num_prefix, key_bias)   -> (attention output, entropy of the patches)

The second forms each logit once for both results. Beside them stand two statistics of the mean head (`head_mean_ops`).
A backend is one file, which states a `Backend`, and a line in `registry`.
"""

from entropatch.kernels import registry
from entropatch.kernels.choice import choose_backend
from entropatch.kernels.ops import attend_with_entropy, attention_entropy, column_norms, row_entropies

BACKENDS = registry.names()

__all__ = ["BACKENDS", "attend_with_entropy", "attention_entropy", "choose_backend", "column_norms", "row_entropies"]
