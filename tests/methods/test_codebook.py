"""A codebook sums up all of a teacher's features, the same each time, and is refused for anything else than what it is of."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from distilens.cli import commands
from distilens.core import Model
from distilens.data import from_arrays, load
from distilens.foundation.errors import UserError
from distilens.methods import codebook
from distilens.methods.codebook import Codebook, check, make_codebook, nearest_own_subclass, nearness
from distilens.models import build_model
from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run, lock_run
from distilens.runs.training import train_stage, train_teacher
from distilens.teachers import LiveTeacher

CLASSES = 3


class Pixels(nn.Module):
    """A teacher whose feature map is the image itself, and whose tokens are its places in lines."""

    def __init__(self, classes: int, size: int = 4):
        super().__init__()
        self.same, self.norm, self.head = nn.Identity(), nn.BatchNorm2d(3), nn.Linear(3, classes)
        self.wide = nn.Upsample(size=(size, size))

    def forward(self, images):
        return self.head(self.wide(self.norm(self.same(images))).mean((2, 3)))


def pixels(count: int = 37, size: int = 4, spread: int = 40):
    """Images whose colour says the class, but for noise; and their teacher. 37 images do not come out even."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    colours = np.eye(3)[labels] * 200
    images = (colours[:, None, None] + draw.uniform(0, spread, (count, size, size, 3))).astype(np.uint8)
    data = from_arrays(images, labels, classes=["red", "green", "blue"])
    model = Model(Pixels(CLASSES), data.classes, size=(size, size), mean=(0, 0, 0), std=(1, 1, 1))
    return data, LiveTeacher(model)


def rows_of(data) -> torch.Tensor:
    images, _ = data.train.pixels(np.arange(len(data.train)))
    return images.flatten(2).transpose(1, 2).flatten(0, 1)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    data = load("shapes:train=60,test=40,size=16,classes=[0,1,2]", tmp_path_factory.mktemp("data"))
    torch.manual_seed(0)
    return data, LiveTeacher(build_model("resnet8", data.classes, data.size))


# stage 1


def test_every_place_of_every_image_is_clustered_and_the_remainder_too(monkeypatch):
    data, teacher = pixels()
    expected = rows_of(data)
    seen = []
    fit = MiniBatchKMeans.partial_fit
    monkeypatch.setattr(
        MiniBatchKMeans, "partial_fit", lambda self, rows: (seen.append(rows.copy()), fit(self, rows))[1]
    )
    monkeypatch.setattr(codebook, "LEAST", 100)
    make_codebook(teacher, data, tap="same", templates=5, passes=2, batch_size=7)
    assert len(expected) % 100
    assert {len(rows) for rows in seen} == {100, len(expected) % 100}
    found = np.concatenate(seen)
    assert len(found) == 2 * len(expected)
    assert not np.allclose(seen[0], expected[:100]), "a set sorted by class would give centres of its first one"
    twice = torch.cat([expected, expected]).numpy()
    assert np.allclose(np.sort(found, 0), np.sort(twice, 0))


def test_centres_are_where_the_features_are():
    data, teacher = pixels(spread=2)
    made = make_codebook(teacher, data, tap="same", templates=3)
    assert (made.stage, made.tap, made.channels, made.templates) == (1, "same", 3, 3)
    order = made.centres.argmax(1).argsort()
    assert torch.allclose(made.centres[order], torch.eye(3) * 200 / 255, atol=0.01)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_same_seed_makes_the_same_codebook_and_another_does_not(shapes, stage):
    data, teacher = shapes
    options = {"tap": "layer2", "stage": stage, "templates": 20, "subclasses": 3}
    one, two = (make_codebook(teacher, data, **options) for _ in range(2))
    assert one.content == two.content
    assert one.made_from == two.made_from
    assert make_codebook(teacher, data, **options, seed=1).content != one.content


def test_more_templates_than_places_are_refused():
    data, teacher = pixels()
    count = 16 * len(data.train)
    assert make_codebook(teacher, data, tap="same", templates=count, passes=1).templates == count
    with pytest.raises(UserError, match=rf"templates={count + 1:,} are more than the {count:,} places"):
        make_codebook(teacher, data, tap="same", templates=count + 1)


def test_features_that_are_no_numbers_are_refused():
    data, teacher = pixels()
    teacher.model.network.norm.running_mean[0] = float("nan")
    with pytest.raises(UserError, match="'norm' are not all finite"):
        make_codebook(teacher, data, tap="norm", templates=3)


