"""The teacher's map goes in as the formulas say, for fewer and fewer images, and the student is then used as it was promised."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

from distilens.core import Answer, Batch, Model, Objective, accompany
from distilens.data import load
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.methods.cam_fusion import CamFusion
from distilens.models import build_model
from distilens.models.parts import build_part
from distilens.models.parts.map_fusion import MapFusion, Nearby
from distilens.models.saved import load_model, save_model
from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run
from distilens.runs.stages import run_all
from distilens.teachers import LiveTeacher
from distilens.teachers.needs import Need
from distilens.training.loop import train
from distilens.training.settings import Training

CLASSES = tuple("abcd")
FUSES = ["concat", "gate", "film"]
DEPLOYS = ["null", "self", "teacher"]


def model(name: str = "resnet8", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return build_model(name, CLASSES, (32, 32))


def batch(count: int = 6, **changes) -> Batch:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return Batch(images, torch.arange(count) % 4, torch.arange(count), **changes)


def objective(part: str, given: Batch, teacher: LiveTeacher | None = None, student: Model | None = None) -> Objective:
    teacher = teacher or LiveTeacher(model("resnet14", 1))
    made = Objective((student or model()).train(), build_methods(["ce", part]))
    made.prepare(given, teacher(given, made.needs))
    return made


def stirred(part: nn.Module) -> nn.Module:
    """Other weights than those that it starts with, of which many are zero."""
    torch.manual_seed(5)
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.3)
    return part


class Logits(nn.Module):
    """A student as it is exported: images to logits."""

    def __init__(self, student: Model):
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        return self.student.logits(images)


@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize("deploy", DEPLOYS)
def test_it_starts_as_the_identity(fuse, deploy):
    part = build_part(f"map_fusion:channels=5,grid=[8,8],map_grid=[4,4],hidden=3,fuse={fuse},deploy={deploy}")
    feature, maps = torch.randn(2, 5, 8, 8), torch.rand(2, 4, 4)
    for inputs in ({}, {"cam": maps, "cam_shown": torch.tensor([0.0, 1.0])}):
        assert torch.allclose(part(feature, inputs), feature, atol=1e-6)


@pytest.mark.parametrize("fuse", FUSES)
def test_it_fuses_as_the_formula_says(fuse):
    part = stirred(build_part(f"map_fusion:channels=5,grid=[8,6],map_grid=[4,3],hidden=3,fuse={fuse},deploy=teacher"))
    feature, maps = torch.randn(2, 5, 8, 6), torch.rand(2, 4, 3)
    found = part(feature, {"cam": maps, "cam_shown": torch.ones(2)})
    up = conv_transpose2d(maps[:, None], part.up.weight, part.up.bias, stride=2, padding=1)
    assert part.up.weight.shape == (1, 3, 4, 4)
    weight, bias = part.mix.weight, part.mix.bias
    at = (1, slice(None), 5, 2)  # one place of one image
    f, u = feature[at], up[at]
    expected = {
        "concat": lambda: weight @ torch.cat([f, u]) + bias,
        "gate": lambda: f * (1 + weight @ u + bias),
        "film": lambda: f * (1 + weight[:5] @ u + bias[:5]) + weight[5:] @ u + bias[5:],
    }[fuse]()
    assert torch.allclose(found[at], expected, atol=1e-5)
    assert found.shape == feature.shape


@pytest.mark.parametrize("identity", [True, False])
def test_the_mixing_layer_moves_slowly_from_where_it_starts(identity):
    """A plain layer there made the loss NaN under the optimizer of the recipes."""
    layer, plain = Nearby(5, 3, identity), nn.Linear(5, 3)
    start = torch.eye(3, 5) if identity else torch.zeros(3, 5)
    assert torch.equal(layer.weight, start)
    assert not layer.bias.any()
    values, wanted = torch.randn(7, 5), torch.randn(7, 3)
    plain.load_state_dict({"weight": start, "bias": torch.zeros(3)})
    for each in (layer, plain):
        (each(values) * wanted).sum().backward()
        torch.optim.SGD(each.parameters(), lr=1.0).step()
    assert torch.allclose(layer.weight - start, 0.01 * (plain.weight - start), atol=1e-6)
    assert torch.allclose(layer.bias, 0.01 * plain.bias, atol=1e-6)


@pytest.mark.parametrize(
    ("grid", "map_grid", "kernel"),
    [(8, 8, 2), (8, 4, 4), (8, 2, 8), (9, 3, 6), (8, 7, 4), (7, 4, 4), (4, 8, 2), (5, 7, 2)],
)
def test_a_map_of_any_grid_keeps_its_place(grid, map_grid, kernel):
    part = MapFusion(channels=2, grid=(grid, grid), map_grid=(map_grid, map_grid), hidden=1, deploy="teacher")
    assert part.up.kernel_size == (kernel, kernel)
    nn.init.ones_(part.up.weight)
    nn.init.zeros_(part.up.bias)
    for place in range(map_grid):
        maps = torch.zeros(1, map_grid, map_grid)
        maps[:, place, 0] = 1
        up = part.guide(torch.zeros(1, 2, grid, grid), {"cam": maps, "cam_shown": torch.ones(1)})
        assert up.shape == (1, 1, grid, grid)
        rows = up[0, 0].sum(1)
        centre = (rows * (torch.arange(grid) + 0.5)).sum() / rows.sum() / grid
        assert centre.item() == pytest.approx((place + 0.5) / map_grid, abs=1.01 / min(grid, map_grid))


@pytest.mark.parametrize("deploy", ["null", "self"])
def test_without_a_map_it_takes_what_it_will_have_in_use(deploy):
    part = stirred(build_part(f"map_fusion:channels=5,grid=[8,8],map_grid=[4,4],deploy={deploy}"))
    feature, maps = torch.randn(3, 5, 8, 8), torch.rand(3, 4, 4)
    mixed = part(feature, {"cam": maps, "cam_shown": torch.tensor([1.0, 0.0, 1.0])})
    alone = part(feature, {})
    assert torch.allclose(mixed[1], alone[1], atol=1e-6)
    assert not torch.allclose(mixed[0], alone[0], atol=1e-2)
    other = part(feature, {"cam": maps.flip(1), "cam_shown": torch.tensor([1.0, 0.0, 1.0])})
    assert torch.equal(other[1], mixed[1])  # nothing of a map that is not shown comes through
    assert not torch.allclose(other[0], mixed[0], atol=1e-2)


def test_with_nothing_shown_the_learned_vector_stands_at_every_place():
    part = stirred(MapFusion(channels=5, grid=(8, 8), map_grid=(4, 4), fuse="gate"))
    feature = torch.randn(3, 5, 8, 8)
    factor = 1 + part.mix.weight @ part.null + part.mix.bias
    assert torch.allclose(part(feature, {}), feature * factor[:, None, None], atol=1e-5)


def test_fewer_and_fewer_images_have_a_map():
    given = batch(400)
    maps = torch.rand(400, 4, 4)
    for deploy in ("null", "self"):
        method, shares, before = CamFusion(deploy=deploy, until=0.5), [], torch.ones(400)
        for progress in (0.0, 0.1, 0.25, 0.45, 0.5, 0.9, 1.0):
            seen = method.transform(given.replaced(progress=progress), Answer(maps={method.needs[0]: maps}))
            shown = seen.inputs["cam_shown"]
            assert not (shown > before).any()
            before = shown
            shares.append(shown.mean().item())
        assert shares == pytest.approx([1, 0.8, 0.5, 0.1, 0, 0, 0], abs=0.06)
        assert shares[0] == 1
        assert shares[-3:] == [0, 0, 0]
    method = CamFusion(start=0.6, deploy="self")
    first = method.transform(given, Answer(maps={method.needs[0]: maps})).inputs["cam_shown"]
    assert first.mean().item() == pytest.approx(0.4, abs=0.06)
    again = method.transform(given.replaced(epoch=1), Answer(maps={method.needs[0]: maps})).inputs["cam_shown"]
    assert not torch.equal(first, again)
    always = CamFusion(deploy="teacher")
    seen = always.transform(given.replaced(progress=1.0), Answer(maps={always.needs[0]: maps}))
    assert seen.inputs["cam_shown"].all()


def test_the_map_goes_in_from_0_to_1_whatever_its_scale():
    given, method = batch(), CamFusion()
    maps = torch.rand(6, 4, 4) * 1e-4
    maps[3] = 0
    found = method.transform(given, Answer(maps={method.needs[0]: maps})).inputs["cam"]
    expected = (maps[0] - maps[0].min()) / (maps[0].max() - maps[0].min())
    assert torch.allclose(found[0], expected, atol=1e-5)
    assert not found[3].any()


def test_what_it_asks_for():
    given = {
        "cam_fusion": "maps:gradcam:of=images",
        "cam_fusion:of=canonical,explainer=[ig:steps=4],start=0.25": "maps:ig:steps=4,of=canonical,share=0.75,draw=cam_fusion",
        "cam_fusion:deploy=self,start=0.25": "maps:gradcam:of=images",  # its loss needs all of them
        "cam_fusion:deploy=teacher": "maps:gradcam:of=images",
    }
    for part, need in given.items():
        (method,) = build_methods([part]).values()
        assert method.needs == (need,)
        assert Need.parse(need).target == "top1"
        assert method.at_use == ((need,) if "teacher" in part else ())


def test_maps_are_made_of_images_that_see_one_alone():
    given, teacher = batch(), LiveTeacher(model("resnet14", 1))
    method = CamFusion(start=0.5)
    answer = teacher(given, method.needs)
    shown = method.transform(given, answer).inputs["cam_shown"].bool()
    assert 0 < shown.sum() < 6
    assert torch.equal(answer.maps[method.needs[0]].any((1, 2)), shown)


@pytest.mark.parametrize("deploy", DEPLOYS)
def test_labels_do_not_leak(deploy):
    given, teacher = batch(), LiveTeacher(model("resnet14", 1))
    made = objective(f"cam_fusion:deploy={deploy}", given, teacher).eval()
    stirred(made.student.parts["cam_fusion"])
    outputs = []
    for labels in (given.labels, (given.labels + 1) % 4, torch.full_like(given.labels, -1)):
        seen = given.replaced(targets=labels)
        seen = made.methods["cam_fusion"].transform(seen, teacher(seen, made.needs))
        outputs.append((seen.view, *seen.inputs.values(), made.student(seen.view, seen.inputs).logits))
    for other in outputs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(outputs[0], other, strict=True))
    shuffled = seen.inputs["cam"].roll(1, 0)  # the output does depend on what went in
    assert not torch.allclose(
        made.student(seen.view, {**seen.inputs, "cam": shuffled}).logits, outputs[0][-1], atol=1e-3
    )


def test_a_map_of_the_label_is_refused():
    with pytest.raises(UserError, match="the teacher's top class; remove target= from"):
        build_methods(["cam_fusion:explainer=[gradcam:target=label]"])


@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize("deploy", DEPLOYS)
def test_all_of_the_part_and_the_first_layer_learn(fuse, deploy):
    """Every parameter has a gradient at every step, as training with several processes demands."""
    teacher = LiveTeacher(model("resnet14", 1))
    made = objective(f"cam_fusion:fuse={fuse},deploy={deploy}", batch(), teacher)
    part = stirred(made.student.parts["cam_fusion"])
    answer = teacher(batch(), made.needs)
    for progress in (0.0, 0.3, 0.9):
        made.zero_grad(set_to_none=True)
        sum(made(batch(progress=progress), answer).values()).backward()
        assert all(parameter.grad is not None for parameter in made.student.parameters())
        assert made.student.network.conv1.weight.grad.any()
        assert part.mix.change.grad.any()
        assert part.up.weight.grad.any() == (deploy != "null" or progress < 0.8)
        if deploy == "null":
            assert part.null.grad.any() == (progress > 0)
        if deploy == "self":
            assert part.predicted[0].weight.grad.any()


def test_the_students_own_map_is_compared_with_the_teachers():
    given, teacher = batch(), LiveTeacher(model("resnet14", 1))
    made = objective("cam_fusion:deploy=self,weight=2", given, teacher).eval()
    stirred(made.student.parts["cam_fusion"])
    answer = teacher(given, made.needs)
    answer.maps["maps:gradcam:of=images"][2] = 0
    method = made.methods["cam_fusion"]
    seen = method.transform(given, answer)
    output = made.student(seen.view, seen.inputs)
    found = method.loss(seen, output, answer)
    own = output.features["cam_fusion.predicted"]
    assert own.shape == (6, 1, 8, 8)
    assert own.min() >= 0
    assert own.max() <= 1
    theirs = seen.inputs["cam"]
    cosine = nn.functional.cosine_similarity(own.flatten(1), theirs.flatten(1))
    assert found[2] == 0
    assert torch.allclose(found, (1 - cosine).where(torch.arange(6) != 2, 0), atol=1e-6)
    assert (found[[0, 1, 3, 4, 5]] > 0).all()
    equal = seen.replaced(inputs={**seen.inputs, "cam": own[:, 0].detach()})
    assert method.loss(equal, output, answer).abs().max() < 1e-6
    assert made(given, answer)["cam_fusion"].item() == pytest.approx(2 * found.mean().item(), rel=1e-5)


def finished(part: str, given: Batch) -> tuple[Objective, Model]:
    """An objective whose part has been stirred, and its student as it will be used; a copy."""
    made = objective(part, given).eval()
    stirred(made.student.parts["cam_fusion"])
    return made, copy.deepcopy(made).finish().eval()


@pytest.mark.parametrize("fuse", FUSES)
def test_the_student_without_a_teacher_is_folded_to_the_same(fuse):
    given = batch()
    made, student = finished(f"cam_fusion:fuse={fuse}", given)
    assert torch.allclose(student.logits(given.images), made.student.logits(given.images), rtol=1e-4, atol=1e-5)
    part = student.parts["cam_fusion"]
    assert sum(weight.numel() for weight in part.parameters()) == (64 * 65 if fuse == "concat" else 2 * 64)
    assert [type(module) for module in part.modules()][1:] == [nn.Conv2d]
    exact = copy.deepcopy(made.double()).finish()  # the same to rounding, in float64 too
    images = given.images.double()
    assert torch.allclose(exact.logits(images), made.student.logits(images), rtol=1e-12, atol=1e-12)


def test_folding_leaves_the_part_in_its_place_among_others():
    class Square(nn.Module):
        def forward(self, feature, inputs):
            return feature.square()

    given = batch()
    made = objective("cam_fusion", given).eval()
    stirred(made.student.parts["cam_fusion"])
    made.student.insert("last", Square(), name="behind")
    before = made.student.logits(given.images)
    assert torch.allclose(made.finish().logits(given.images), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize("deploy", DEPLOYS)
def test_what_is_saved_is_loaded_bit_for_bit(fuse, deploy, tmp_path):
    given = batch()
    _, student = finished(f"cam_fusion:fuse={fuse},deploy={deploy},channels=3", given)
    save_model(student, tmp_path)
    loaded = load_model(tmp_path)
    inputs = {"cam": torch.rand(6, 8, 8), "cam_shown": torch.ones(6)} if deploy == "teacher" else {}
    assert torch.equal(loaded(given.images, inputs).logits, student(given.images, inputs).logits)


@pytest.mark.parametrize("deploy", ["null", "self"])
def test_the_finished_student_is_exported_without_a_teacher(deploy, tmp_path):
    given = batch(4)
    _, student = finished(f"cam_fusion:deploy={deploy}", given)
    save_model(student, tmp_path)
    for one in (student, load_model(tmp_path)):
        exported = torch.export.export(Logits(one), (given.images,)).module()
        assert torch.allclose(exported(given.images), student.logits(given.images), atol=1e-5)


def test_a_student_with_its_teacher_is_none_without(tmp_path):
    given = batch(4)
    made, student = finished("cam_fusion:deploy=teacher", given)
    save_model(student, tmp_path)
    loaded = load_model(tmp_path)
    for one in (made.student, student, loaded):
        with pytest.raises(
            UserError, match="cannot answer alone: its part cam_fusion needs the input cam from its teacher"
        ):
            one.logits(given.images)
    for one in (student, loaded):
        with pytest.raises(UserError, match="cannot answer alone"):
            torch.export.export(Logits(one), (given.images,))
    teacher = LiveTeacher(model("resnet14", 1))
    method = made.methods["cam_fusion"]
    accompany(loaded, [method], teacher)
    seen = method.transform(given, teacher(given, method.needs))
    assert torch.allclose(loaded.logits(given.images), student(given.images, seen.inputs).logits, atol=1e-5)


class Tail(nn.Module):
    """A network whose last feature is of another layout."""

    def __init__(self, layout: str):
        super().__init__()
        self.layout, self.body = layout, nn.Conv2d(3, 6, 4, stride=4)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, images):
        feature = self.body(images).permute(0, 2, 3, 1)
        feature = self.norm(feature.flatten(1, 2) if self.layout == "tokens" else feature)
        return self.head(feature.flatten(1, -2).mean(1))


@pytest.mark.parametrize(("layout", "shape"), [("nhwc", r"\[1, 8, 8, 6\]"), ("tokens", r"\[1, 64, 6\]")])
def test_another_layout_says_so(layout, shape):
    student = Model(Tail(layout), CLASSES, size=(32, 32))
    with pytest.raises(
        UserError, match=rf"last feature \[b c h w\], channels first; the feature of Tail at 'norm' is {shape}"
    ):
        objective("cam_fusion", batch(), student=student)


@pytest.mark.parametrize(
    "deploy", [pytest.param(deploy, marks=[] if deploy == "self" else [pytest.mark.slow]) for deploy in DEPLOYS]
)
def test_a_run_trains_with_it(deploy, tmp_path):
    data = load("shapes:limit=40,size=16", tmp_path)
    teacher = LiveTeacher(build_model("resnet8", data.classes, data.size))
    student = build_model("resnet8", data.classes, data.size)
    settings = Training(epochs=1, batch_size=12, precision="float32", ema=0.5, optimizer="muon")
    methods = build_methods(["ce", f"cam_fusion:deploy={deploy}"])
    student = train(student, methods, data, settings, teacher=teacher)
    if deploy == "teacher":  # what comes back holds no teacher, and cannot be exported as if it needed none
        with pytest.raises(UserError, match="cannot answer alone"):
            torch.export.export(Logits(student), (torch.rand(2, 3, 32, 32),))
        accompany(student, methods.values(), teacher)
    assert student.logits(torch.rand(2, 3, 32, 32)).isfinite().all()
    assert not any("teacher" in key for key in student.bare_state())


@pytest.mark.slow
def test_a_run_measures_a_student_that_needs_its_teacher_beside_it(cache):
    content = {
        "data": "shapes:limit=40,size=32",
        "teacher": {"model": "resnet8"},
        "student": {"model": "resnet8", "methods": ["ce", "cam_fusion:deploy=teacher"]},
        "train": {"epochs": 1, "batch_size": 16, "precision": "float32"},
        "explain": {"explainers": ["gradcam", "ig:steps=2"], "images": 2, "measured": 4},
    }
    run = Run(cache.parent / "one", make_recipe(content))
    run_all(run)
    scores = run.scores["models"]
    assert scores["student"]["test"]["n"] == 40
    up, mixing = 8 * 2 * 2 * 64, 64 * (64 + 8) * 64  # of the part on its 8×8 places; the teacher is not counted
    assert scores["student"]["macs"] - scores["base"]["macs"] == up + mixing
    with pytest.raises(UserError, match="cannot answer alone"):
        run.model("student").logits(torch.rand(1, 3, 32, 32))
