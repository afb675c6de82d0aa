"""Self-training: a network's predictions become the labels of the next round (docs/methods.md, 6).

rounds.py          configuration of each round's training and prediction
phases.py          policy: what to do next, and when to stop
change.py          distance between the labels of two rounds
round_metrics.py   metrics of a round's labels
lineage.py         which training a round's labels came from

Source: "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, section 3.3.
"""
