"""Predictions of pictures of several sizes: in order, each as if it were alone, and masks at the picture's own size."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from distilens.core import Model
from distilens.models import build_model
from distilens.tasks import Segmentation

TASK = Segmentation(("sky", "road", "car"))


def test_masks_have_the_pictures_own_sizes():
    torch.manual_seed(0)
    model = build_model("unet:width=4", TASK, (16, 24))
    pictures = [torch.rand(3, 20, 30), torch.rand(3, 20, 30), torch.rand(3, 7, 41), torch.rand(3, 20, 30)]
    masks = model.predict(pictures, chunk=1)
    assert model.training
    assert masks.names == ("sky", "road", "car")
    assert [mask.dtype for mask in masks.classes] == [torch.uint8] * 4
    assert repr(masks) == "Masks(20×30, 20×30, 7×41, 20×30; 3 classes)"
    model.eval()
    for picture, mask in zip(pictures, masks.classes, strict=True):
        small = functional.interpolate(picture[None], (16, 24), mode="bilinear", antialias=True)
        logits = model.network((small - 0.5) / 0.25)
        own = functional.interpolate(logits, picture.shape[1:], mode="bilinear").argmax(1)[0]
        assert torch.equal(mask.long(), own)


def test_a_known_mask():
    """The class is the largest colour, at each pixel."""
    network = nn.Conv2d(3, 3, 1)
    network.weight.data = torch.eye(3)[..., None, None]
    network.bias.data.zero_()
    model = Model(network, TASK, size=(4, 4))
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2, :, 0], picture[2:, :, 1], picture[0, 0] = 200, 200, (0, 0, 255)
    (mask,) = model.predict(Image.fromarray(picture)).classes
    assert mask.tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_classes_of_pictures_of_several_sizes():
    torch.manual_seed(0)
    model = build_model("resnet8", ("a", "b"), (16, 16))
    pictures = [torch.rand(3, 16, 16), torch.rand(3, 9, 30), torch.rand(3, 16, 16)]
    together = model.predict(pictures)
    alone = torch.cat([model.predict(picture).probabilities for picture in pictures])
    assert torch.allclose(together.probabilities, alone, atol=1e-6)
