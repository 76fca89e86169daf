"""The version of this package, as modules below its public names read it."""

__version__ = "0.2.0"
