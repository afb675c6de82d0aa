"""Accuracy of labels and encoders against ground truth."""
