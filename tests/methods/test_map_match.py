"""Maps are matched as the formulas say, at the common grid, at the steps that are due; what says nothing counts nothing."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from distilens.core import Answer, Batch, Model, Objective
from distilens.foundation.errors import UserError
from distilens.losses.maps import distance
from distilens.methods import build_methods
from distilens.methods.map_match import MapMatch
from distilens.models import build_model
from distilens.teachers import LiveTeacher
from networks import Smooth

CLASSES = tuple("abcd")
DISTANCES = ["cosine", "at", "kl", "l2"]
CAT = "map_match:explainer=cam,classes=all,pool=2,distance=at"
PARTS = [
    "map_match",
    "map_match:explainer=gradcam++,distance=kl",
    "map_match:explainer=cam,distance=l2",
    "map_match:explainer=layercam",
    "map_match:explainer=hirescam,distance=at",
    "map_match:explainer=attention,distance=at",
    "map_match:explainer=[attention:tap=layer1],tap=layer2",
    "map_match:explainer=[gradcam:tap=layer2],target=label",
    "map_match:classes=all,distance=kl",
    CAT,
    "map_match:of=canonical,pool=4",
    "at",
    "at:taps=[layer1,layer3],power=4",
]


def model(name: str = "resnet8", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return build_model(name, CLASSES, (32, 32))


def batch(count: int = 4, **changes) -> Batch:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return Batch(images, torch.arange(count) % 4, torch.arange(count), **changes)


def objective(part: str, teacher: LiveTeacher, student: Model, given: Batch) -> Objective:
    made = Objective(student.train(), build_methods([part]))
    made.prepare(given, teacher(given, made.needs))
    return made


@pytest.mark.parametrize("part", PARTS)
def test_the_first_layer_learns_and_the_teacher_does_not(part):
    given, teacher = batch(), LiveTeacher(model("resnet14", 1))
    before = copy.deepcopy(teacher.model.state_dict())
    made = objective(part, teacher, model(), given)
    (loss,) = made(given, teacher(given, made.needs)).values()
    assert loss.item() > 0
    loss.backward()
    assert made.student.network.conv1.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())


@pytest.mark.parametrize("part", PARTS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(part):
    given, twin = batch(), model().eval()
    if "tap=layer2" in part and "layer1" in part:
        pytest.skip("of two different taps")
    if "target=label" in part or "power" in part:
        given = given.replaced(targets=twin.logits(given.images).argmax(1))
    teacher = LiveTeacher(copy.deepcopy(twin))
    made = objective(part, teacher, twin, given).eval()
    (loss,) = made(given, teacher(given, made.needs)).values()
    assert loss.item() == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_are_their_formulas(kind):
    ours, theirs = torch.rand(3, 2, 4, 5) - 0.3, torch.rand(3, 2, 4, 5)
    found = distance(ours, theirs, kind, 0.2)
    assert found.shape == (3, 2)
    a, b = (each[1, 1].flatten().double().numpy() for each in (ours, theirs))
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)

    def softmax(x):
        return np.exp(x / 0.2) / np.exp(x / 0.2).sum()

    expected = {
        "cosine": 1 - u @ v,
        "at": ((u - v) ** 2).mean(),
        "kl": (softmax(v) * np.log(softmax(v) / softmax(u))).sum(),
        "l2": ((a - b) ** 2).mean(),
    }[kind]
    assert found[1, 1].item() == pytest.approx(expected, rel=1e-4)
    assert distance(theirs, theirs, kind).abs().max() < 1e-6
    assert (found > 0).all()


@pytest.mark.parametrize("kind", ["cosine", "at", "kl"])
def test_the_scale_of_a_map_does_not_matter_even_a_tiny_one(kind):
    ours, theirs = torch.rand(3, 4, 5), torch.rand(3, 4, 5)
    base = distance(ours, theirs, kind)
    assert torch.allclose(distance(ours * 1e-25, theirs * 1e20, kind), base, rtol=1e-4)
    assert not torch.allclose(distance(ours * 2, theirs, "l2"), distance(ours, theirs, "l2"), rtol=0.1)


def test_at_is_the_cosine_distance_in_another_unit():
    ours, theirs = torch.rand(3, 4, 5), torch.rand(3, 4, 5)
    assert torch.allclose(distance(ours, theirs, "at"), distance(ours, theirs, "cosine") * 2 / 20)


@pytest.mark.parametrize("kind", DISTANCES)
def test_the_gradient_of_a_distance_agrees_with_finite_differences(kind):
    ours, theirs = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True), torch.rand(2, 3, 3).double()
    assert torch.autograd.gradcheck(lambda maps: distance(maps, theirs, kind), ours)


@pytest.mark.parametrize("weight", ["features.0.weight", "head.2.weight"])
@pytest.mark.parametrize(
    "part",
    [
        "map_match:explainer=[gradcam:tap=features]",
        "map_match:explainer=[gradcam++:tap=features],distance=at",
        "map_match:explainer=[hirescam:tap=features],distance=kl",
        "map_match:explainer=[gradcam:tap=features],classes=all,pool=2,distance=l2",
    ],
)
def test_second_derivatives_agree_with_finite_differences(part, weight):
    """In float64, through the maps and the gradients that they are made of."""
    student = Model(Smooth(), CLASSES, size=(8, 8)).double().eval()
    (method,) = build_methods([part]).values()
    given = Batch(torch.rand(3, 3, 8, 8).double(), torch.tensor([0, 1, 2]), torch.arange(3))
    maps = torch.rand(3, 4, 3, 3).double() if "classes=all" in part else torch.rand(3, 3, 3).double()
    answer = Answer(maps={method.needs[0]: maps}, targets={method.needs[0]: torch.tensor([1, 1, 3])})
    method.prepare(student, given, answer)
    moved = student.network.get_parameter(weight)

    def loss():
        return method.loss(given, student(given.images), answer).sum()

    (gradient,) = torch.autograd.grad(loss(), moved)
    direction, step, found = torch.randn_like(moved), 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            moved.add_(sign * step * direction)
        found.append(loss().item())
        with torch.no_grad():
            moved.sub_(sign * step * direction)
    expected = (found[0] - found[1]) / (2 * step)
    assert abs(expected) > 1e-5
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4)


def test_cam_of_all_classes_is_cat_kd():
    """An independent reference: pooled, normalised class maps of a 1×1 convolution with the classifier's weights."""
    given, large, small = batch(), model("resnet14", 1).eval(), model().eval()
    teacher = LiveTeacher(copy.deepcopy(large))
    made = objective(f"{CAT},weight=1", teacher, small, given).eval()
    (loss,) = made(given, teacher(given, made.needs)).values()

    def maps(network):
        network.tap("layer3")
        feature = network(given.images).features["layer3"]
        classes = nn.functional.conv2d(feature, network.network.fc.weight[:, :, None, None])
        return nn.functional.normalize(nn.functional.adaptive_avg_pool2d(classes, 2).flatten(2), dim=2)

    assert loss.item() == pytest.approx((maps(small) - maps(large)).square().mean().item(), rel=1e-4)
    assert build_methods([CAT])["map_match"].second_order is False


