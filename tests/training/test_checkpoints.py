"""The state of a training: kills at every bad moment, stops, and the rows that must not come twice."""

import json
import math
import os
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

import distilens
from distilens.core import Method, Model
from distilens.data import pipeline
from distilens.foundation import files
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.training import checkpoints
from distilens.training import loop as training
from distilens.training.checkpoints import Checkpoints, Interrupted, Place
from distilens.training.log import Log, Metrics, NotFinite
from distilens.training.loop import train
from distilens.training.settings import Training


class Killed(BaseException):
    """What stands for SIGKILL within a test: nothing catches it."""


class KilledAt(Method):
    """Dies in the loss of one step, counted over all calls."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def loss(self, batch, output, answer):
        self.step -= 1
        if self.step == 0:
            raise Killed


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    labels = np.arange(75) % 3
    images = generator.integers(0, 100, (75, 8, 8, 3), dtype=np.uint8)
    images[np.arange(75), :, :, labels] += 100  # the class is the colour
    return distilens.from_arrays(images, labels, classes=("red", "green", "blue"))


def student(data) -> Model:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    return Model(network, data.classes, size=data.size)


def go(data, folder, *extra: Method, **changes) -> tuple[Model, Log]:
    given = {"epochs": 3, "batch_size": 16, "optimizer": "sgd:lr=0.05", "precision": "float32", "log_every": 2}
    methods = {**build_methods(["ce"]), **{f"extra{number}": method for number, method in enumerate(extra)}}
    log = Log(Metrics(folder / "metrics.jsonl" if folder else None))
    folder = folder and folder / "checkpoints"
    return train(student(data), methods, data, Training(**{**given, **changes}), folder=folder, log=log), log


def same(ours: Model, theirs: Model) -> None:
    for (name, one), (_, other) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def noted(log: Log) -> list[tuple[str, int]]:
    return [("validation" if "validation" in row else "step", row["step"]) for row in log.rows]


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("every", [0.0, 600.0])
def test_killed_at_any_step_it_ends_the_same(data, tmp_path, monkeypatch, ema, every):
    whole, log = go(data, None, ema=ema, log_every=1, epochs=2)
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", every)
    steps = len([row for row in log.rows if "terms" in row])
    for step in range(1, steps + 1):
        folder = tmp_path / str(step)
        with pytest.raises(Killed):
            go(data, folder, KilledAt(step), ema=ema, log_every=1, epochs=2)
        resumed, again = go(data, folder, KilledAt(0), ema=ema, log_every=1, epochs=2)
        same(whole, resumed)
        assert noted(again) == noted(log)
        assert [row.get("terms") for row in again.rows] == [row.get("terms") for row in log.rows]
        assert again.metrics.rows() == again.rows


@pytest.mark.parametrize("name", ["best.pt", "epoch-0002.pt", "last.pt"])
@pytest.mark.parametrize("done", ["half", "whole"])
def test_killed_while_a_checkpoint_is_written(data, tmp_path, monkeypatch, name, done):
    whole, log = go(data, tmp_path / "whole", keep_every=2)
    write, left = files.write_atomically, [2 if name == "last.pt" else 1]

    def killed(path, make):
        left[0] -= path.name == name
        if path.name != name or left[0]:
            return write(path, make)
        if done == "half":
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{name}.{files.HOST}.999999999").write_bytes(b"half")
            raise Killed
        write(path, make)
        raise Killed

    monkeypatch.setattr(checkpoints, "write_atomically", killed)
    with pytest.raises(Killed):
        go(data, tmp_path / "killed", keep_every=2)
    monkeypatch.setattr(checkpoints, "write_atomically", write)
    resumed, again = go(data, tmp_path / "killed", keep_every=2)
    same(whole, resumed)
    assert noted(again) == noted(log)
    files.remove_unfinished(tmp_path)
    found = {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert found == {"last.pt", "best.pt", "epoch-0002.pt"}


def test_killed_behind_the_last_step_of_an_epoch_its_validation_is_noted_once(data, tmp_path, monkeypatch):
    _, log = go(data, None)
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", 0.0)  # the last step of each epoch is saved too
    save = Checkpoints.save

    def killed(self, place, **options):
        if options:  # the epoch's own save, when its validation is already in the log
            raise Killed
        save(self, place, **options)

    monkeypatch.setattr(Checkpoints, "save", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            go(data, tmp_path)
    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", 600.0)
    _, again = go(data, tmp_path)
    assert [row for row in noted(again) if row[0] == "validation"] == [
        row for row in noted(log) if row[0] == "validation"
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["step", "validation", "last validation"])
def test_a_stop_is_heeded_wherever_it_comes(data, tmp_path, monkeypatch, number, where):
    whole, log = go(data, None)
    validate, left = training.validate, [3 if where == "last validation" else 1]

    class Asks(Method):
        def loss(self, batch, output, answer):
            if where == "step" and batch.epoch == 1:
                os.kill(os.getpid(), number)

    def asked(*arguments):
        left[0] -= 1
        if where != "step" and left[0] == 0:
            os.kill(os.getpid(), number)
        return validate(*arguments)

    before = signal.getsignal(number)
    monkeypatch.setattr(training, "validate", asked)
    with pytest.raises(Interrupted, match="the same command continues from here") as stop:
        go(data, tmp_path, Asks())
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is before
    monkeypatch.setattr(training, "validate", validate)
    resumed, again = go(data, tmp_path, Method())
    same(whole, resumed)
    assert [row for row in noted(again) if row[0] == "validation"] == [
        row for row in noted(log) if row[0] == "validation"
    ]
    assert sorted(set(noted(again))) == sorted(noted(again))


def test_asked_twice_it_stops_at_once(data, tmp_path):
    class Asks(Method):
        def loss(self, batch, output, answer):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one was not heeded")

    with pytest.raises(KeyboardInterrupt) as stop:
        go(data, tmp_path, Asks())
    assert not isinstance(stop.value, Interrupted)
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_streamed_images_resume_exactly_too(data, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(pipeline, "free_memory", lambda device: 0)
    whole, _ = go(data, None, workers=workers)
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        go(data, tmp_path, KilledAt(5), workers=workers)
    resumed, _ = go(data, tmp_path, KilledAt(0), workers=workers)
    same(whole, resumed)


def test_the_random_states_come_back():
    state = checkpoints.random_state()
    import random

    drawn = torch.rand(3), np.random.rand(3), random.random()
    checkpoints.set_random_state(state)
    again = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(drawn[0], again[0])
    assert np.array_equal(drawn[1], again[1])
    assert drawn[2] == again[2]


def test_the_state_of_a_method_with_other_options_is_refused(data, tmp_path):
    """Weights that were trained as one power are none as another."""
    given = {"epochs": 2, "batch_size": 16, "precision": "float32"}

    def powered(alpha: float) -> Model:
        methods = build_methods(["ce", f"powerprop:alpha={alpha}"])
        return train(student(data), methods, data, Training(**given), folder=tmp_path)

    first = powered(1.5)
    same(first, powered(1.5))
    with pytest.raises(UserError, match="other data, settings, methods or seed"):
        powered(3)


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "sgd:lr=0.06"}, {"epochs": 4}, {"batch_size": 8}, {"augment": "crop:padding=2"}, {"ema": 0.9}],
)
def test_the_state_of_another_training_is_refused(data, tmp_path, changes):
    go(data, tmp_path)
    with pytest.raises(UserError, match=r"the checkpoint in .* is of another training \(.*\)\. Give another folder"):
        go(data, tmp_path, **changes)


@pytest.mark.parametrize("changes", [{"log_every": 1}, {"workers": 0}, {"optimizer": "sgd:lr=0.05,momentum=0.9"}])
def test_what_changes_no_weight_does_not_matter(data, tmp_path, changes):
    whole, _ = go(data, tmp_path)
    resumed, _ = go(data, tmp_path, **changes)
    same(whole, resumed)


def test_weights_that_the_last_step_broke_are_not_kept(data, tmp_path):
    """With one step an epoch, its loss is fine and the weights behind it are not: validation says so before it is saved."""
    whole = {"batch_size": 100, "schedule": "constant", "epochs": 4, "log_every": 1}
    with pytest.raises(NotFinite, match=r"not finite .*(epoch \d).*last good checkpoint was kept"):
        go(data, tmp_path, optimizer="sgd:lr=1e20", **whole)
    last = tmp_path / "checkpoints" / "last.pt"
    if last.exists():
        state = checkpoints.read(last)
        assert all(value.isfinite().all() for value in state["objective"].values())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if "terms" in row)
    assert all(np.isfinite(row["validation"]["loss"]) for row in rows if "validation" in row)


def test_the_first_best_stays_where_later_ones_are_alike(tmp_path):
    module = nn.Linear(2, 2)
    state = Checkpoints(tmp_path, module, torch.optim.SGD(module.parameters()), None, main=True)
    place = Place()
    for epoch, accuracy in enumerate((0.5, 0.7, 0.7, 0.2)):
        with torch.no_grad():
            module.weight.fill_(epoch)
        place.next_epoch()
        state.save(place, score=accuracy)
    state.restore_best()
    assert (module.weight == 1).all()
    assert checkpoints.read(tmp_path / "last.pt")["place"] == {"epoch": 4, "within": 0, "step": 0, "best": 0.7}


def test_only_the_main_process_writes(tmp_path):
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters())
    Checkpoints(tmp_path, module, optimizer, None, main=False).save(Place(), score=1.0)
    assert not list(tmp_path.iterdir())


def made(folder, **options) -> tuple[Checkpoints, nn.Module]:
    module = nn.Linear(2, 2)
    return Checkpoints(folder, module, torch.optim.SGD(module.parameters()), None, **options), module


def test_a_place_advances_by_steps_and_epochs():
    place = Place()
    place.advance(), place.advance()
    place.next_epoch()
    place.advance()
    assert (place.epoch, place.within, place.step, place.best) == (1, 1, 3, -math.inf)


def test_every_nth_epoch_is_kept_and_a_save_within_an_epoch_is_not(tmp_path):
    state, _ = made(tmp_path)
    place = Place()
    for _ in range(5):
        state.save(place, keep=2)  # within an epoch
        place.next_epoch()
        state.save(place, score=0.0, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "best.pt", "epoch-0002.pt", "epoch-0004.pt"}
    assert checkpoints.read(tmp_path / "best.pt")["place"]["epoch"] == 1  # an accuracy of 0 is better than none
    assert checkpoints.read(tmp_path / "epoch-0004.pt")["place"]["epoch"] == 4


def test_a_save_is_due_when_the_last_one_is_longer_ago_than_save_every(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    state, _ = made(tmp_path)
    for waited, due in ((600.0, False), (600.1, True)):
        now[0] = 100 + waited
        assert state.due() == due
    state.save(Place())
    assert not state.due()
    now[0] += 601
    assert state.due()
    assert not made(None)[0].due()


def test_without_a_folder_the_best_weights_are_kept_in_memory():
    state, module = made(None)
    place = Place()
    for number, accuracy in enumerate((0.1, 0.9, 0.4)):
        with torch.no_grad():
            module.weight.fill_(number)
        state.save(place, score=accuracy)
    assert state.resume() == Place()
    state.restore_best()
    assert (module.weight == 1).all()


def test_other_processes_read_the_weights_and_keep_their_own_random_numbers(tmp_path):
    state, module = made(tmp_path)
    place = Place(epoch=3, within=2, step=8)
    state.save(place)
    weight = module.weight.clone()
    for main in (True, False):
        other, theirs = made(tmp_path, main=main)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        assert other.resume() == place
        assert torch.equal(theirs.weight, weight)
        assert torch.equal(torch.get_rng_state(), before) != main


def test_without_a_best_epoch_the_last_weights_stay(tmp_path):
    state, module = made(tmp_path)
    state.save(Place())
    weight = module.weight.clone()
    state.restore_best()
    assert torch.equal(module.weight, weight)


def test_numpys_second_normal_number_comes_back_too():
    np.random.normal()  # draws two, and keeps one
    state = checkpoints.random_state()
    drawn = np.random.normal(size=3)
    np.random.normal()
    checkpoints.set_random_state(state)
    assert np.array_equal(np.random.normal(size=3), drawn)


def test_in_another_thread_a_stop_is_nobodys_to_ask_for():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def inside():
        with checkpoints.interruptible() as stop:
            seen.extend([stop.requested, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [False, before]
