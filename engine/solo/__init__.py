"""SOLO: a network that finds objects of no particular class, and what it is trained with (METHODS 4 and 6).

config.py               network, grids, detection
layers.py backbone.py network.py
                        any timm backbone, feature pyramid, dynamic mask head
targets.py              which cells answer for which object
superpixel_targets.py   what an image's superpixels say of its coarse masks; made where images are loaded
superpixel_loss.py      the superpixel-guided loss of predicted masks
adaptive_targets.py     what instances and pixels count for in later rounds; made where images are loaded
adaptive_loss.py        the loss of predicted masks by stability and distance from boundaries
losses.py               focal loss; masks pixel by pixel
augmentation.py samples.py batch.py
                        from stored labels and their images to batches
objective.py            the loss of a batch
inference.py            matrix NMS, instances of images of any size
labelling.py            labels of a corpus by a trained network
training.py trainer.py run.py validation.py weights.py
                        what a training is; a step, a run, what is measured and kept
"""
