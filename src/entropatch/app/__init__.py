"""The local page on which one looks at pruning interactively: what is computed, how it is shown, how it is served."""

from entropatch.app.explorer import Explorer, Latency, Seen
from entropatch.app.setting import Setting

__all__ = ["Explorer", "Latency", "Seen", "Setting"]
