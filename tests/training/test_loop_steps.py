"""More of the loop: the learning rate at every step, shares of several processes, what is computed how."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import distilens
from distilens.core import Answer, Method, Model
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.models.taps import evaluating
from distilens.teachers import LiveTeacher
from distilens.training import checkpoints
from distilens.training import loop as training
from distilens.training.log import Log, NotFinite
from distilens.training.loop import train
from distilens.training.optimizers import OPTIMIZERS, SCHEDULES
from distilens.training.settings import Training


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    labels = np.arange(75) % 3
    images = generator.integers(0, 100, (75, 8, 8, 3), dtype=np.uint8)
    images[np.arange(75), :, :, labels] += 100  # the class is the colour
    return distilens.from_arrays(images, labels, classes=("red", "green", "blue"))


def go(data, *extra: Method, teacher=None, methods=("ce",), folder=None, **changes) -> tuple[Model, Log]:
    given = {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": "sgd:lr=0.05",
        "precision": "float32",
        "log_every": 1,
        **changes,
    }
    chosen = {**build_methods(methods), **{f"extra{number}": method for number, method in enumerate(extra)}}
    log, options = Log(), {} if teacher is None else {"teacher": teacher}
    model = Model(network(), data.classes, size=data.size)
    return train(model, chosen, data, Training(**given), folder=folder, log=log, **options), log


def same(ours: Model, theirs: Model) -> bool:
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


# the learning rate: (step, factor) of 100 steps, computed by hand
POINTS = {
    "one_cycle": [(0, 5 / 101), (19, 100 / 101), (59, (41 / 101) / 0.8), (99, (1 / 101) / 0.8)],
    "one_cycle:shape=cosine": [(0, 0.0060374), (99, 0.0003777)],
    "one_cycle:warmup=0": [(0, 100 / 101), (99, 1 / 101)],
    "cosine": [(0, 1.0), (50, 0.5), (99, 0.00024672)],
    "cosine:warmup=0.1": [(0, 1 / 11), (9, 10 / 11), (10, 1.0), (55, 0.5)],
    "multi_step": [(0, 1.0), (62, 1.0), (63, 0.1), (75, 0.01), (88, 0.001), (99, 0.001)],
    "multi_step:milestones=[0.5],gamma=0.2": [(49, 1.0), (50, 0.2)],
    "constant": [(0, 1.0), (99, 1.0)],
    "constant:warmup=0.1": [(0, 1 / 11), (4, 5 / 11), (10, 1.0), (99, 1.0)],
}


@pytest.mark.parametrize("part", POINTS)
def test_the_learning_rate_along_each_schedule(part):
    factor = SCHEDULES.build(part)
    for step, expected in POINTS[part]:
        assert factor(step, 100) == pytest.approx(expected, rel=1e-3), step
    assert all(0 < factor(step, 100) <= 1 for step in range(100))
    assert factor(0, 1) > 0  # a single step learns


def test_the_learning_rate_that_is_logged_is_the_schedules(data):
    _, log = go(data, schedule="one_cycle:warmup=0.4", epochs=3)
    rows = [row for row in log.rows if "terms" in row]
    factor = SCHEDULES.build("one_cycle:warmup=0.4")
    assert [row["learning_rate"] for row in rows] == [0.05 * factor(step, len(rows)) for step in range(len(rows))]
    assert [row["epoch"] for row in rows] == sorted(row["epoch"] for row in rows)
    assert all(row["loss"] == row["terms"]["ce"] for row in rows)


def test_rows_are_means_of_the_steps_between_them(data):
    _, each = go(data, epochs=2)
    _, some = go(data, epochs=2, log_every=2)
    single = [row for row in each.rows if "terms" in row]
    steps = len(single) // 2
    for row in (row for row in some.rows if "terms" in row):
        first = row["step"] - (2 if (row["step"] - 1) % steps % 2 else 1)
        expected = np.mean([one["terms"]["ce"] for one in single[first : row["step"]]])
        assert row["terms"]["ce"] == pytest.approx(expected, rel=1e-5)


def test_the_test_split_is_never_read(data, monkeypatch):
    """Whatever stands in it, and whoever would look."""
    whole, _ = go(data)
    images, labels = data.test.rows.images.copy(), data.test.rows.labels.copy()
    images[data.test.index], labels[data.test.index] = 255, 2
    test = distilens.data.Rows(images, labels, None)
    poisoned = copy.copy(data)
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        object.__setattr__(poisoned, name, distilens.data.Split(test, split.index))
    assert not np.array_equal(poisoned.test.rows.images[data.test.index], data.test.rows.images[data.test.index])
    found, _ = go(poisoned)
    assert same(whole, found)
    asked = []
    make = Batches.__init__

    def watch(self, split, *arguments, **options):
        asked.append(split)
        make(self, split, *arguments, **options)

    monkeypatch.setattr(Batches, "__init__", watch)
    go(data)
    assert data.test not in asked
    assert {id(data.train), id(data.validation)} == {id(split) for split in asked}


def test_student_modes_through_epochs_and_validation(data):
    seen = []

    class Watch(Method):
        def loss(self, batch, output, answer):
            seen.append((batch.epoch, [module.training for module in student.modules()], self.training))

    student = Model(network(), data.classes, size=data.size)
    train(student, {**build_methods(["ce"]), "watch": Watch()}, data, Training(epochs=3, batch_size=16, ema=0.5))
    assert {epoch for epoch, _, _ in seen} == {0, 1, 2}
    assert all(all(modes) and own for _, modes, own in seen)
    assert not any(module.training for module in student.modules())


def test_the_best_in_memory_is_the_best_in_a_folder_with_ema_too(data, tmp_path):
    options = {"ema": 0.7, "epochs": 5, "optimizer": "sgd:lr=0.3"}
    kept, log = go(data, **options)
    filed, again = go(data, folder=tmp_path, **options)
    assert same(kept, filed)
    scores = [row["validation"]["accuracy"] for row in log.rows if "validation" in row]
    assert scores == [row["validation"]["accuracy"] for row in again.rows if "validation" in row]
    best = checkpoints.read(tmp_path / "best.pt")
    assert best["place"]["epoch"] == scores.index(max(scores)) + 1
    assert torch.equal(best["average"]["module.network.0.weight"], filed.network[0].weight)


def test_ema_is_the_running_mean_of_the_weights(data):
    weights = [network()[5].weight.detach().clone()]

    class Watch(Method):
        def loss(self, batch, output, answer):
            weights.append(student.network[5].weight.detach().clone())

    student = Model(network(), data.classes, size=data.size)
    settings = Training(epochs=1, batch_size=16, ema=0.9, select="last", precision="float32")
    steps = len(data.train) // 16
    plain, _ = go(data, epochs=1, select="last")
    found = train(student, {**build_methods(["ce"]), "watch": Watch()}, data, settings)
    settings = Training(epochs=1, batch_size=16, select="last", precision="float32")
    plain = train(Model(network(), data.classes, size=data.size), build_methods(["ce"]), data, settings)
    after = [*weights[2:], plain.network[5].weight.detach()]  # after each step
    assert len(after) == steps
    mean = after[0]
    for weight in after[1:]:
        mean = 0.9 * mean + 0.1 * weight
    assert torch.allclose(found.network[5].weight, mean, atol=1e-6)


def test_clip_bounds_the_gradient(data):
    norms = []

    class Loud(Method):
        def loss(self, batch, output, answer):
            return 1000 * output.logits.square().mean(1)

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            norms.append(
                torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"]]).norm().item()
            )
            return super().step(closure)

    def make(part, module):
        return Watching(module.parameters(), lr=0.001)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.OPTIMIZERS, "build", make)
        go(data, Loud(), clip=0.5)
        clipped, norms = norms.copy(), []
        go(data, Loud())
    assert max(clipped) <= 0.5 * (1 + 1e-4)
    assert max(norms) > 1


def test_channels_last_changes_memory_and_no_result(data):
    ours, _ = go(data, channels_last=False)
    theirs, _ = go(data, channels_last=True)
    assert theirs.network[0].weight.is_contiguous(memory_format=torch.channels_last)
    for (name, one), (_, other) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5), name


def test_bfloat16_is_in_the_forward_and_nowhere_else(data):
    seen = set()

    class Watch(Method):
        needs = ("logits",)

        def loss(self, batch, output, answer):
            rounded = torch.equal(answer.logits, answer.logits.bfloat16().float())  # float32 that holds bfloat16 values
            seen.add((output.logits.dtype, answer.logits.dtype, rounded))

    teacher = LiveTeacher(Model(network(), data.classes, size=data.size))
    found, _ = go(data, Watch(), teacher=teacher, precision="bfloat16")
    assert seen == {(torch.bfloat16, torch.float32, True)}
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32, torch.int64}
    plain, _ = go(data)
    assert torch.allclose(found.network[5].weight, plain.network[5].weight, atol=0.05)
    single, _ = go(data)
    assert same(single, plain)  # a training in another precision left nothing behind


@pytest.mark.parametrize("part", ["sgd", "adam", "adamw"])
def test_weight_decay_groups(part):
    module = network()
    spared = OPTIMIZERS.build(f"{part}:weight_decay=0.1,decay=weights", module)
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in spared.param_groups] == [
        (0.1, {4, 2}),
        (0.0, {1}),
    ]
    (everything,) = OPTIMIZERS.build(f"{part}:weight_decay=0.1,decay=all", module).param_groups
    assert len(everything["params"]) == len(list(module.parameters()))
    module[0].requires_grad_(False)
    (rest,) = OPTIMIZERS.build(f"{part}:decay=all", module).param_groups
    assert len(rest["params"]) == len(list(module.parameters())) - 2


def test_images_without_a_label_have_no_term_from_it(data):
    """The gradient of a batch with labels taken away is that of the labelled images alone."""
    labels = data.train.rows.labels.copy()
    hidden = data.train.index[::2]
    labels[hidden] = -1
    split = distilens.data.Split(distilens.data.Rows(data.train.rows.images, labels, None), data.train.index)
    blind = copy.copy(data)
    object.__setattr__(blind, "train", split)
    seen = []

    class Watch(Method):
        def loss(self, batch, output, answer):
            terms = build_methods(["ce"])["ce"].loss(batch, output, answer)
            assert (terms[batch.labels < 0] == 0).all()
            assert (terms[batch.labels >= 0] > 0).all()
            seen.append((batch.labels < 0).sum().item())

    found, log = go(blind, Watch())
    assert sum(seen) > 0
    assert all(np.isfinite(row["loss"]) for row in log.rows if "terms" in row)
    assert all(parameter.isfinite().all() for parameter in found.parameters())


def test_a_teacher_that_is_not_trusted_teaches_nothing(data):
    def never(batch, needs):
        return Answer(logits=torch.randn(len(batch), 3), trust=torch.zeros(len(batch)))

    ours, _ = go(data, teacher=never, methods=("ce", "kd"))
    theirs, _ = go(data)
    assert same(ours, theirs)


@pytest.mark.parametrize("every", [1, 2, 100])
def test_a_loss_that_is_no_number_names_its_images(data, tmp_path, every):
    """Found at the step, or when the log is next flushed: before a checkpoint in either case."""
    bad = int(data.train.index[7])

    class Breaks(Method):
        def loss(self, batch, output, answer):
            return torch.where((batch.index == bad) & (batch.epoch == 1), torch.nan, 0.0) * output.logits.mean(1)

    with pytest.raises(NotFinite) as error:
        go(data, Breaks(), folder=tmp_path, log_every=every, epochs=3)
    text = str(error.value)
    assert "the loss of student is not finite in epoch 2 (ce=" in text
    assert "extra0=nan)" in text
    named = text[text.index("index [") + 7 :].partition("]")[0]
    assert bad in [int(number) for number in named.split(", ")]
    assert len(named.split(", ")) == 16
    state = checkpoints.read(tmp_path / "last.pt")
    assert state["place"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["objective"].values())
    go(data, Method(), folder=tmp_path, epochs=3)  # goes on once the cause is mended


def test_a_second_order_method_is_not_compiled(data):
    class Second(Method):
        second_order = True

    with pytest.raises(
        UserError, match=r"compile=true cannot be used with extra0: torch.compile has no second derivatives"
    ):
        go(data, Second(), compile=True)


@pytest.mark.slow
def test_compiled_with_ema_and_checkpoints_it_trains_as_it_does_without(data, tmp_path):
    ours, _ = go(data, compile=True, ema=0.5, folder=tmp_path)
    theirs, _ = go(data, ema=0.5)
    for (name, one), (_, other) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5), name


def test_a_batch_that_processes_cannot_share_is_said(data, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(
        UserError, match=r"batches of 16 images cannot be shared evenly by 3 processes: train.batch_size=15"
    ):
        go(data)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_processes_sum_to_the_whole(data, world):
    """Also where the last batch is smaller than the number of processes."""
    model = Model(network(), data.classes, size=data.size)
    split = distilens.data.Split(data.validation.rows, data.validation.index[:5])
    sums = torch.zeros(5)
    with evaluating(model), torch.inference_mode():
        for rank in range(world):
            for batch in Batches(split, 4, rank=rank, world=world):
                sums += training.tally(model, batch)
        whole = sum(training.tally(model, batch) for batch in Batches(split, 5))
    assert torch.allclose(sums, whole)
    assert sums[1] == 5


def test_a_set_that_is_smaller_than_a_batch_is_one_batch(data):
    _, log = go(data, batch_size=1000, epochs=3)
    assert [row["step"] for row in log.rows if "terms" in row] == [1, 2, 3]


def test_the_random_state_of_the_caller_does_not_matter(data):
    torch.manual_seed(1)
    ours, _ = go(data)
    torch.rand(100)
    np.random.seed(5)
    theirs, _ = go(data)
    assert same(ours, theirs)
