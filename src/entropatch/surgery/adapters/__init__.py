"""One file per model library: which of its classes are understood, and the two halves of their blocks."""
