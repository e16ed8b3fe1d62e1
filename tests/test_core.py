"""The idea itself: methods, objective, taps and parts."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from distilens.core import (
    Answer,
    Balance,
    Batch,
    Method,
    Mixed,
    Model,
    Objective,
    Output,
    accompany,
    as_teacher,
    with_terms,
)
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.methods.ce import CE
from distilens.methods.kd import KD
from distilens.models import build_model
from distilens.models.model import logits_of
from distilens.teachers import LiveTeacher

CLASSES = tuple("abcd")


def model(name: str = "resnet8") -> Model:
    torch.manual_seed(0)
    return build_model(name, CLASSES, (32, 32))


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 3, 32, 32, generator=generator)
    return Batch(images, torch.arange(count) % 4, torch.arange(count))


class Overwriting(nn.Module):
    """A residual network that overwrites features in place, as torchvision's does."""

    def __init__(self, inplace: bool = True):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.second = nn.ReLU(inplace=inplace), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.inplace = inplace

    def forward(self, images):
        identity = self.relu(self.norm(self.first(images)))
        out = self.second(identity)
        if self.inplace:
            out += identity
        else:
            out = out + identity
        return self.head(self.relu(out).mean((2, 3)))


def test_taps_of_finer_grids_are_looked_for_once(monkeypatch):
    """A live teacher is asked at every step, and finding one takes a forward."""
    teacher = LiveTeacher(model())
    needs = ("features:last-2", "features:last-1", "maps:attention:tap=last-1")
    teacher(batch(), needs)
    seen = []
    monkeypatch.setattr(Model, "observe", lambda self: seen.append(self))
    teacher(batch(), needs)
    assert not seen


def test_another_number_of_classes_is_said_before_the_first_step():
    objective = Objective(model(), build_methods(["kd"]))
    with pytest.raises(UserError, match="answers for 7 classes, but the student resnet8 has 4"):
        objective.prepare(batch(), Answer(torch.zeros(6, 7)))


@pytest.mark.parametrize("path", ["norm", "second", "first"])
def test_a_tap_keeps_what_the_model_overwrites(path):
    outputs = []
    for inplace in (True, False):
        wrapped = Model(Overwriting(inplace), CLASSES, size=(16, 16)).eval()
        wrapped.tap(path)
        images = batch().images[:, :, :16, :16].clone().requires_grad_()
        output = wrapped(images)
        (gradient,) = torch.autograd.grad(output.logits[:, 1].sum() + output.features[path].square().sum(), images)
        outputs.append((output.features[path], output.logits, gradient))
    for ours, theirs in zip(*outputs, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_taps_survive_deepcopy_and_leave_their_buffer_empty():
    student = model()
    assert student.tap("last") == "layer3"
    twin = copy.deepcopy(student)
    images = batch().images
    first, second = student.eval()(images), twin.eval()(images)
    assert torch.equal(first.features["last"], second.features["layer3"])
    assert first.features["last"].data_ptr() != second.features["last"].data_ptr()
    assert student.taps["last"].value is None


def test_an_unknown_tap_names_those_that_exist():
    with pytest.raises(UserError, match=r"no tap 'layer33'.*Did you mean 'layer3'.*conv1"):
        model().tap("layer33")


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("resnet8", "layer3"),
        ("vgg8", "layer5"),
        ("mobilenetv2", "features"),
        ("timm:resnet18", "layer4"),
        ("torchvision:resnet18", "layer4"),
        ("timm:vit_tiny_patch16_224,size=64", "blocks.11.norm1"),
    ],
)
def test_the_default_tap_is_the_last_feature_map_that_counts(name, tap):
    found = build_model(name, CLASSES, (64, 64))
    state = {key: value.clone() for key, value in found.state_dict().items()}
    assert found.last_tap == tap
    assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())
    assert not any(module._forward_hooks for module in found.network.modules())


def test_terms_are_named_weighted_and_reach_the_student_alone():
    student, teacher = model().train(), LiveTeacher(model("resnet14"))
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    methods = build_methods(["ce:weight=0.25", "kd:temperature=2,weight=2,as=soft"])
    objective = Objective(student, methods)
    assert objective.needs == ("logits",)
    answer = teacher(batch(), objective.needs)
    terms = objective(batch(), answer)
    assert list(terms) == ["ce", "soft"]
    output = student(batch().images)
    assert terms["ce"].item() == pytest.approx(0.25 * CE().loss(batch(), output, answer).mean().item(), rel=1e-4)
    assert terms["soft"].item() == pytest.approx(
        2 * KD(temperature=2).loss(batch(), output, answer).mean().item(), rel=1e-4
    )
    sum(terms.values()).backward()
    assert student.network.conv1.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())
    assert not teacher.model.training
    assert not [key for key in objective.state_dict() if "teacher" in key]


