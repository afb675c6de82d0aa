"""Encoder pre-training on the user's own images without labels (docs/methods.md, 7).

views.py, samples.py      images to batches of random views, a function of the seed and a number
dino.py, regions.py       the image-level and the patch-level loss
network.py, schedules.py  student and teacher; learning rate, weight decay and momentum over the run
trainer.py                one training step, and the state between two steps
run.py, card.py           one worker's run from its first to its last step; the encoder and its card
"""
