"""Self-training: a network's own predictions become the next round's labels (METHODS 6).

stability.py   how far the checkpoints of a training agree on an instance, and what that makes it weigh
change.py      how far the labels of one round are from those of another
rounds.py      what each round is trained with and predicts with, and when to stop
figures.py     what a round comes to

Source: "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, section 3.3.
"""
