"""Encoder pre-training on the user's own images, after METHODS section 7.

views.py, samples.py      images to batches of random views, a function of the seed and a number
dino.py, regions.py       the image-level and the patch-level loss
network.py, schedules.py  what learns, and how fast
trainer.py                one step after the other, and the state between two
run.py, card.py           a whole run, resumed where it stopped; the encoder and its card
distribution.py           what several workers agree on
"""
