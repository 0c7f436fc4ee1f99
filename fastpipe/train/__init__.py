"""Train with the preprocessing that serves: the nodes of a pipe's TOML file as a transform for torch's DataLoader.

    transform = fastpipe.train.transform("pipeline.toml")          # what stands in front of the model
    data = fastpipe.train.Dataset("photos/train", transform)       # a folder for each class
    loader = torch.utils.data.DataLoader(data, batch_size=32, num_workers=4)

Tensors are equal, bit for bit, to what the same nodes give while they serve. Nothing here starts a thread.
"""

from fastpipe.train.dataset import IMAGE_SUFFIXES, Dataset, collate
from fastpipe.train.transforms import Transform, transform

__all__ = ["IMAGE_SUFFIXES", "Dataset", "Transform", "collate", "transform"]
