"""Labelling: from an image's crops to its row in a store."""
