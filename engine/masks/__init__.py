"""Masks, boxes, run lengths and the instances made of them."""
