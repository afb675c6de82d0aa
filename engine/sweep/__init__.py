"""Grids over configuration fields, on cached features."""
