"""Data from Python objects: every kind gives the same pixels and labels, and what is none is refused with what would be."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import distilens
from distilens.data import as_data, from_arrays, load
from distilens.foundation.errors import UserError

N, SIDE = 30, 8
NAMES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE + 2, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.arange(N) % 3


class Pictures(Dataset):
    """A map-style data set as users write them."""

    def __init__(self, pixels, labels, change=lambda picture: picture, classes=None, together=tuple):
        self.pixels, self.labels, self.change, self.together = pixels, labels, change, together
        if classes:
            self.classes = list(classes)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, place):
        return self.together((self.change(self.pixels[place]), self.labels[place]))


def chw(picture):
    """As torchvision's ToTensor gives it."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def same(data, pixels, labels):
    """All rows of a set without a test set of its own are in one source."""
    assert np.array_equal(data.train.rows.images, pixels)
    assert np.array_equal(data.train.rows.labels, labels)


FORMS = {
    "array NHWC uint8": lambda x, y: (x, y),
    "array NCHW uint8": lambda x, y: (x.transpose(0, 3, 1, 2), y),
    "tensor NCHW uint8": lambda x, y: (torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)),
    "tensor NCHW float": lambda x, y: (torch.from_numpy(x).permute(0, 3, 1, 2) / 255, torch.from_numpy(y)),
    "tensor NHWC float": lambda x, y: (torch.from_numpy(x) / 255, torch.from_numpy(y)),
    "floats to 255": lambda x, y: (x.astype(np.float32), y.astype(np.float64)),
    "int64": lambda x, y: [x.astype(np.int64), y.tolist()],
    "one-hot": lambda x, y: (x, np.eye(3)[y]),
    "labels [n 1]": lambda x, y: (x, y[:, None]),
    "TensorDataset": lambda x, y: TensorDataset(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)),
    "DataLoader": lambda x, y: DataLoader(Pictures(x, y, chw), batch_size=7, shuffle=True),
    "Dataset of tensors": lambda x, y: Pictures(x, y, chw),
    "Dataset of arrays": lambda x, y: Pictures(x, y),
    "Dataset of Pillow images": lambda x, y: Pictures(x, y, Image.fromarray),
    "Dataset of dictionaries": lambda x, y: Pictures(
        x, y, chw, together=lambda it: {"pixel_values": it[0], "labels": it[1]}
    ),
    "labels as tensors": lambda x, y: Pictures(x, torch.from_numpy(y), chw),
    "ConcatDataset": lambda x, y: ConcatDataset([Pictures(x[:9], y[:9], chw), Pictures(x[9:], y[9:], chw)]),
    "list of pairs": lambda x, y: [(Image.fromarray(one), int(label)) for one, label in zip(x, y, strict=True)],
    "lists": lambda x, y: ([Image.fromarray(one) for one in x], y.tolist()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_data(form, pixels, labels, tmp_path):
    same(as_data(FORMS[form](pixels, labels), tmp_path), pixels, labels)


def test_load_and_distill_take_objects(pixels, labels, tmp_path):
    assert load((pixels, labels)).fingerprint == from_arrays(pixels, labels).fingerprint
    settings = {"epochs": 1, "batch_size": 8}
    student, _ = distilens.distill("resnet8", None, (pixels, labels), ["ce"], settings=settings)
    assert student.classes == ("0", "1", "2")


def test_names_of_classes(pixels, labels, tmp_path):
    named = Pictures(pixels, labels, classes=NAMES)
    for given in (named, Subset(named, range(24)), DataLoader(Subset(named, range(24)))):
        assert as_data(given, tmp_path).classes == NAMES
    words = as_data((pixels, np.array(NAMES)[labels]), tmp_path)
    assert words.classes == NAMES and np.array_equal(words.train.rows.labels, labels)
    same(as_data(Pictures(pixels, np.array(NAMES)[labels].tolist()), tmp_path), pixels, labels)


def test_names_that_are_given_to_classes(pixels, labels, tmp_path):
    plain, named = as_data((pixels, labels), tmp_path), as_data((pixels, labels), tmp_path, class_names=NAMES)
    assert named.classes == NAMES != plain.classes
    same(named, pixels, labels)
    assert named.source_fingerprint != plain.source_fingerprint  # a teacher that knows names answers in their order
    for wrong in (NAMES[:2], (*NAMES[:2], NAMES[0]), "abc"):
        with pytest.raises(UserError, match=r"class_names must give each of the 3 classes .* a different name"):
            as_data((pixels, labels), tmp_path, class_names=wrong)


def test_pairs_triples_and_dictionaries(pixels, labels, tmp_path):
    pictures = Pictures(pixels, labels, chw)
    train, rest = Subset(pictures, range(18)), Subset(pictures, range(18, 24))
    test = Subset(pictures, range(24, 30))
    for given in ((train, test), {"train": train, "test": test}, (DataLoader(train), DataLoader(test))):
        data = as_data(given, tmp_path)
        assert len(data.test) == 6 and len(data.train) + len(data.validation) == 18
    for given in ((train, rest, test), {"train": train, "valid": rest, "test": test}):
        data = as_data(given, tmp_path)
        assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 6)
    arrays = as_data(((pixels[:24], labels[:24]), (pixels[24:], labels[24:])))
    assert len(arrays.test) == 6
    assert len(as_data((pixels, labels), shots=2).train) == 6
    assert as_data((pixels, labels), tmp_path, size=4).size == (4, 4)