def test_transforms_are_chained_and_teachers_see_the_images():
    seen = []

    class Darker(Method):
        def transform(self, batch, answer):
            return batch.replaced(view=batch.view * 0.5)

        def loss(self, batch, output, answer):
            seen.append((batch.images.mean().item(), batch.view.mean().item()))

    objective = Objective(model(), {"one": Darker(), "two": Darker(), "ce": CE()})
    assert list(objective(batch(), Answer())) == ["ce"]
    images, view = seen[0]
    assert view == pytest.approx(images / 4, rel=1e-5)


def test_trust_weights_what_asks_a_teacher_and_nothing_else():
    student = model().eval()
    logits = torch.randn(6, 4)
    objective = Objective(student, build_methods(["ce", "kd"]))
    whole = objective(batch(), Answer(logits=logits))
    none = objective(batch(), Answer(logits=logits, trust=torch.zeros(6)))
    assert none["kd"].item() == 0
    assert none["ce"].item() == pytest.approx(whole["ce"].item())


def test_an_inserted_part_belongs_to_the_model():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Conv2d(64, 64, 1)

        def forward(self, feature, inputs):
            return feature + self.scale(feature) * inputs.get("gain", torch.ones(1))

    student = model().eval()
    names = set(student.network.state_dict())
    images = batch().images
    plain = student.logits(images)
    student.insert("last", Part(), name="extra")
    student.tap("extra.scale")
    output = student(images, {"gain": torch.zeros(1)})
    assert torch.allclose(output.logits, plain)
    assert output.features["extra.scale"].shape == (6, 64, 8, 8)
    assert not torch.allclose(student.logits(images), plain)
    assert set(student.network.state_dict()) == names
    twin = copy.deepcopy(student)
    assert torch.equal(twin.logits(images), student.logits(images))
    with torch.no_grad():
        twin.parts["extra"].scale.weight.zero_()
    assert not torch.equal(twin.logits(images), student.logits(images))
    twin.load_bare_state(student.bare_state())
    assert torch.equal(twin.logits(images), student.logits(images))


