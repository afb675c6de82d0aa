"""Algorithms and storage of maskmill; knows nothing of Ray."""

__version__ = "0.1.0"
