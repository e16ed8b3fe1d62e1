"""A live teacher says what is asked, of the images, and is never changed by it."""

import pytest
import torch

from distilens.core import Answer, Batch
from distilens.data.geometry import Geometry
from distilens.explain.gradcam import GradCAM
from distilens.foundation.errors import UserError
from distilens.models import build_model
from distilens.teachers import LiveTeacher, nobody
from distilens.teachers.needs import Need

CLASSES = tuple("abcd")
NEEDS = ["logits", "features:layer2", "features:last", "maps:gradcam", "maps:ig:steps=2,target=label", "module:fc"]


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return LiveTeacher(build_model("resnet8", CLASSES, (32, 32)).train())


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    canonical = torch.rand(4, 3, 32, 32, generator=generator)
    box = torch.tensor([[0.0, 0, 32, 32], [4, 0, 32, 32], [0, -4, 32, 32], [-4, 4, 32, 32]])
    moved = Geometry(box, torch.tensor([False, True, False, True]), (32, 32), (32, 32), whole=True)
    images = moved.move(canonical)
    return Batch(images, torch.arange(4), torch.arange(4), view=images * 0, geometry=moved, source=lambda: canonical)


def test_it_answers_what_is_asked_and_nothing_else(teacher, batch):
    answer = teacher(batch, NEEDS)
    assert answer.logits.shape == (4, 4)
    assert answer.features["layer2"].shape == (4, 32, 16, 16)
    assert set(answer.features) == {"layer2", "last"}
    assert torch.equal(answer.features["last"], teacher(batch, ["features:layer3"]).features["layer3"])
    assert set(answer.maps) == {"maps:gradcam", "maps:ig:steps=2,target=label"}
    assert answer.modules["fc"] is teacher.model.network.fc
    assert teacher(batch, []) == Answer()
    assert teacher(batch, ["maps:gradcam"]).logits is None


def test_it_sees_the_images_whatever_the_student_sees(teacher, batch):
    assert torch.allclose(teacher(batch, ["logits"]).logits, teacher.model.logits(batch.images), atol=1e-5)


def test_it_stays_frozen_in_eval_mode_and_without_a_graph(teacher, batch):
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    with torch.enable_grad():
        answer = teacher(batch, NEEDS)
    for tensor in (answer.logits, *answer.features.values(), *answer.maps.values()):
        assert not tensor.requires_grad
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())


def test_maps_are_of_this_crop_or_made_once_and_moved_with_the_image(teacher, batch):
    explain = GradCAM(tap="conv1")
    own, moved = (
        teacher(batch, [need]).maps[need]
        for need in ("maps:gradcam:tap=conv1,target=label", "maps:gradcam:tap=conv1,target=label,of=canonical")
    )
    assert torch.allclose(own, explain(teacher.model, batch.images, batch.labels).maps, atol=1e-6)
    canonical = explain(teacher.exact, batch.canonical, batch.labels).maps
    assert torch.equal(moved, batch.geometry.move(canonical))
    assert torch.allclose(moved[0], own[0], atol=1e-6)  # the first box is the whole image
    assert not torch.allclose(moved[3], own[3], atol=1e-6)


@pytest.mark.parametrize("explainer", ["attention", "gradcam", "gradcam++"])
def test_maps_at_several_taps_cost_one_forward_and_are_the_same(teacher, batch, explainer):
    taps = ["layer1", "layer2", "last"]
    needs = [f"maps:{explainer}:tap={tap}" for tap in taps]
    needs += [f"maps:{explainer}:tap=layer2,pool=4", f"maps:{explainer}:tap=last,target=label", "maps:cam:classes=all"]
    needs.append(f"maps:{explainer}:tap=layer1,of=canonical")
    alone = {need: teacher(batch, [need]) for need in needs}
    forwards = []
    for form in teacher.prepared.values():
        form.network.register_forward_hook(lambda module, given, found: forwards.append(module))
    together = teacher(batch, needs)
    assert len(forwards) == 4  # the four needs of one target, another target, all classes, untransformed images
    for need in needs:
        assert torch.allclose(together.maps[need], alone[need].maps[need], atol=1e-6)
        assert torch.equal(together.targets[need], alone[need].targets[need])
    assert together.maps[needs[3]].shape[1:] == (4, 4)
    assert together.maps[needs[0]].shape != together.maps[needs[1]].shape


def test_asking_again_does_not_grow_the_model(teacher, batch):
    for _ in range(3):
        teacher(batch, NEEDS)
    assert not any(module._forward_hooks for module in teacher.model.modules())
    forms = teacher.prepared.values()
    assert sum(len(module._forward_hooks) for form in forms for module in form.modules()) == 2


@pytest.mark.parametrize("text", ["logit", "logits:x", "features", "features:", "maps", "modules:fc", ""])
def test_an_unknown_need_is_said(text):
    with pytest.raises(UserError, match="unknown need"):
        Need.parse(text)


@pytest.mark.parametrize(
    ("need", "text"),
    [
        ("maps:gradcamm", "unknown explainer 'gradcamm'. Did you mean 'gradcam'"),
        ("maps:gradcam:of=crops", r"of=canonical\|images"),
        ("maps:ig:step=3", "unknown option 'step'"),
        ("features:layer9", "no tap 'layer9'"),
        ("module:layer9", "no tap 'layer9'"),
    ],
)
def test_a_need_that_cannot_be_met_is_said(teacher, batch, need, text):
    with pytest.raises(UserError, match=text):
        teacher(batch, [need])


def test_nobody_answers_nothing(batch):
    assert nobody(batch, ()) == Answer()
    with pytest.raises(UserError, match=r"these methods need a teacher \(logits\), but there is none"):
        nobody(batch, ("logits",))
