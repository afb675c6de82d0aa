"""Masks, boxes, run lengths and instances."""
