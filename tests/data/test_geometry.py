"""One geometry for all that belongs to an image, at any resolution."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from distilens.data.augment import AUGMENTS, Augment, window
from distilens.data.geometry import Geometry, reflect_lines
from distilens.models.grids import resized


def geometry(box, flip, source=(16, 16), size=None, whole=False) -> Geometry:
    return Geometry(torch.tensor(box, dtype=torch.float32), torch.tensor(flip), source, size or source, whole)


def draw_of(batch: int):
    generator = torch.Generator().manual_seed(1)
    kept = {}

    def draw(name, count=1, *, fixed=False):
        if name not in kept:
            kept[name] = torch.rand(batch, count, generator=generator)
        return kept[name]

    return draw


def test_the_identity_changes_nothing():
    pixels = torch.randint(0, 256, (3, 5, 6, 7), dtype=torch.uint8)
    same = Geometry.identity(3, (6, 7))
    assert torch.equal(same.move(pixels), pixels)
    assert same.move(pixels).dtype == torch.uint8
    assert torch.equal(same.move(pixels[:, 0]), pixels[:, 0])


@pytest.mark.parametrize("source", [(16, 16), (12, 20)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_a_whole_box_is_numpys_reflection_then_a_slice_then_a_flip(source, dtype):
    pixels = torch.randint(0, 256, (4, 3, *source)).to(dtype)
    corners, flip = [[-5.0, 3.0], [5.0, -5.0], [0.0, 0.0], [-1.0, -2.0]], [True, False, True, False]
    box = [[*corner, *map(float, source)] for corner in corners]
    moved = geometry(box, flip, source, whole=True).move(pixels)
    padded = functional.pad(pixels.float(), (5, 5, 5, 5), mode="reflect").to(dtype)
    for number, ((top, left), mirror) in enumerate(zip(corners, flip, strict=True)):
        expected = padded[number, :, 5 + int(top) :, 5 + int(left) :][:, : source[0], : source[1]]
        assert torch.equal(moved[number], expected.flip(-1) if mirror else expected)
    assert moved.dtype == dtype


def test_reflection_goes_on_for_boxes_further_out_than_the_image_is_wide():
    assert reflect_lines(torch.arange(-7, 8), 3).tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1][:15]
    assert reflect_lines(torch.arange(-3, 3), 1).tolist() == [0] * 6


@pytest.mark.parametrize("whole", [True, False])
def test_moving_a_mirrored_thing_in_a_mirrored_box_mirrors_the_result(whole):
    pixels = torch.rand(2, 3, 16, 16)
    box = (
        [[2.0, 1.0, 16.0, 16.0], [-3.0, -2.0, 16.0, 16.0]] if whole else [[2.0, 1.0, 9.5, 12.0], [0.5, 3.0, 7.0, 8.25]]
    )
    mirrored = [[top, 16 - left - width, height, width] for top, left, height, width in box]
    moved = geometry(box, [False, True], whole=whole).move(pixels)
    twin = geometry(mirrored, [False, True], whole=whole).move(pixels.flip(-1))
    assert torch.allclose(moved, twin.flip(-1), atol=1e-5)
    other = geometry(box, [True, False], whole=whole).move(pixels)
    assert torch.allclose(moved, other.flip(-1), atol=1e-5)


def test_a_linear_picture_is_sampled_where_the_box_is():
    """On a ramp, bilinear sampling is exact: each result pixel is the source coordinate of its centre, but never beyond the
    centres of the box's outermost pixels."""
    rows = (torch.arange(20.0) + 0.5)[:, None].expand(20, 30)
    columns = (torch.arange(30.0) + 0.5)[None, :].expand(20, 30)
    ramps = torch.stack([rows, columns])[None]
    box = geometry([[3.0, 4.0, 10.0, 16.0]], [False], (20, 30), (20, 30))
    moved = box.move(ramps)[0]
    assert torch.allclose(moved[0, :, 0], (3 + 10 * (torch.arange(20.0) + 0.5) / 20).clamp(3.5, 12.5), atol=1e-4)
    assert torch.allclose(moved[1, 0], (4 + 16 * (torch.arange(30.0) + 0.5) / 30).clamp(4.5, 19.5), atol=1e-4)


@pytest.mark.parametrize("size", [(20, 30), (31, 17)])
def test_pictures_are_cut_and_resized_as_one_would_by_hand(size):
    """Each picture is cut out, resized by Pillow, and flipped; the sampling of other devices agrees up to rounding."""
    pictures = torch.randint(0, 256, (40, 20, 30, 3), dtype=torch.uint8)
    drawn = AUGMENTS.build("resized_crop:area=[0.1,0.5]").geometry(draw_of(40), 0, (20, 30))
    boxes = replace(drawn, size=size)
    positions = torch.randperm(40)
    cut = boxes.cut(pictures, positions).float()
    assert cut.shape == (40, 3, *size)
    for row, box, flip, moved in zip(positions, boxes.box.int().tolist(), boxes.flip, cut, strict=True):
        top, left, height, width = box
        whole = Image.fromarray(pictures[row].numpy()).crop((left, top, left + width, top + height))
        expected = np.asarray(whole.resize(size[::-1], Image.Resampling.BILINEAR), np.float32)
        assert abs((expected[:, ::-1] if flip else expected) - moved.permute(1, 2, 0).numpy()).max() <= 1
    enlarged = replace(drawn, size=(40, 60))
    sampled = enlarged.resample(pictures[positions].permute(0, 3, 1, 2).float(), (40, 60))
    assert (enlarged.cut(pictures, positions).float() - sampled).abs().max() < 1.01