def test_a_long_work_says_how_much_time_is_left(monkeypatch):
    monkeypatch.setattr("distilens.methods.codebook.MOMENT", 0.0)
    data, teacher = pixels()
    for stage in (1, 2):
        said = []
        make_codebook(teacher, data, tap="same", stage=stage, templates=3, subclasses=2, batch_size=7, say=said.append)
        lines = [line for line in said if " images/s" in line]
        assert len(lines) == 8  # four batches in each of two passes
        assert all(re.search(r"images/s  \d:\d\d:\d\d left$", line) for line in lines[:-1])
        assert lines[-1].startswith(f"codebook: {2 * len(data.train):,}/{2 * len(data.train):,} ")


def test_images_without_a_label_are_clustered_and_discriminate_nothing():
    data, teacher = pixels()
    data.train.rows.labels[data.train.index[:5]] = -1
    said = []
    make_codebook(teacher, data, tap="same", templates=3, say=said.append)
    make_codebook(teacher, data, tap="same", stage=2, subclasses=2, say=said.append)
    count = len(data.train)
    assert [re.search(r"([\d,]+) places", line)[1] for line in said if " places with " in line] == [
        f"{16 * count:,}",
        f"{16 * (count - 5):,}",
    ]
    data.train.rows.labels[data.train.index] = -1
    with pytest.raises(UserError, match="none of the training images has a label"):
        make_codebook(teacher, data, tap="same", stage=2)


# stage 2


def test_the_table_counts_every_place_and_its_rows_sum_to_one(shapes, monkeypatch):
    data, teacher = shapes
    made = make_codebook(teacher, data, tap="layer2", stage=2, subclasses=4, batch_size=7)
    assert made.templates == 4 * CLASSES
    assert torch.allclose(made.table.sum(1), torch.ones(made.templates))
    assert (made.table >= 0).all()

    # again by hand, place by place
    images, _ = data.train.pixels(np.arange(len(data.train)))
    feature = teacher.forward(images, ["layer2"])[1]["layer2"].flatten(2).transpose(1, 2)
    seen = ((feature - made.mean) @ made.projection).double()
    counts = torch.zeros(12, 12)
    apart = (seen[:, :, None] - made.centres.double()).square().sum(-1)
    for image, label in enumerate(data.train.labels):
        for place in range(apart.shape[1]):
            own = 4 * label + apart[image, place, 4 * label : 4 * label + 4].argmin()
            counts[own, apart[image, place].argmin()] += 1
    assert counts.sum() == len(images) * 64
    assert torch.allclose(made.table, counts / counts.sum(1, keepdim=True), atol=1e-6)
    assert made.table.diagonal().mean() < 0.9, "a table of ones on the diagonal would test nothing"


def test_classes_that_are_told_apart_give_a_peaked_table():
    data, teacher = pixels(spread=20)
    made = make_codebook(teacher, data, tap="same", stage=2, subclasses=2)
    within = made.table.view(CLASSES, 2, CLASSES, 2).sum(3).diagonal(dim1=0, dim2=2)
    assert torch.equal(within, torch.ones(2, CLASSES))


def test_no_more_dimensions_than_classes_less_one_and_than_sixty(shapes, monkeypatch):
    data, teacher = shapes
    assert make_codebook(teacher, data, tap="layer2", stage=2, subclasses=2).projection.shape == (32, CLASSES - 1)
    monkeypatch.setattr(codebook, "DIMENSIONS", 1)
    made = make_codebook(teacher, data, tap="layer2", stage=2, subclasses=2)
    assert made.projection.shape == (32, 1)
    assert made.centres.shape == (2 * CLASSES, 1)
    assert made.channels == 32


def test_the_projection_is_that_of_the_discriminant_analysis():
    data, teacher = pixels()
    made = make_codebook(teacher, data, tap="same", stage=2, subclasses=2)
    rows, labels = rows_of(data).numpy(), np.repeat(data.train.labels, 16)
    expected = LinearDiscriminantAnalysis(n_components=2).fit(rows, labels).transform(rows)
    found = (torch.from_numpy(rows) - made.mean) @ made.projection
    assert torch.allclose(found.abs(), torch.from_numpy(expected).abs(), atol=1e-3)


