"""Dice and Lovasz: written out image by image and class by class, against segmentation-models-pytorch, and their limits."""

import itertools

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from scipy.special import softmax
from torch.nn import functional

from distilens.foundation.errors import UserError
from distilens.losses import dice, lovasz
from distilens.tasks import VOID


def logits(seed: int = 0, side: int = 6, classes: int = 4) -> torch.Tensor:
    return 2 * torch.randn(3, classes, side, side, generator=torch.Generator().manual_seed(seed))


def masks(seed: int = 1, side: int = 6, void: float = 0.2) -> torch.Tensor:
    """Class 3 is never there, class 2 not in the first image; some places are void."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(0, 3, (3, side, side), generator=generator)
    made[0][made[0] == 2] = 0
    return made.masked_fill(torch.rand(made.shape, generator=generator) < void, VOID).byte()


def by_image_and_class(ours: torch.Tensor, targets: torch.Tensor, loss) -> list[float]:
    """The mean of `loss(p, y)` over the classes of each image's target, at its valid places."""
    found = []
    for z, target in zip(ours.double().numpy(), targets.numpy(), strict=True):
        valid = target != VOID
        p, y = softmax(z, 0)[:, valid], target[valid]
        found.append(np.mean([loss(p[c], y == c) for c in np.unique(y)]) if valid.any() else 0.0)
    return found


def lovasz_of_class(p: np.ndarray, y: np.ndarray) -> float:
    """The Lovasz extension of the Jaccard loss by its definition: a sum over level sets of the errors."""
    errors = np.where(y, 1 - p, p)
    levels = np.sort(np.unique(np.append(errors, 0)))[::-1]
    total = 0.0
    for high, low in itertools.pairwise(levels):
        wrong = errors >= high
        predicted = y ^ wrong
        total += (high - low) * (1 - (predicted & y).sum() / (predicted | y).sum())
    return total


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_dice_is_its_ratio(smooth):
    expected = by_image_and_class(
        logits(), masks(), lambda p, y: 1 - (2 * (p * y).sum() + smooth) / (p.sum() + y.sum() + smooth)
    )
    assert np.allclose(dice(logits(), masks(), smooth=smooth, reduction="none"), expected, atol=1e-6)


def test_lovasz_is_the_extension_of_the_jaccard_loss():
    assert np.allclose(
        lovasz(logits(), masks(), reduction="none"), by_image_and_class(logits(), masks(), lovasz_of_class), atol=1e-6
    )


def test_both_are_those_of_segmentation_models_pytorch():
    """Its Dice sums over a batch, so one image at a time, and needs its void places cut out."""
    ours, targets = logits(), masks()
    other = smp.losses.LovaszLoss("multiclass", per_image=True, ignore_index=VOID)
    assert torch.allclose(lovasz(ours, targets), other(ours, targets.long()), atol=1e-6)
    for z, target in zip(ours, targets, strict=True):
        valid = target != VOID
        present = [int(c) for c in target[valid].unique()]
        z, y = z[:, valid][None, :, :, None], target[valid][None, :, None]
        other = smp.losses.DiceLoss("multiclass", classes=present)
        assert torch.allclose(dice(z, y), other(z, y.long()), atol=1e-6)


@pytest.mark.parametrize("loss", [dice, lovasz])
def test_a_hard_prediction_gives_the_measure_itself(loss):
    targets, answers = masks(void=0), torch.randint(0, 4, (3, 6, 6), generator=torch.Generator().manual_seed(5))
    sure = 200 * functional.one_hot(answers, 4).permute(0, 3, 1, 2).float()

    def of_class(p, y):
        both, either = ((p > 0.5) & y).sum(), ((p > 0.5) | y).sum()
        return 1 - (2 * both / (both + either) if loss is dice else both / either)

    assert np.allclose(loss(sure, targets, reduction="none"), by_image_and_class(sure, targets, of_class), atol=1e-6)
    right = 200 * functional.one_hot(targets.long(), 4).permute(0, 3, 1, 2).float()
    assert loss(right, targets).item() == 0
    assert loss(logits(), targets).item() > 0.1


def test_an_absent_class_counts_neither_as_0_nor_as_1():
    """0 / 0 in much code. A class that is only predicted costs through the places that it takes from others."""
    targets = torch.zeros(1, 4, 4, dtype=torch.uint8)
    unsure = torch.zeros(1, 4, 4, 4)
    assert dice(unsure, targets).item() == pytest.approx(1 - 2 * 0.25 / 1.25)
    assert lovasz(unsure, targets).item() == pytest.approx(0.75)


def test_lovasz_tells_errors_apart_that_are_equal_in_bfloat16():
    """Sorting 8-bit numbers mixes places whose errors differ; here they are sorted in float32, also under autocast."""
    ours = 1e-3 * logits(side=16)
    targets = masks(side=16)
    expected = by_image_and_class(ours, targets, lovasz_of_class)
    with torch.autocast("cpu", torch.bfloat16):
        found = lovasz(ours, targets, reduction="none")
    assert found.dtype == torch.float32
    assert np.allclose(found, expected, atol=1e-6)
    assert ours.softmax(1).bfloat16().unique().numel() < 20 < ours.softmax(1).unique().numel()


@pytest.mark.parametrize("loss", [dice, lovasz])
def test_outputs_come_to_the_grid_of_the_targets(loss):
    coarse, targets = logits(side=3), masks()
    fine = functional.interpolate(coarse, (6, 6), mode="bilinear", align_corners=False)
    assert torch.equal(loss(coarse, targets), loss(fine, targets))


def test_mistakes_are_said():
    with pytest.raises(UserError, match="smooth must be at least 0; given -1"):
        dice(logits(), masks(), smooth=-1.0)
    with pytest.raises(UserError, match="go from 0 to 1, and 255 is void"):
        lovasz(logits(classes=2), masks())