def test_student_and_teacher_normalise_and_resize_for_themselves():
    wrapped = Model(Overwriting(), CLASSES, size=(16, 16), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    prepared = wrapped.prepare(torch.ones(1, 3, 32, 32))
    assert prepared.shape == (1, 3, 16, 16)
    assert torch.allclose(prepared[0, :, 0, 0], torch.tensor([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7]))


def test_logits_are_found_in_structures_or_the_error_says_what_came():
    tensor = torch.zeros(2, 3)
    assert logits_of({"logits": tensor}) is tensor
    assert logits_of(Output(tensor)) is tensor
    with pytest.raises(UserError, match="it returned a tuple of 2"):
        logits_of((tensor, tensor))
    with pytest.raises(UserError, match=r"shape \[3\]"):
        logits_of(torch.zeros(3))


def test_ce_is_cross_entropy():
    output = Output(torch.randn(6, 4))
    labels = torch.tensor([0, 1, 2, 3, -1, 0])
    found = CE(smoothing=0.1).loss(batch().replaced(targets=labels), output, Answer())
    logs = output.logits.log_softmax(1)
    expected = [-(0.9 * logs[i, c] + 0.1 * logs[i].mean()) if c >= 0 else torch.zeros(()) for i, c in enumerate(labels)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)
    mixed = batch().replaced(mixed=Mixed(batch().labels.flip(0), torch.full((6,), 0.3)))
    both = 0.3 * CE().loss(batch(), output, Answer())
    both = both + 0.7 * CE().loss(batch().replaced(targets=batch().labels.flip(0)), output, Answer())
    assert torch.allclose(CE().loss(mixed, output, Answer()), both)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_zero_at_equality_positive_otherwise_and_equals_numpy(temperature):
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    method = KD(temperature=temperature)
    assert method.loss(batch(), Output(teacher), Answer(logits=teacher)).abs().max() < 1e-6
    assert method.loss(batch(), Output(teacher + 5), Answer(logits=teacher)).abs().max() < 1e-5  # shifts change nothing
    loss = method.loss(batch(), Output(student), Answer(logits=teacher))
    assert loss.min() > 0

    def soft(logits):
        scaled = np.exp(logits / temperature)
        return scaled / scaled.sum(1, keepdims=True)

    p, q = soft(teacher.double().numpy()), soft(student.detach().double().numpy())
    assert np.allclose(loss.detach().numpy(), temperature**2 * (p * np.log(p / q)).sum(1), rtol=1e-4)
    loss.mean().backward()
    assert student.grad.abs().sum() > 0


def test_standardised_kd_knows_no_scale_of_logits_and_equals_numpy():
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    method = KD(temperature=2, standardise=True)
    found = method.loss(batch(), Output(student), Answer(logits=teacher))
    stretched = method.loss(batch(), Output(student * 7 + 3), Answer(logits=teacher * 0.2 - 1))
    assert torch.allclose(found, stretched, rtol=1e-3)
    assert found.min() > 0

    def soft(logits):
        z = (logits - logits.mean(1, keepdims=True)) / logits.std(1, ddof=1, keepdims=True) / 2
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    p, q = soft(teacher.double().numpy()), soft(student.double().numpy())
    assert np.allclose(found.numpy(), 4 * (p * np.log(p / q)).sum(1), rtol=1e-4)


def test_kd_gradients_keep_their_size_when_the_temperature_grows():
    teacher = torch.randn(64, 4)
    sizes = []
    for temperature in (20.0, 80.0):
        student = torch.zeros(64, 4, requires_grad=True)
        KD(temperature=temperature).loss(batch(64), Output(student), Answer(logits=teacher)).sum().backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_a_list_of_methods_says_all_that_is_wrong():
    with pytest.raises(UserError) as error:
        build_methods(["kdd", "ce:smoothing=2", "kd", "kd"])
    for text in ("Did you mean 'kd'", "less than 1", "two terms are called 'kd'"):
        assert text in str(error.value)


def test_one_text_is_one_method():
    assert list(build_methods("kd:temperature=2,weight=0.5")) == ["kd"]
    with pytest.raises(UserError, match=r"unknown method 'kdd'\. Did you mean 'kd'"):
        build_methods("kdd")


def test_a_function_or_an_object_that_is_called_is_a_teacher():
    class Own:
        classes = ("ant", "bee")

        def __call__(self, batch, needs):
            return Answer(logits=torch.ones(len(batch), 2))

    batch = Batch(torch.rand(3, 3, 4, 4), torch.zeros(3, dtype=torch.long), torch.arange(3))
    made, plain = as_teacher(Own()), as_teacher(lambda batch, needs: Answer())
    assert made.classes == ("ant", "bee")
    assert made(batch, ["logits"]).logits.shape == (3, 2)
    assert plain.classes is None
    assert plain.live() is plain
    assert plain.notes() == {}
    assert as_teacher(made) is made
    with pytest.raises(UserError, match="cannot be stored"):
        _ = plain.identity


class Known(Method):
    """A term of 2 per image, times the number of the image."""

    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def loss(self, batch, output, answer):
        return 2.0 * batch.index + 0 * output.logits.sum(1)

    def notes(self):
        return {"seen": 3.0}


def terms_of(given: Batch, answer: Answer | None = None, **methods: Method) -> dict[str, float]:
    terms = Objective(model(), methods)(given, answer or Answer())
    return {name: term.item() for name, term in terms.items()}


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (0.0, 0.0, [1, 1, 1, 1, 1]),
        (0.5, 0.0, [0, 0.5, 1, 1, 1]),
        (0.0, 0.5, [1, 1, 1, 0.5, 0]),
        (1.0, 1.0, [0, 0.25, 0.5, 0.25, 0]),
    ],
)
def test_a_term_grows_over_its_warmup_and_falls_over_its_decay(warmup, decay, expected):
    method = Known(warmup=warmup, decay=decay)
    assert [method.ramp(part / 4) for part in range(5)] == pytest.approx(expected)
    found = [terms_of(batch().replaced(progress=part / 4), one=method)["one"] for part in range(5)]
    assert found == pytest.approx([5 * factor for factor in expected])


