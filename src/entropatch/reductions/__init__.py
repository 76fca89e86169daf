"""What becomes of the tokens that a schedule does not keep. One file per idea.

To add a reduction, subclass `Reduction` as a frozen dataclass and write `plan`; trace, `restore`, rotary embeddings,
sizes and figures follow from the `Plan`.
"""

from entropatch.reductions.base import Reduction
from entropatch.reductions.bipartite import BipartiteMerge
from entropatch.reductions.drop import Drop
from entropatch.reductions.fuse import Fuse
from entropatch.reductions.merge import Merge
from entropatch.reductions.package import Package
from entropatch.reductions.park import Park
from entropatch.reductions.slow_fast import SlowFast

__all__ = ["BipartiteMerge", "Drop", "Fuse", "Merge", "Package", "Park", "Reduction", "SlowFast"]
