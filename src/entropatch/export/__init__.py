"""Export: a model, pruned or not, as one file that runs without this package.

`export` writes ONNX, a program of `torch.export` or a package of AOTInductor; `about_file` reads what such a file says
of itself. A format is one file here and one line in `formats`.
"""

from entropatch.export.formats import FORMATS
from entropatch.export.job import Exported, export
from entropatch.export.metadata import about_file
from entropatch.export.parity import Parity, ParityError

__all__ = ["FORMATS", "Exported", "Parity", "ParityError", "about_file", "export"]
