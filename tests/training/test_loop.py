"""The loop: what it learns from, what it keeps, when it stops."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import distilens
from distilens.core import Method, Model
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.teachers import LiveTeacher
from distilens.training import checkpoints
from distilens.training.log import Log, Metrics, NotFinite
from distilens.training.loop import train
from distilens.training.optimizers import OPTIMIZERS, SCHEDULES
from distilens.training.settings import Training


def tiny(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    labels = np.arange(150) % 3
    images = generator.integers(0, 100, (150, 12, 12, 3), dtype=np.uint8)
    images[np.arange(150), :, :, labels] += 100  # the class is the colour
    return distilens.from_arrays(images, labels, classes=("red", "green", "blue"))


def settings(**changes) -> Training:
    given = {"epochs": 3, "batch_size": 16, "optimizer": "sgd:lr=0.05", "precision": "float32", "log_every": 1}
    return Training(**{**given, **changes})


def student(data) -> Model:
    return Model(tiny(len(data.classes)), data.classes, size=data.size)


def run(data, *, methods=("ce",), folder=None, teacher=None, log=None, **changes) -> Model:
    options = {} if teacher is None else {"teacher": teacher}
    return train(student(data), build_methods(methods), data, settings(**changes), folder=folder, log=log, **options)


def test_it_learns_and_logs(data, tmp_path):
    log = Log(Metrics(tmp_path / "metrics.jsonl"))
    found = run(data, epochs=8, log=log)
    epochs = [row for row in log.rows if "validation" in row]
    assert epochs[-1]["validation"]["accuracy"] > 0.8
    assert not found.training
    steps = [row for row in log.rows if "terms" in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    assert all(row["terms"].keys() == {"ce"} and row["images_per_second"] > 0 for row in steps)
    assert log.metrics.rows() == log.rows


class Plain(nn.Sequential):
    """A network without batch norms and dropout, whose images do not depend on each other."""

    def __init__(self, classes):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
        )
        self.seen = []

    def forward(self, images):
        if self.training and images.requires_grad is False and torch.is_grad_enabled():
            self.seen.append(len(images))
        return super().forward(images)


@pytest.mark.parametrize("methods", [("ce",), ("ce:smoothing=0.1", "kd:temperature=2", "fitnet:tap=0,weight=0.1")])
@pytest.mark.parametrize("clip", [0, 0.5])
def test_parts_of_a_batch_add_up_to_the_batch(data, methods, clip):
    """16 images in parts of at most 6: 6, 5 and 5. Weights and logged terms are those of whole batches."""

    def trained(**changes):
        network, log = Plain(3), Log()
        teacher = LiveTeacher(student(data).eval()) if len(methods) > 1 else None
        model = Model(network, data.classes, size=data.size)
        options = {} if teacher is None else {"teacher": teacher}
        train(model, build_methods(methods), data, settings(clip=clip, **changes), log=log, **options)
        return network, [row["terms"] for row in log.rows if "terms" in row]

    (whole, terms), (parts, joined), (same, equal) = trained(), trained(micro_batch=6), trained(micro_batch=16)
    assert set(whole.seen) == {16}
    assert parts.seen[-3:] == [6, 5, 5]
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert len(terms) == len(joined)
    for one, other in zip(terms, joined, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), same.parameters(), strict=True))
    assert equal == terms


def test_parts_of_one_image_need_a_network_without_batch_norms(data):
    network = nn.Sequential(nn.Flatten(), nn.Linear(432, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(UserError, match=r"on batches of one image.*train\.micro_batch"):
        distilens.distill(network, None, data, ["ce"], epochs=1, batch_size=16, micro_batch=1, progress=False)
    assert Training(batch_size=3, micro_batch=2).together == 1
    assert Training(batch_size=128, micro_batch=48).together == 42


def test_a_run_without_parts_keeps_its_key():
    assert "micro_batch" not in Training().decisive()
    assert Training(micro_batch=8).decisive()["micro_batch"] == 8


def test_it_validates_after_every_nth_epoch_and_after_the_last(data, tmp_path):
    """With `select="last"` the weights, and so the run's key, do not depend on it."""

    def scored(log):
        return {row["epoch"]: row["validation"] for row in log.rows if "validation" in row}

    always, seldom, best = Log(), Log(), Log()
    every = run(data, epochs=5, select="last", log=always)
    some = run(data, epochs=5, select="last", validate_every=2, log=seldom)
    assert list(scored(always)) == [0, 1, 2, 3, 4]
    assert scored(seldom) == {epoch: scored(always)[epoch] for epoch in (1, 3, 4)}
    for ours, theirs in zip(every.state_dict().values(), some.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    run(data, epochs=5, validate_every=3, log=best, folder=tmp_path)
    kept = torch.load(tmp_path / "best.pt", weights_only=True)["place"]
    assert kept["best"] == max(row["accuracy"] for row in scored(best).values())
    assert settings(select="last", validate_every=2).decisive() == settings(select="last").decisive()
    assert settings(validate_every=2).decisive() != settings().decisive() == settings(validate_every=1).decisive()


def test_the_test_split_is_not_touched(data):
    poisoned = copy.deepcopy(data)
    poisoned.test.rows.images.setflags(write=True)
    poisoned.test.rows.images[poisoned.test.index] = 0
    poisoned.test.rows.labels[poisoned.test.index] = 0
    if np.array_equal(poisoned.train.rows.images, data.train.rows.images):
        for ours, theirs in zip(run(data).parameters(), run(poisoned).parameters(), strict=True):
            assert torch.equal(ours, theirs)
    else:  # one array for all splits: only the rows of test differ, and training gives the same
        assert not set(data.train.index) & set(data.test.index)
        for ours, theirs in zip(run(data).parameters(), run(poisoned).parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_modes_at_every_step_and_the_teacher_left_alone(data):
    modes = []

    class Watch(Method):
        needs = ("logits", "features:0", "maps:gradcam:tap=2", "module:6")

        def loss(self, batch, output, answer):
            modes.append((watched.training, teacher.model.training))
            assert answer.features["0"].shape[0] == answer.maps["maps:gradcam:tap=2"].shape[0] == len(batch)
            assert isinstance(answer.modules["6"], nn.Linear)
            assert not answer.logits.requires_grad

    teacher = LiveTeacher(student(data))
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    watched = student(data)
    methods = {**build_methods(["ce", "kd"]), "watch": Watch()}
    train(watched, methods, data, settings(), teacher=teacher)
    assert len(modes) == 3 * (len(data.train) // 16)
    assert all(ours and not theirs for ours, theirs in modes)
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_checkpoints_hold_no_teacher_and_the_best_epoch_is_kept(data, tmp_path):
    log = Log()
    teacher = LiveTeacher(build_model("resnet8", data.classes, data.size))
    kept = run(data, methods=("ce", "kd"), teacher=teacher, folder=tmp_path, log=log, epochs=4, keep_every=2)
    assert {path.name for path in tmp_path.glob("*.pt")} == {"last.pt", "best.pt", "epoch-0002.pt", "epoch-0004.pt"}
    state = checkpoints.read(tmp_path / "last.pt")
    assert sum(value.numel() for value in state["objective"].values()) < 1000
    best = checkpoints.read(tmp_path / "best.pt")
    scores = [row["validation"]["accuracy"] for row in log.rows if "validation" in row]
    assert best["place"]["best"] == max(scores)
    assert best["place"]["epoch"] == scores.index(max(scores)) + 1
    weight = kept.network[0].weight
    assert torch.equal(weight, best["objective"]["student.network.0.weight"])
    again = run(data, methods=("ce", "kd"), teacher=teacher, epochs=4)  # the best is kept in memory without a folder
    assert torch.equal(again.network[0].weight, weight)
    last = run(data, methods=("ce", "kd"), teacher=teacher, epochs=4, select="last")
    assert torch.equal(last.network[0].weight, state["objective"]["student.network.0.weight"])


def test_a_stop_in_the_middle_of_an_epoch_resumes_exactly(data, tmp_path, monkeypatch):
    whole = run(data, ema=0.8)
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", 0.0)

    class Stops(Method):
        count = 0

        def loss(self, batch, output, answer):
            Stops.count += 1
            if Stops.count in (5, 11):
                raise RuntimeError("power cut")

    for _ in range(2):
        methods = {**build_methods(["ce"]), "stops": Stops()}
        with pytest.raises(RuntimeError, match="power cut"):
            train(student(data), methods, data, settings(ema=0.8), folder=tmp_path)
    methods = {**build_methods(["ce"]), "stops": Stops()}
    resumed = train(student(data), methods, data, settings(ema=0.8), folder=tmp_path)
    assert Stops.count == 3 * (len(data.train) // 16) + 2  # no step was done twice but the two that failed
    for (name, ours), (_, theirs) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_loss_that_is_no_number_stops_with_all_that_is_known(data, tmp_path):
    class Breaks(Method):
        def loss(self, batch, output, answer):
            broken = torch.where(batch.epoch == torch.tensor(1), torch.nan, 0.0)
            return output.logits.mean() * 0 + broken

    methods = {**build_methods(["ce"]), "breaks": Breaks()}
    with pytest.raises(NotFinite, match=r"not finite in epoch 2 \(ce=.*breaks=nan\).*index \[\d+") as error:
        train(student(data), methods, data, settings(), folder=tmp_path)
    assert error.value.code == 1
    state = checkpoints.read(tmp_path / "last.pt")
    assert state["place"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["objective"].values())


def test_a_list_without_a_loss_is_said(data):
    with pytest.raises(UserError, match="these methods have no loss"):
        train(student(data), {"nothing": Method()}, data, settings())


def test_ema_is_what_is_validated_and_kept(data):
    plain, mean = run(data, select="last"), run(data, select="last", ema=0.9)
    assert not torch.equal(plain.network[0].weight, mean.network[0].weight)
    frozen = run(data, select="last", ema=0.999999)
    first = student(data)
    assert (frozen.network[6].weight - first.network[6].weight).abs().max() < (
        plain.network[6].weight - first.network[6].weight
    ).abs().max()


def test_images_without_labels_teach_through_the_teacher_alone(data):
    teacher = LiveTeacher(run(data, epochs=6))
    blind = copy.deepcopy(data)
    blind.train.rows.labels.setflags(write=True)
    blind.train.rows.labels[blind.train.index] = -1
    log = Log()
    run(blind, methods=("ce", "kd:weight=1"), teacher=teacher, epochs=6, log=log)
    assert all(row["terms"]["ce"] == 0 for row in log.rows if "terms" in row)
    assert [row for row in log.rows if "validation" in row][-1]["validation"]["accuracy"] > 0.6


def test_a_teacher_that_is_needed_and_missing_is_said(data):
    with pytest.raises(UserError, match="need a teacher"):
        run(data, methods=("kd",))


def test_frozen_trunks_stay_as_they_are(data):
    model = student(data)
    model.freeze(but=["6"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = train(model, build_methods(["ce"]), data, settings())
    changed = {key for key, value in found.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"network.6.weight", "network.6.bias"}


@pytest.mark.parametrize("part", ["one_cycle", "one_cycle:shape=cosine", "cosine:warmup=0.1", "multi_step", "constant"])
def test_schedules(part):
    factor = SCHEDULES.build(part)
    values = [factor(step, 200) for step in range(200)]
    assert all(0 <= value <= 1 + 1e-9 for value in values)
    assert max(values) > 0.97
    if "one_cycle" in part:
        assert values.index(max(values)) in range(35, 45)
        assert values[0] < 0.1
        assert values[-1] < 0.02
    if part == "multi_step":
        assert [round(values[step], 6) for step in (0, 124, 126, 151, 199)] == [1, 1, 0.1, 0.01, 0.001]


def test_weight_decay_can_spare_norms_and_biases():
    optimizer = OPTIMIZERS.build("adamw:weight_decay=0.1", tiny())
    by_decay = {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in optimizer.param_groups}
    assert by_decay == {0.1: 8 * 27 + 24, 0.0: 8 + 16 + 3}


@pytest.mark.slow
def test_a_compiled_student_trains_and_keeps_its_names(data, tmp_path):
    found = run(data, compile=True, epochs=1, folder=tmp_path)
    assert set(found.network.state_dict()) == set(tiny().state_dict())


def test_distill_from_python(data, tmp_path):
    network = tiny(3)
    teacher, _ = distilens.distill(tiny(3), None, data, ["ce"], settings=settings())
    found, log = distilens.distill(network, teacher, data, settings=settings(), folder=tmp_path)
    assert found.network is network
    assert {name for row in log for name in row.get("terms", {})} == {"ce", "kd"}
    distilens.save_model(build_model("resnet8", data.classes, data.size), tmp_path / "saved")
    again = distilens.load_model(tmp_path / "saved")
    assert again.classes == data.classes
    with pytest.raises(UserError, match="knows 3 classes, the data has 8"):
        distilens.distill(found, None, "shapes:limit=64", ["ce"])
