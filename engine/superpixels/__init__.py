"""Superpixels: segments that follow the boundaries in an image, and their graph (docs/methods.md, 4).

boundary.py, filters.py   boundary strength of every pixel
watershed.py              the finest regions and the arcs between them
merging.py, hierarchy.py  the merge tree of the regions and its cuts
alternatives.py           scikit-image's slic and felzenszwalb
segmentation.py           one call for all methods
graph.py                  neighbours, minimum spanning tree, merge heights
quality.py                measures against human segmentations and object masks
"""

from engine.superpixels.segmentation import METHODS, SuperpixelConfig, SuperpixelMethod, segment

__all__ = ["METHODS", "SuperpixelConfig", "SuperpixelMethod", "segment"]
