"""SOLO: a class-agnostic instance segmentation network and its training (docs/methods.md, 4 and 6).

config.py               configuration of network, grids and detection
layers.py backbone.py network.py
                        any timm backbone, feature pyramid, dynamic mask head
targets.py              assignment of grid cells to objects
superpixel_targets.py   labels and affinities of superpixels, computed in the data workers
superpixel_loss.py      the superpixel-guided mask loss
adaptive_targets.py     weights of instances and pixels in later rounds, computed in the data workers
adaptive_loss.py        the mask loss weighted by stability and distance from boundaries
losses.py               focal loss, pixel-wise mask loss
tensors.py              dataclasses of tensors that move to a device as a whole
augmentation.py samples.py batch.py
                        from stored labels and their images to batches
objective.py            the loss of a batch
inference.py            matrix NMS, instances of images of any size
weights.py              a trained network as a file
training.py trainer.py run.py validation.py
                        configuration, a training step, a run, validation
"""