def test_class_maps_in_closed_form_are_those_by_gradients():
    given, teacher = batch(), LiveTeacher(model("resnet14", 1))
    losses = []
    for attached in (True, False):
        made = objective("map_match:explainer=cam,classes=all", teacher, model().eval(), given).eval()
        if not attached:
            made.methods["map_match"].explainer.attached = None
        (loss,) = made(given, teacher(given, made.needs)).values()
        loss.backward()
        losses.append((loss.item(), made.student.network.conv1.weight.grad.clone()))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert torch.allclose(losses[0][1], losses[1][1], rtol=1e-3, atol=1e-7)


def test_the_class_is_the_teachers_first_or_the_label():
    given, teacher = batch(), LiveTeacher(model("resnet14", 1))
    for part, depends in (("map_match", False), ("map_match:target=label", True)):
        losses = []
        for labels in (given.labels, (given.labels + 1) % 4):
            seen = given.replaced(targets=labels)
            made = objective(part, teacher, model().eval(), seen).eval()
            (loss,) = made(seen, teacher(seen, made.needs)).values()
            losses.append(loss.item())
        assert (losses[0] != losses[1]) == depends


def test_empty_maps_and_missing_labels_count_nothing_and_are_counted():
    given = batch().replaced(targets=torch.tensor([0, 1, -1, 3]))
    method, student = MapMatch(target="label"), model().eval()
    answer = Answer(
        maps={method.needs[0]: torch.rand(4, 8, 8) * torch.tensor([1.0, 0, 1, 1])[:, None, None]},
        targets={method.needs[0]: torch.tensor([0, 1, 0, 3])},
    )
    method.prepare(student, given, answer)
    loss = method.loss(given, student(given.images), answer)
    assert loss.shape == (4,)
    assert loss[[1, 2]].tolist() == [0, 0]
    loss.sum().backward()
    assert student.network.conv1.weight.grad.isfinite().all()
    assert method.notes()["empty maps"] >= 0.5
    assert method.notes() == {"empty maps": 0}  # counted anew


