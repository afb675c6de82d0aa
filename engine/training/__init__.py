"""The parts that every training shares, SOLO's and an encoder's alike.

settings.py, schedule.py      run settings; optimiser and learning rate
distribution.py, order.py     what workers agree on; the order of samples, a function of the seed
image_cache.py                decoded, shrunk images on the node's disk
metrics.py                    JSON lines, TensorBoard and the driver's display, from one object
output.py, checkpoints.py     whose training an output holds; the state between two steps
"""
