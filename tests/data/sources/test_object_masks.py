"""Pairs of pictures and masks as Python objects."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from distilens import as_data
from distilens.data.sources.object_masks import values_of_one
from distilens.foundation.errors import UserError
from distilens.tasks import VOID, Segmentation

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 6, 8, 3), dtype=np.uint8)
MASKS = (IMAGES[..., 1] > 127).astype(np.uint8)


class Pairs:
    """A map-style data set of pictures and masks."""

    def __init__(self, make, count=30):
        self.make, self.count, self.reads = make, count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        self.reads += 1
        return self.make(at)


FORMS = {
    "arrays": (IMAGES, MASKS),
    "channels first": (IMAGES.transpose(0, 3, 1, 2), MASKS.astype(np.int64)),
    "tensors": (torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255, torch.from_numpy(MASKS).long()),
    "one channel": (IMAGES, MASKS[:, None]),
    "true and false": (IMAGES, MASKS.astype(bool)),
    "tensor data set": TensorDataset(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(MASKS)),
    "loader": DataLoader(TensorDataset(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(MASKS)), 5),
    "pillow": Pairs(lambda at: (Image.fromarray(IMAGES[at]), Image.fromarray(MASKS[at]))),
    "dictionaries": Pairs(lambda at: {"image": IMAGES[at], "mask": MASKS[at]}),
    "tensor items": Pairs(
        lambda at: (torch.from_numpy(IMAGES[at]).permute(2, 0, 1), torch.from_numpy(MASKS[at])[None])
    ),
    "list": [(image, mask) for image, mask in zip(IMAGES, MASKS, strict=True)],
    "two lists": (list(IMAGES), list(MASKS)),
    "0 and 255": (IMAGES, MASKS * 255),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, cache):
    data = as_data(FORMS[form], cache)
    assert data.task == Segmentation(("0", "255") if form == "0 and 255" else ("0", "1")) and data.size == (6, 8)
    rows = np.concatenate([split.index for split in data.splits.values()])
    assert sorted(rows.tolist()) == list(range(30))
    for split in data.splits.values():
        assert np.array_equal(split.rows.images[split.index], IMAGES[split.index])
        assert np.array_equal(split.targets, MASKS[split.index])


def test_sets_options_and_names(cache):
    values = np.where(MASKS == 1, 7, 3)
    values[:, 0] = -100
    given = {"train": (IMAGES, values), "test": (IMAGES[:5], values[:5])}
    data = as_data(given, cache, class_names=("dark", "bright"), values=(3, 7), ignore=-100, seed=1)
    assert data.classes == ("dark", "bright") and len(data.test) == 5
    assert (data.test.targets[:, 0] == VOID).all() and np.array_equal(data.test.targets[:, 1:], MASKS[:5, 1:])
    pair = as_data(((IMAGES, MASKS), (IMAGES[:5], MASKS[:5])), cache, size=4)
    assert len(pair.test) == 5 and pair.size == (4, 4) and pair.test.targets.shape == (5, 4, 4)
    with pytest.raises(UserError, match="values= and ignore= are about masks, and the data has labels"):
        as_data((IMAGES, np.arange(30) % 2), cache, ignore=1)


def test_an_item_without_a_mask_is_not_labelled(cache):
    data = as_data(
        [(image, None if at == 4 else mask) for at, (image, mask) in enumerate(zip(IMAGES, MASKS, strict=True))], cache
    )
    assert data.train.index[data.train.strata < 0].tolist() == [4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda at: (IMAGES[at], MASKS[at][:, :5] if at == 3 else MASKS[at]),
            "item 3 of train: its mask is 5×6, the image 8×6",
        ),
        (lambda at: (IMAGES[at], 1 if at == 3 else MASKS[at]), "item 3 of train has no mask"),
        (lambda at: (IMAGES[at], MASKS[at] / 2), "the mask of item 0 of train holds fractions"),
        (lambda at: (IMAGES[at], IMAGES[at]), "the mask of item 0 of train is a colour picture"),
        (
            lambda at: (IMAGES[at], np.zeros((2, 6, 8))),
            r"is float64 \[2, 6, 8\]: expected the number of a class in each pixel",
        ),
    ],
)
def test_mistakes_name_the_item(make, message, cache):
    with pytest.raises(UserError, match=message):
        as_data(Pairs(make), cache)


def test_random_transforms_are_noticed(cache):
    random = np.random.default_rng(3)

    def flipped(at):
        turn = slice(None, None, -1 if random.random() < 0.5 else 1)
        return IMAGES[at][:, turn], MASKS[at][:, turn]

    data = as_data(Pairs(flipped), cache)
    assert any("changes between two reads" in remark for remark in data.inventory.remarks)


def test_picture_and_mask_are_of_one_read(cache):
    """A data set that flips at random: what is stored is a picture with its own mask."""
    random = np.random.default_rng(3)

    def flipped(at):
        turn = slice(None, None, -1 if random.random() < 0.5 else 1)
        return IMAGES[at][:, turn], MASKS[at][:, turn]

    data = as_data(Pairs(flipped), cache)
    for split in data.splits.values():
        assert np.array_equal(split.targets, (split.rows.images[split.index][..., 1] > 127).astype(np.uint8))


def test_hub_data_sets(cache):
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [Image.fromarray(one) for one in IMAGES],
        "annotation": [Image.fromarray(one) for one in MASKS],
        "scan": [f"s{at % 6}" for at in range(30)],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "annotation": datasets.Image(), "scan": datasets.Value("string")}
    )
    made = datasets.Dataset.from_dict(columns, features=features)
    data = as_data(made, cache, class_names=("dark", "bright"))
    assert data.task == Segmentation(("dark", "bright"))
    assert np.array_equal(data.train.targets, MASKS[data.train.index])
    assert data.train.rows.column("scan")[:3].tolist() == ["s0", "s1", "s2"]
    made.save_to_disk(cache.parent / "saved")
    from distilens.data import load

    part = f"hf:{cache.parent / 'saved'},class_names=[dark,bright],group=scan"
    again = load(part, cache)
    sides = [set(split.rows.column("scan")[split.index]) for split in again.splits.values()]
    assert len(set().union(*sides)) == 6 == sum(map(len, sides)) and again.task == data.task
    assert np.array_equal(load(f"{part},target=annotation", cache).train.rows.targets, MASKS)


def test_values_of_one_mask():
    values = np.array([[0, 3], [1, 2]], dtype=np.uint8)
    for mask in (
        torch.from_numpy(values)[None].float(),
        values[..., None],
        Image.fromarray(values),
        values[..., None].repeat(3, 2),
    ):
        assert values_of_one(mask).tolist() == [[0, 3], [1, 2]]
