"""`entropatch figures`: the paper's figures of any model and images, and accuracy against cost."""

from entropatch.gallery.accuracy import accuracy_records, draw_accuracy, measured_on
from entropatch.gallery.images import Gallery, GallerySettings
from entropatch.gallery.written import write_figure

__all__ = ["Gallery", "GallerySettings", "accuracy_records", "draw_accuracy", "measured_on", "write_figure"]