def test_coarse_maps_fine_maps_and_images_stay_together():
    """A blob at some place of the image is at the same place of its map, at any resolution of the map."""
    place = torch.tensor([5.0, 11.0])
    rows, columns = torch.meshgrid(torch.arange(32.0) + 0.5, torch.arange(32.0) + 0.5, indexing="ij")
    image = torch.exp(-((rows - 2 * place[0]) ** 2 + (columns - 2 * place[1]) ** 2) / 40)[None]

    def centre(picture):
        height, width = picture.shape
        mass = picture / picture.sum()
        return [
            float((mass.sum(1) * (torch.arange(height) + 0.5)).sum() / height),
            float((mass.sum(0) * (torch.arange(width) + 0.5)).sum() / width),
        ]

    for box, flip in (([2.0, 12.0, 16.0, 18.0], False), ([1.0, 11.0, 18.0, 19.0], True)):
        moved = geometry([box], [flip], (32, 32))
        expected = centre(moved.move(image)[0])
        for side in (8, 16, 64):
            small = functional.interpolate(image[None], (side, side), mode="area" if side < 32 else "bilinear")[0]
            assert moved.move(small).shape == (1, side, side)
            assert centre(moved.move(small)[0]) == pytest.approx(expected, abs=0.02)


def test_shrinking_averages():
    """A checkerboard of single pixels, at half the size, is grey: no pixel is just left out."""
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2).float()[None]
    moved = geometry([[0.0, 0.0, 32.0, 32.0]], [False], (32, 32)).move(board, (8, 8))
    assert (moved - 0.5).abs().max() < 0.05


def test_drawn_boxes_stay_in_range():
    draw = draw_of(4000)
    padded = Augment(padding=3, flip="random").geometry(draw, 0, (16, 12))
    for column, side in ((0, 16), (1, 12)):
        assert set(padded.box[:, column].tolist()) == set(range(-3, 4))
        assert (padded.box[:, column + 2] == side).all()
    assert 0.45 < padded.flip.float().mean() < 0.55
    assert not Augment(padding=3).geometry(draw_of(100), 0, (16, 12)).flip.any()
    boxes = AUGMENTS.build("resized_crop:area=[0.3,0.8],ratio=[0.5,2]").geometry(draw_of(4000), 0, (20, 20)).box
    assert boxes.min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 20.001
    area, ratio = boxes[:, 2] * boxes[:, 3] / 400, boxes[:, 3] / boxes[:, 2]
    assert torch.equal(boxes, boxes.round())
    assert area.max() <= 0.85  # each side is rounded by up to half a pixel
    assert area.median().item() == pytest.approx(0.55, abs=0.05)
    assert ratio.min() >= 0.45
    assert ratio.max() <= 2.2


def test_alternate_flips_change_sides_with_every_variant():
    draw = draw_of(200)
    first, second, third = (Augment(flip="alternate").geometry(draw, variant, (8, 8)).flip for variant in range(3))
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert 60 < int(first.sum()) < 140


def test_jitter_zero_is_the_image_and_its_factors_stay_in_range():
    pixels = 0.2 + 0.3 * torch.rand(500, 3, 4, 4)
    assert Augment().colour(pixels, draw_of(500)) is pixels
    grey = torch.full((500, 3, 4, 4), 0.4)  # without contrast or colour only brightness is left
    level = Augment(jitter=0.3).colour(grey, draw_of(500))[:, 0, 0, 0] / 0.4
    assert 0.7 <= level.min() < 0.72
    assert 1.28 < level.max() <= 1.3
    bright = Augment(jitter=1.0).colour(torch.rand(500, 3, 4, 4), draw_of(500))
    assert bright.min() >= 0
    assert bright.max() <= 1


def test_windows_are_boxes_around_their_centre():
    pixels = torch.zeros(1, 3, 10, 20)
    found = window(torch.tensor([[0.5, 0.25]]), torch.tensor([[0.4, 0.5]]), pixels)
    expected = torch.zeros(1, 10, 20, dtype=torch.bool)
    expected[0, 3:7, 0:10] = True
    assert torch.equal(found, expected)


