"""Bedplate: the whole life of a foundation model you own. Importing it has no effects and never imports torch."""

__version__ = "0.1.0"
