"""Algorithms and storage of maskmill; knows nothing of Ray."""