def test_a_term_of_every_third_step_is_there_then_alone():
    found = [list(terms_of(batch().replaced(step=step), one=Known(every=3), two=Known())) for step in range(5)]
    assert found == [["one", "two"], ["two"], ["two"], ["one", "two"], ["two"]]


def test_trust_is_a_factor_for_each_image_of_what_has_needs():
    trust = torch.tensor([0.0, 0.5, 1, 1, 1, 0.2])
    found = terms_of(batch(), Answer(trust=trust), own=Known(), asks=Known(needs=("logits",), weight=3.0))
    assert found == pytest.approx({"own": 5.0, "asks": 3 * (1 + 4 + 6 + 8 + 2) / 6})


def test_a_method_changes_nothing_and_costs_nothing_unless_it_says_so():
    method, student = Method(), model()
    assert (method.weight, method.every, method.warmup, method.decay, method.needs, method.at_use) == (
        1,
        1,
        0,
        0,
        (),
        (),
    )
    assert not any((method.second_order, method.inserts, method.one_teacher, method.negative))
    assert (method.remembered(), method.notes()) == (0, {})
    assert method.prepare(student, batch(), Answer()) is method.finish(student) is student
    given = batch()
    assert method.transform(given, Answer()) is given
    assert method.loss(given, Output(torch.zeros(6, 4)), Answer()) is None
    assert terms_of(given, one=method) == {}


def test_what_inserts_a_part_is_prepared_first_and_a_tap_on_the_images_is_refused():
    order = []

    class Noting(Known):
        def prepare(self, student, batch, answer):
            order.append(self.name)
            if self.name == "taps the images":
                student.tap("input")
            return student

    methods = {"a": Noting(name="reads"), "b": Noting(name="inserts", inserts=True), "c": Noting(name="reads too")}
    Objective(model(), methods).prepare(batch(), Answer(torch.zeros(6, 4)))
    assert order == ["inserts", "reads", "reads too"]
    with pytest.raises(UserError, match="Noting compares the student's tap 'input'"):
        Objective(model(), {"one": Noting(name="taps the images")}).prepare(batch(), Answer())
    tapped = model()
    tapped.tap("input")  # by somebody else
    Objective(tapped, methods).prepare(batch(), Answer())


def test_notes_and_needs_are_those_of_all_methods():
    methods = {"one": Known(needs=("logits", "features:last")), "two": Known(needs=("module:fc", "logits"))}
    objective = Objective(model(), methods)
    assert objective.notes() == {"one/seen": 3.0, "two/seen": 3.0}
    assert objective.needs == ("logits", "features:last", "module:fc")
    assert with_terms({**methods, "silent": Method()}) == ["one", "two"]


def test_a_balance_that_compares_losses_takes_none_below_0():
    balance = Balance()
    Objective(model(), {"one": Known(negative=True)}, balance)
    balance.of_losses = True
    Objective(model(), {"one": Known()}, balance)
    with pytest.raises(
        UserError, match="balance=balance compares the size of losses, but the loss of one can be negative"
    ):
        Objective(model(), {"one": Known(negative=True)}, balance)


def test_a_student_in_company_of_its_teacher_gets_its_inputs():
    asked = []

    class Fuses(Known):
        def transform(self, batch, answer):
            return batch.replaced(inputs={**batch.inputs, self.name: answer.logits})

    def teacher(batch, needs):
        asked.append((needs, batch.labels.tolist(), batch.index.tolist(), torch.is_inference_mode_enabled()))
        return Answer(batch.images.mean((2, 3)))

    student = model()
    accompany(student, [Known(needs=("logits",))], teacher)
    assert student.companion is None
    accompany(student, [Fuses(name="cam", at_use=("logits",)), Fuses(name="more", at_use=("module:fc",))], teacher)
    images = batch(2).images
    with torch.inference_mode():
        found = student.companion(images)
    assert torch.equal(found["cam"], images.mean((2, 3)))
    assert torch.equal(found["more"], found["cam"])
    assert asked == [(["logits", "module:fc"], [-1, -1], [-1, -1], False)]


def test_a_method_is_written_as_the_call_that_makes_it():
    methods = build_methods(["ce", "kd:temperature=2,weight=0.5,as=soft", "kd:weight=1"])
    assert [repr(method) for method in methods.values()] == [
        "ce(smoothing=0)",
        "kd(temperature=2,weight=0.5)",
        "kd(temperature=4)",
    ]
    assert repr(Known()) == "Known()"
