"""The package's version, for what only needs to name it."""

__version__ = "0.1.0"
