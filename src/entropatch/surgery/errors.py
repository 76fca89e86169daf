"""The error every refusal of a model raises."""


class UnsupportedModelError(ValueError):
    """The model, or a part of it, is not one entropatch can prune correctly; the message names it and what is."""
