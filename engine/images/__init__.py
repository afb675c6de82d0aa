"""Decoding, resizing and tiling of images."""