def test_items_are_read_as_they_are_and_again_when_they_change(pixels, labels, tmp_path):
    random = np.random.default_rng(0)
    changing = Pictures(pixels, labels, lambda one: random.permutation(one))
    (said,) = [line for line in as_data(changing, tmp_path).inventory.remarks if "changes between two reads" in line]
    assert "item 0 of train" in said and "8 of the 8" in said
    assert not any("changes" in line for line in as_data(Pictures(pixels, labels), tmp_path).inventory.remarks)
    with pytest.warns(UserWarning, match="only the data set of the DataLoader is used"):
        distilens.distill(
            "resnet8", None, DataLoader(Pictures(pixels, labels, chw)), ["ce"], settings={"epochs": 1, "batch_size": 8}
        )


def test_several_sizes_and_grey(labels, tmp_path):
    pictures = [Image.new("L", (40 + n, 50), 5 * n) for n in range(N)]
    data = as_data(Pictures(pictures, labels), tmp_path)
    assert data.size == (32, 32) and any("different sizes" in line for line in data.inventory.remarks)
    grey = np.random.default_rng(1).integers(0, 256, (N, 9, 9), dtype=np.uint8)
    same(as_data((grey, labels)), np.repeat(grey[..., None], 3, -1), labels)
    same(as_data((torch.from_numpy(grey)[:, None], labels)), np.repeat(grey[..., None], 3, -1), labels)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    over = as_data([(clear, n % 3) for n in range(N)], tmp_path)
    assert (over.train.rows.images == 255).all() and any("transparent" in line for line in over.inventory.remarks)


def test_hugging_face_sets(pixels, labels, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=list(NAMES))})
    columns = {"img": [Image.fromarray(one) for one in pixels], "fine": labels.tolist()}
    rows = datasets.Dataset.from_dict(columns, features=features)
    data = as_data(rows, tmp_path)
    assert data.classes == NAMES
    same(data, pixels, labels)
    both = as_data(datasets.DatasetDict({"train": rows, "test": rows.select(range(6))}), tmp_path)
    assert len(both.test) == 6
    halved = rows.with_transform(
        lambda batch: {"image": [one.resize((4, 4)) for one in batch["img"]], "label": batch["fine"]}
    )
    assert as_data(halved, tmp_path).size == (4, 4)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3, 8, 8), 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, y: x, r"images without labels: give both, \(X, y\)"),
        (lambda x, y: 3, "no data in a int"),
        (lambda x, y: Stream(), "a Stream has no items by number"),
        (lambda x, y: (x.reshape(N, -1), y), r"Bring flat rows into shape by reshape\(-1, 3, height, width\)"),
        (lambda x, y: (x // 128, y), "whole numbers from 0 to 1, which would be black pictures"),
        (lambda x, y: (x, y[:-1]), f"expected {N} integers"),
        (lambda x, y: (chw_all(x) * 4 - 2, y), "They look normalised: remove Normalize"),
        (lambda x, y: (chw_all(x) * float("nan"), y), "NaN or infinite"),
        (lambda x, y: (x, np.full((N, 3), 1 / 3)), r"not one-hot.*labels.argmax\(1\)"),
        (lambda x, y: (x, y + 0.5), "not whole"),
        (lambda x, y: Pictures(chw_all(x) * 4 - 2, y), "They look normalised"),
        (
            lambda x, y: Pictures(x, y, together=lambda it: {"foto": it[0], "label": it[1]}),
            "keys foto, label has no picture",
        ),
        (lambda x, y: Pictures(x, y, lambda one: None), "item 0 of train is not a picture but NoneType"),
        (lambda x, y: Pictures(x, y, lambda one: 1 / 0), "item 0 of train cannot be read: ZeroDivisionError"),
        (
            lambda x, y: Pictures(x, [{"boxes": [], "labels": []}] * N, chw),
            "its label is a dictionary of boxes, labels",
        ),
        (
            lambda x, y: Pictures(x, [0, *[np.zeros((8, 8))] * (N - 1)], chw),
            r"its label is \[8, 8\]: expected one class",
        ),
        (lambda x, y: Pictures([], []), "the train set is empty"),
        (lambda x, y: {"test": (x, y)}, "needs train"),
        (lambda x, y: (x[..., :2], y), "expected 1, 3 or 4 channels"),
        (lambda x, y: (np.concatenate([x, x[..., :1]], -1), y), "4 channels"),
    ],
)
def test_what_is_no_data_is_refused(given, message, pixels, labels, tmp_path):
    made = given(pixels, labels)
    with pytest.raises(UserError, match=message):
        as_data(made, tmp_path)


def chw_all(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def test_options_of_a_notation_stay_in_it():
    with pytest.raises(UserError, match="into its notation"):
        as_data("digits", limit=3)


def test_joined_sets_must_name_the_same_classes(pixels, labels, tmp_path):
    one, other = (Pictures(pixels, labels, chw, classes=names) for names in (NAMES, NAMES[::-1]))
    assert as_data(ConcatDataset([one, one]), tmp_path).classes == NAMES
    with pytest.raises(UserError, match=r"name their classes differently.*ant, bee, cow; cow, bee, ant"):
        as_data(ConcatDataset([one, other]), tmp_path)


def test_pictures_may_be_paths(tmp_path, pixels, labels):
    paths = []
    for number, picture in enumerate(pixels):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(picture).save(paths[-1])
    expected = as_data((pixels, labels), tmp_path / "cache")
    for given in (paths, list(map(str, paths))):
        data = as_data(Pictures(given, labels), tmp_path / "cache")
        assert np.array_equal(data.train.rows.images, expected.train.rows.images)
        assert np.array_equal(data.train.rows.labels, expected.train.rows.labels)


def test_a_label_is_needed_for_each_picture(pixels, labels):
    several = [Image.fromarray(picture) for picture in pixels]
    with pytest.raises(UserError, match=r"there are 30 train images and 29 labels: expected one per image"):
        as_data((several, labels[:-1].tolist()))
