"""Superpixels, after METHODS section 4: segments that follow the borders in an image, and their graph.

boundary.py, filters.py   how strongly each pixel looks like a border
watershed.py              the finest regions, and the arcs between them
merging.py, hierarchy.py  regions merge into one: the ultrametric contour map and its cuts
alternatives.py           scikit-image's slic and felzenszwalb
segmentation.py           one call for all of them
graph.py                  neighbours, spanning tree, merge heights, and their bytes
evaluation.py             measures against human segmentations and object masks
"""

from engine.superpixels.segmentation import METHODS, SuperpixelConfig, SuperpixelMethod, segment

__all__ = ["METHODS", "SuperpixelConfig", "SuperpixelMethod", "segment"]
