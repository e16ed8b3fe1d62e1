"""A small student, its data, and a small network for segmentation, made once."""

import pytest
import torch

import segments
from distilens import Model, distill
from distilens.data import from_arrays


@pytest.fixture(scope="module")
def data():
    """Pictures of two classes that differ in their brightest half."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    images = torch.rand(60, 3, 16, 16, generator=generator) * 0.5
    images[labels == 1, :, 8:] += 0.4
    images[labels == 0, :, :8] += 0.4
    pixels = (images * 255).round().byte()
    return from_arrays(pixels[:40], labels[:40], classes=["above", "below"], test=(pixels[40:], labels[40:]))


@pytest.fixture(scope="module")
def student(data) -> Model:
    """A student that knows the two classes well, but not all pictures."""
    student, _ = distill("resnet8", None, data, epochs=8, batch_size=12, progress=False)
    return student


@pytest.fixture(scope="session")
def segmenter() -> Model:
    """A tiny U-Net that finds most of the squares of `segments`."""
    model, _ = distill(
        "unet:width=4,depth=2",
        None,
        segments.pictures(),
        epochs=4,
        batch_size=8,
        optimizer="adamw:lr=0.02",
        progress=False,
    )
    return model.eval()