def test_sampling_agrees_with_copying_inside_the_image():
    pixels = torch.rand(4, 3, 12, 12)
    box = torch.tensor([[0.0, 0, 12, 12], [0, 0, 12, 12], [2, -3, 12, 12], [-2, 1, 12, 12]])
    moved = Geometry(box, torch.tensor([False, True, False, True]), (12, 12), (12, 12), whole=True)
    exact, sampled = moved.move(pixels), moved.resample(pixels, (12, 12))
    assert torch.allclose(exact[:2], sampled[:2], atol=1e-5)
    assert torch.allclose(exact[2:, :, 3:-3, 3:-3], sampled[2:, :, 3:-3, 3:-3], atol=1e-5)
    assert torch.equal(exact[0], pixels[0])
    assert torch.equal(exact[1], pixels[1].flip(-1))


def test_coarse_maps_move_with_the_image():
    box = torch.tensor([[8.0, 0, 16, 16]])
    moved = Geometry(box, torch.tensor([True]), (16, 16), (16, 16), whole=True)
    fine = torch.zeros(1, 16, 16)
    fine[0, 8:12, 0:4] = 1  # lands in the upper right corner
    coarse = resized(fine, (4, 4))
    assert moved.move(coarse).shape == (1, 4, 4)
    assert torch.allclose(moved.move(coarse)[0, 0], torch.tensor([0.0, 0, 0, 1]), atol=1e-5)
    assert torch.equal(moved.move(fine)[0, :4, 12:], torch.ones(4, 4))


def test_reflection_matches_numpy():
    padded = np.pad(np.arange(6), 4, mode="reflect")
    assert reflect_lines(torch.arange(-4, 10), 6).tolist() == padded.tolist()


# Masks of classes


@pytest.mark.parametrize("source", [(16, 16), (12, 20)])
def test_a_whole_box_moves_a_mask_as_numpys_padding_then_a_slice_then_a_flip(source):
    masks = torch.randint(0, 5, (4, *source), dtype=torch.uint8)
    corners, flip = [[-5.0, 3.0], [5.0, -5.0], [0.0, 0.0], [-1.0, -2.0]], [True, False, True, False]
    box = [[*corner, *map(float, source)] for corner in corners]
    moved = geometry(box, flip, source, whole=True).move_nearest(masks, outside=255)
    for number, ((top, left), mirror) in enumerate(zip(corners, flip, strict=True)):
        padded = np.pad(masks[number].numpy(), 5, constant_values=255)
        expected = padded[5 + int(top) :, 5 + int(left) :][: source[0], : source[1]]
        assert np.array_equal(moved[number], expected[:, ::-1] if mirror else expected)
    assert moved.dtype == torch.uint8


def test_a_mask_that_is_a_threshold_of_its_picture_stays_one():
    """On a ramp the picture holds the coordinate of each place exactly, so any crop of the mask is a threshold of its crop."""
    columns = (torch.arange(30.0) + 0.5)[None, :].expand(20, 30)
    rows = (torch.arange(20.0) + 0.5)[:, None].expand(20, 30)
    draw = draw_of(200)
    boxes = AUGMENTS.build("resized_crop:area=[0.1,0.9],ratio=[0.5,2]").geometry(draw, 0, (20, 30))
    for ramp, edge in ((columns, 13.0), (rows, 8.0)):
        picture = ramp.expand(200, 20, 30)
        moved = boxes.move(picture[:, None], boxes.size)[:, 0]
        mask = boxes.move_nearest((picture >= edge).to(torch.uint8), outside=255)
        # bilinear sampling reflects within half a pixel of the image's edge, and rounds to about 1e-5 elsewhere
        inside = (moved > 0.6) & (moved < float(ramp.max()) - 0.1) & ((moved - edge).abs() > 1e-3)
        assert inside.float().mean() > 0.9
        assert torch.equal(mask[inside], (moved >= edge).to(torch.uint8)[inside])
        assert (mask != 255).all()  # no drawn box leaves the image


def test_the_nearest_place_is_that_of_torchs_grid_sampling():
    draw = draw_of(50)
    boxes = AUGMENTS.build("resized_crop:area=[0.1,0.9]").geometry(draw, 0, (17, 23))
    boxes = replace(boxes, box=boxes.box * torch.tensor([1, 1, 0.97, 0.97]))  # no place is between two pixels
    masks = torch.randint(0, 9, (50, 17, 23), dtype=torch.uint8)
    top, left, height, width = boxes.box.double().unbind(1)
    mirror = torch.where(boxes.flip, -1.0, 1.0).double()
    zero = torch.zeros(50, dtype=torch.float64)
    across = torch.stack([width / 23 * mirror, zero, (2 * left + width) / 23 - 1], 1)
    down = torch.stack([zero, height / 17, (2 * top + height) / 17 - 1], 1)
    grid = functional.affine_grid(torch.stack([across, down], 1), [50, 1, 17, 23], align_corners=False)
    expected = functional.grid_sample(masks[:, None].double(), grid, mode="nearest", align_corners=False)[:, 0]
    assert (boxes.move_nearest(masks, outside=255) != expected).float().mean() < 1e-4  # but for halves that round