def test_where_places_are_too_many_a_share_is_kept_and_the_table_still_counts_all(monkeypatch):
    data, teacher = pixels()
    monkeypatch.setattr(codebook, "KEPT", 3 * 150)
    said, used = [], []
    fit = LinearDiscriminantAnalysis.fit
    monkeypatch.setattr(
        LinearDiscriminantAnalysis,
        "fit",
        lambda self, rows, labels: (used.append(len(rows)), fit(self, rows, labels))[1],
    )
    tables = []
    confused = codebook.count_confusions
    monkeypatch.setattr(
        codebook, "count_confusions", lambda places, *rest: (tables.append(places.count), confused(places, *rest))[1]
    )
    made = make_codebook(teacher, data, tap="same", stage=2, subclasses=2, say=said.append)
    assert 100 < used[0] < 200
    assert f"from {used[0]} of the places" in said[-1]
    assert tables == [16 * len(data.train)]
    assert torch.allclose(made.table.sum(1), torch.ones(6))


def test_a_class_with_too_few_places_is_named():
    data, teacher = pixels()
    with pytest.raises(UserError, match=r"the class 'red' has \d+ places of \d+ .*subclasses=500"):
        make_codebook(teacher, data, tap="same", stage=2, subclasses=500)


@pytest.mark.filterwarnings("error")
def test_places_that_are_all_alike_make_no_row_that_is_not_a_share():
    data, teacher = pixels(spread=1)  # one colour a class
    teacher.model.network.same = nn.Sequential(nn.Identity(), nn.Softmax(1))
    made = make_codebook(teacher, data, tap="same", stage=2, subclasses=3)
    assert made.table.isfinite().all()
    assert torch.allclose(made.table.sum(1), torch.ones(9))