def test_a_student_whose_maps_are_empty_is_left_alone():
    """A last layer that knows nothing has no evidence: no direction to learn, and nothing that is no number."""
    given, teacher, student = batch(), LiveTeacher(model("resnet14", 1)), model()
    nn.init.zeros_(student.network.fc.weight)
    made = objective("map_match", teacher, student, given)
    (loss,) = made(given, teacher(given, made.needs)).values()
    loss.backward()
    assert loss.item() == 0
    assert made.student.network.conv1.weight.grad.isfinite().all()
    assert made.notes() == {"map_match/empty maps": 1}


def test_every_other_step_costs_neither_teacher_nor_student_anything():
    asked = []

    class Counting(LiveTeacher):
        def explainer(self, part):
            asked.append(part)
            return super().explainer(part)

    given = batch()
    teacher, student = Counting(model("resnet14", 1)), model()
    made = Objective(student.train(), build_methods(["ce", "map_match:every=3"]))
    made.prepare(given, teacher(given, made.needs))
    asked.clear()
    there = []
    for step in range(7):
        seen = given.replaced(step=step)
        answer = teacher(seen, made.needs)
        there.append("map_match" in made(seen, answer))
        assert there[-1] == (step % 3 == 0)
        assert bool(answer.maps[made.needs[0]].any()) == there[-1]
    assert there.count(True) == 3


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("map_match:explainer=rise", "cannot train through the maps of rise"),
        ("map_match:explainer=ig", "cannot train through the maps of ig"),
        ("map_match:distance=cos", "distance"),
        ("map_match:weight=-1", "weight"),
        ("map_match:weight=nan", "weight"),
        ("map_match:every=0", "every"),
        ("map_match:pool=0", "pool"),
        ("map_match:explainer=gradcamm", "Did you mean 'gradcam'"),
    ],
)
def test_what_cannot_be_says_so(part, said):
    with pytest.raises(UserError, match=said):
        build_methods([part])


def test_a_student_without_feature_maps_says_so_before_training():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    teacher, given = LiveTeacher(model()), batch()
    for part in ("map_match", "at"):
        with pytest.raises(UserError, match="no module of this model returns a feature map"):
            objective(part, teacher, Model(flat, CLASSES, size=(32, 32)), given)


def test_at_is_the_sum_over_taps_of_the_formula():
    given, large, small = batch(), model("resnet14", 1).eval(), model().eval()
    teacher = LiveTeacher(copy.deepcopy(large))
    made = objective("at:weight=1", teacher, small, given).eval()
    (loss,) = made(given, teacher(given, made.needs)).values()
    total = 0
    for tap in ("layer1", "layer2", "layer3"):
        found = []
        for network in (small, large):
            network.tap(tap)
            energy = network(given.images).features[tap].square().mean(1).flatten(1)
            found.append(nn.functional.normalize(energy, dim=1))
        total = total + (found[0] - found[1]).square().mean()
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)
    assert math.isfinite(loss.item())


def test_at_needs_as_many_taps_of_the_teacher():
    with pytest.raises(UserError, match="one tap of the teacher per tap of the student"):
        build_methods(["at:taps=[layer1,layer2],teacher_taps=[layer1]"])


def test_at_counts_empty_maps_and_its_counts_go_where_the_student_goes():
    method = build_methods(["at:taps=[layer1,layer3]"])["at"]
    assert sum(module is not method and isinstance(module, MapMatch) for module in method.modules()) == 2
    assert {name.split(".")[-1] for name, _ in method.named_buffers()} == {"counts"}
    given, teacher = batch(), LiveTeacher(model("resnet14", 1))
    made = objective("at:taps=[layer1,layer3]", teacher, model(), given)
    answer = teacher(given, made.needs)
    silent = {need: maps * (0 if "layer1" in need else 1) for need, maps in answer.maps.items()}
    made(given, Answer(maps=silent, targets=answer.targets))
    assert made.notes() == {"at/empty maps": 0.5}