def test_the_nearest_of_the_labels_own_sub_classes_is_chosen():
    points, centres = torch.randn(40, 5), torch.randn(12, 5)
    near = nearness(points, centres)
    apart = torch.cdist(points, centres).square()
    assert torch.allclose(near - points.square().sum(1, keepdim=True), -apart, atol=1e-4)
    labels = torch.arange(40) % 4
    own = nearest_own_subclass(near, labels, 4)
    assert torch.equal(own // 3, labels)
    for row, number in enumerate(own):
        assert number == 3 * labels[row] + apart[row, 3 * labels[row] : 3 * labels[row] + 3].argmin()


# files


@pytest.mark.parametrize("stage", [1, 2])
def test_a_file_holds_all_of_it(tmp_path, stage):
    data, teacher = pixels()
    made = make_codebook(teacher, data, tap="same", stage=stage, templates=4, subclasses=2)
    made.save(tmp_path / "deep" / "book.safetensors")
    again = Codebook.load(tmp_path / "deep" / "book.safetensors")
    assert again.content == made.content
    assert again.tensors.keys() == made.tensors.keys()
    assert (again.stage, again.tap, again.size) == (made.stage, made.tap, made.size)
    assert again.classes == made.classes == (CLASSES if stage == 2 else 0)
    assert again.made_from == made.made_from
    assert again.made_from["data"] == data.fingerprint
    check(again, teacher, "same")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    data, teacher = pixels()
    path = tmp_path / "book.safetensors"
    make_codebook(teacher, data, tap="same", templates=4).save(path)
    whole = path.read_bytes()
    cut, flipped = bytearray(whole[:-9]), bytearray(whole)
    flipped[-1] ^= 1
    for content in (b"", b"nothing of the kind", bytes(cut), bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a whole codebook"):
            Codebook.load(path)
    from safetensors.torch import save

    path.write_bytes(save({"weight": torch.zeros(3)}))
    with pytest.raises(UserError, match="is not a whole codebook"):
        Codebook.load(path)
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match="no codebook at"):
            Codebook.load(missing)


def test_a_codebook_of_another_teacher_or_tap_is_refused():
    data, teacher = pixels()
    made = make_codebook(teacher, data, tap="same", templates=4)
    check(made, teacher, "same")
    with pytest.raises(UserError, match="to the teacher's tap 'same', but the method reads 'norm'"):
        check(made, teacher, "norm")
    _, other = pixels()
    other.model.network.head.weight.data.add_(1)
    with pytest.raises(UserError, match=r"to another teacher: it was made from .* with weights"):
        check(made, other, "same")


# in a run

NETS = """
from torch import nn

def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    )
"""

RECIPE = {
    "name": "coded",
    "data": "shapes:train=60,test=40,size=16,classes=[0,1,2]",
    "teacher": {"model": "python:coded_nets:tiny"},
    "student": {"model": "python:coded_nets:tiny", "methods": ["ce", "kd_layer:tap=2,templates=12"]},
    "train": {"epochs": 1, "batch_size": 18, "precision": "float32", "workers": 0},
    "explain": {"explainers": ["gradcam"], "images": 2, "measured": 4},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "coded_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("coded_nets", None)


def made_by(run: Run) -> list[Path]:
    return sorted((run.folder / "teacher" / "codebooks").glob("*.safetensors"))


def trained(name: str, *changes: str) -> Run:
    run = Run(Path("runs") / name, make_recipe(RECIPE, changes))
    with lock_run(run):
        train_stage(run)
    return run


def test_a_run_makes_its_codebooks_once_and_finds_them_again(place, monkeypatch):
    both = 'student.methods=["ce","kd_layer:tap=2,templates=12","kd_layer:stage=2,tap=2,subclasses=2,as=inter"]'
    run = trained("one", both)
    books = made_by(run)
    assert sorted(Codebook.load(path).stage for path in books) == [1, 2]
    assert list(run.model("student").inserted) == ["kd_layer", "kd_layer2"]
    key = (run.folder / "student" / "stage.json").read_text()
    monkeypatch.setattr("distilens.methods.kd_layer.make_codebook", lambda *given, **options: pytest.fail("made again"))
    trained("one", both, "student.methods.kd_layer.alpha=0.5")
    assert made_by(run) == books
    assert (run.folder / "student" / "stage.json").read_text() != key


def test_a_students_key_does_not_say_where_its_codebook_is(place):
    run = trained("one")
    (path,) = made_by(run)
    there = [f"student.methods=[ce,[kd_layer:tap=2,templates=12,codebook={name}]]" for name in ("a", "b")]
    weights, keys = [], []
    for change in there:
        Path(change[-3]).write_bytes(path.read_bytes())
        trained("one", change)
        keys.append((run.folder / "student" / "stage.json").read_text())
        weights.append(run.weights_key("student"))
    assert keys[0] == keys[1]  # not even trained again
    assert weights[0] == weights[1]


def test_a_codebook_of_another_teacher_is_refused_before_a_step_is_taken(place):
    one = trained("one")
    (path,) = made_by(one)
    change = f"student.methods=[ce,[kd_layer:tap=2,templates=12,codebook={path}]]"
    with pytest.raises(UserError, match="the codebook belongs to another teacher"):
        trained("two", change, "seed=5")
    assert not list(Path("runs/two/student").rglob("*.safetensors"))
    assert not list(Path("runs/two/student").rglob("last.pt"))


def command(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["distilens", "codebook", *words])
    code = 0
    try:
        commands.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_makes_what_a_run_then_uses(place, monkeypatch, capsys):
    run = Run(Path("runs/coded"), make_recipe(RECIPE))
    Path("recipe.toml").write_text(run.recipe.to_toml())
    code, output, error = command(monkeypatch, capsys, "recipe.toml")
    assert code == 0, error
    (path,) = made_by(run)
    assert output == f"{path}\n"
    assert "codebook:" in error
    assert (run.folder / "teacher" / "model.safetensors").is_file()
    assert not (run.folder / "student").exists()
    before = path.stat().st_mtime_ns
    assert command(monkeypatch, capsys, "runs/coded")[:2] == (0, f"{path}\n")  # the run as well as the recipe
    trained("coded")
    assert made_by(run) == [path]
    assert path.stat().st_mtime_ns == before
    code, output, _ = command(
        monkeypatch, capsys, "recipe.toml", "--set", "student.methods.kd_layer.templates=6", "--out", "runs/coded"
    )
    assert code == 0
    assert output != f"{path}\n"
    assert Codebook.load(output.strip()).templates == 6


def test_the_command_says_what_is_missing(place, monkeypatch, capsys):
    Path("recipe.toml").write_text(make_recipe(RECIPE, ["student.methods=[ce,kd]"]).to_toml())
    code, _, error = command(monkeypatch, capsys, "recipe.toml")
    assert (code, "no method of this student collects anything" in error) == (2, True)
    with lock_run(Run(Path("runs/coded"), make_recipe(RECIPE))) as _:
        train_teacher(Run(Path("runs/coded"), make_recipe(RECIPE)))
    code, _, error = command(monkeypatch, capsys, "runs/coded", "--set", "seed=1")
    assert (code, "runs/coded is a run with its own recipe" in error) == (2, True)
