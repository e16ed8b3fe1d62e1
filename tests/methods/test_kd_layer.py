"""The layer adds what its templates say, is taught by the teacher's clusters, and stays or goes as it is asked."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distilens.core import Answer, Batch, Model, Objective, Output
from distilens.data import load
from distilens.explain import EXPLAINERS
from distilens.foundation.errors import UserError
from distilens.measure import macs, parameters
from distilens.methods import build_methods
from distilens.methods.codebook import Codebook, make_codebook
from distilens.methods.kd_layer import KDLayer
from distilens.models import build_model
from distilens.models.grids import resized
from distilens.models.parts import build_part
from distilens.models.saved import load_model, save_model
from distilens.teachers import LiveTeacher
from distilens.training.loop import train
from distilens.training.settings import Training

CLASSES, TEMPLATES = 3, 10
SETTINGS = {"epochs": 2, "batch_size": 8, "precision": "float32", "workers": 0, "channels_last": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, a teacher, and the paths of its codebooks of both stages, each at `layer2` and at `layer3`."""
    place = tmp_path_factory.mktemp("kd_layer")
    data = load("shapes:train=120,test=40,size=16,classes=[0,1,2]", place)
    torch.manual_seed(1)
    teacher = LiveTeacher(build_model("resnet8", data.classes, data.size))
    books = {}
    for stage in (1, 2):
        for tap in ("layer2", "layer3"):
            path = books[stage, tap] = str(place / f"{stage}{tap}.safetensors")
            make_codebook(teacher, data, tap=tap, stage=stage, templates=TEMPLATES, subclasses=2).save(path)
    return data, teacher, books


def student(name: str = "resnet8") -> Model:
    torch.manual_seed(2)
    return build_model(name, tuple("abc"), (16, 16))


def batch(world, count: int = 6, **changes) -> Batch:
    images, _ = world[0].train.pixels(torch.arange(count).numpy())
    return Batch(images, torch.arange(count) % CLASSES, torch.arange(count), **changes)


def method_of(world, stage: int = 1, *, tap: str | None = None, their: str | None = None, **options) -> KDLayer:
    tap = tap or ("layer3" if stage == 1 else "layer2")
    their = their or tap
    return KDLayer(stage=stage, tap=tap, teacher_tap=their, codebook=world[2][stage, their], **options)


def prepared(world, method: KDLayer, model: Model | None = None) -> tuple[Model, Batch, Answer]:
    given = batch(world)
    answer = world[1](given, method.needs)
    return method.prepare(model or student(), given, answer), given, answer


def part_of(channels: int = 5, templates: int = 7, alpha: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    part = build_part(f"kd_layer:channels={channels},templates={templates},alpha={alpha}")
    nn.init.normal_(part.norm.weight)
    nn.init.normal_(part.norm.bias)
    return part.eval()


# the part


def test_it_adds_what_the_formula_says():
    part, feature = part_of(alpha=0.7), torch.randn(2, 5, 3, 4)
    part.gain.data.fill_(1.5)
    found = part(feature, {})
    w, v = part.scores.weight[:, :, 0, 0], part.values[:, :, 0, 0]
    for image in range(2):
        for y in range(3):
            for x in range(4):
                at = feature[image, :, y, x]
                s = 3 * (w / w.norm(dim=1, keepdim=True)) @ (at / at.norm())
                p = (s / (1 + 1e-5) ** 0.5 * part.norm.weight + part.norm.bias).relu()
                added = 1.5 * (v / v.norm(dim=1, keepdim=True)) @ (p / p.norm())
                assert torch.allclose(found[image, :, y, x], at + 0.7 * added, atol=1e-5)


def test_alpha_zero_is_the_identity():
    feature = torch.randn(2, 5, 4, 4)
    assert torch.equal(part_of(alpha=0.0)(feature, {}), feature)
    assert not torch.equal(part_of(alpha=0.1)(feature, {}), feature)


def test_scores_are_bounded_by_their_gain_whatever_the_features_size():
    scores = part_of().scores
    for size in (1e-3, 1.0, 1e3):
        found = scores(torch.randn(4, 5, 8, 8) * size)
        assert found.abs().max() <= 3 * (1 + 1e-6)
        assert found.abs().max() > 2
    fits = scores(scores.weight[3].expand(2, -1, 2, 2))
    assert torch.allclose(fits[:, 3], torch.full((2, 2, 2), 3.0))


def test_features_and_fits_that_are_zero_give_finite_gradients():
    part, feature = part_of(), torch.zeros(2, 5, 2, 2, requires_grad=True)
    part.norm.bias.data.fill_(-1.0)  # no template is above its average
    found = part(feature, {})
    assert torch.equal(found, feature)
    found.sum().backward()
    assert feature.grad.isfinite().all()
    assert all(value.grad is None or value.grad.isfinite().all() for value in part.parameters())


def test_it_costs_what_the_paper_leaves_out():
    model = build_model("resnet20", tuple(map(str, range(100))), (32, 32))
    before = parameters(model), macs(model)
    model.insert("last", build_part("kd_layer:channels=64,templates=4096"), name="kd_layer")
    more = parameters(model) - before[0], macs(model) - before[1]
    assert more == (2 * 64 * 4096 + 2 * 4096 + 2, 2 * 64 * 4096 * 8 * 8)
    assert [round(100 * added / was) for added, was in zip(more, before, strict=True)] == [191, 82]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_works_in_half_precision_and_under_autocast(dtype):
    part, feature = part_of(64, 200), torch.randn(2, 64, 4, 4)
    expected = part(feature, {})
    halved = part.to(dtype)(feature.to(dtype), {})
    assert halved.dtype == dtype
    assert torch.allclose(halved.float(), expected, atol=0.05)
    with torch.autocast("cpu", dtype):
        assert torch.allclose(part_of(64, 200)(feature, {}), expected, atol=0.05)


# the loss


def test_the_first_stages_loss_by_hand(world):
    method = method_of(world, tau=0.5)
    model, given, answer = prepared(world, method)
    output = model(given.view)
    book = Codebook.load(method.codebook)
    scores, theirs = output.features["kd_layer.scores"], answer.features["layer3"]
    assert scores.shape == (6, TEMPLATES, 4, 4)
    expected = torch.zeros(6)
    for y in range(4):
        for x in range(4):
            apart = torch.cdist(theirs[:, :, y, x], book.centres).square()
            wanted, ours = (-0.5 * apart).softmax(1), scores[:, :, y, x].log_softmax(1)
            expected += (wanted * (wanted.log() - ours)).sum(1) / 16
    assert torch.allclose(method.loss(given, output, answer), expected, rtol=1e-3)


def test_the_second_stages_loss_by_hand(world):
    method = method_of(world, 2)
    model, given, answer = prepared(world, method)
    output = model(given.view)
    book = Codebook.load(method.codebook)
    scores, theirs = output.features["kd_layer.scores"], answer.features["layer2"]
    expected = torch.zeros(6)
    for image, label in enumerate(given.labels):
        for place in range(64):
            seen = (theirs[image].flatten(1)[:, place] - book.mean) @ book.projection
            own = (book.centres[2 * label : 2 * label + 2] - seen).square().sum(1).argmin()
            wanted, ours = book.table[2 * label + own], scores[image].flatten(1)[:, place].log_softmax(0)
            expected[image] += (torch.xlogy(wanted, wanted) - wanted * ours).sum() / 64
    assert torch.allclose(method.loss(given, output, answer), expected, rtol=1e-3)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_loss_is_zero_where_the_scores_are_the_teachers_and_positive_elsewhere(world, stage):
    method = method_of(world, stage)
    model, given, answer = prepared(world, method)
    theirs = answer.features[method.teacher_tap]
    wanted = method.teacher_distribution(theirs.flatten(2).transpose(1, 2), given.labels)
    assert torch.allclose(wanted.sum(-1), torch.ones(wanted.shape[:2]))
    same = wanted.log().clamp_min(-1e4).transpose(1, 2).unflatten(2, theirs.shape[2:])
    none = torch.zeros(6, len(model.classes))

    def loss(scores: Tensor) -> Tensor:
        return method.loss(given, Output(none, {"kd_layer.scores": scores}), answer)

    assert loss(same).abs().max() < 1e-5
    assert loss(same + 5).abs().max() < 1e-5  # a softmax knows differences alone
    assert loss(same.clamp_min(-50) + torch.randn_like(same)).min() > 1e-3


def test_images_without_a_label_have_no_second_stage(world):
    method = method_of(world, 2)
    model, given, answer = prepared(world, method)
    output = model(given.view)
    whole = method.loss(given, output, answer)
    some = method.loss(given.replaced(targets=torch.tensor([0, -1, 2, 0, -1, 2])), output, answer)
    assert torch.equal(some[[1, 4]], torch.zeros(2))
    assert torch.equal(some[[0, 2, 3, 5]], whole[[0, 2, 3, 5]])
    assert whole.min() > 0


@pytest.mark.parametrize(("tap", "their"), [("layer3", "layer2"), ("layer2", "layer3")])
def test_of_two_grids_the_smaller_counts(world, tap, their):
    method = method_of(world, 1, tap=tap, their=their)
    model, given, answer = prepared(world, method)
    output = model(given.view)
    scores, theirs = output.features["kd_layer.scores"], answer.features[their]
    assert {scores.shape[-1], theirs.shape[-1]} == {4, 8}
    pooled = Answer(features={their: resized(theirs, (4, 4))})
    again = Output(output.logits, {"kd_layer.scores": functional.adaptive_avg_pool2d(scores, 4)})
    assert torch.allclose(method.loss(given, output, answer), method.loss(given, again, pooled), rtol=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_gradient_reaches_the_templates_and_the_first_layer_and_nothing_of_the_teacher(world, stage):
    method = method_of(world, stage)
    model, given, answer = prepared(world, method)
    method.loss(given, model(given.view), answer).sum().backward()
    assert model.network.conv1.weight.grad.abs().max() > 0
    assert model.parts["kd_layer"].scores.weight.grad.abs().max() > 0
    assert model.parts["kd_layer"].scores.gain.grad.abs().max() > 0
    assert model.parts["kd_layer"].values.grad is None  # it is behind the scores
    assert all(weight.grad is None for weight in world[1].model.parameters())


def test_the_loss_is_computed_in_float32_under_autocast(world):
    method = method_of(world)
    model, given, answer = prepared(world, method)
    output = model(given.view)
    expected = method.loss(given, output, answer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.loss(given, output, answer), expected)


# in the student


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-1", "vgg8", "mobilenetv2"])
def test_the_part_is_sized_from_the_students_feature(world, name):
    method = KDLayer(teacher_tap="layer3", codebook=world[2][1, "layer3"])
    model = student(name) if name not in ("vgg8", "mobilenetv2") else build_model(name, tuple("abc"), (32, 32))
    model, _, _ = prepared(world, method, model)
    images = torch.rand(2, 3, *model.size)
    found = model.eval()(images)
    assert found.features["kd_layer.scores"].shape[:2] == (2, TEMPLATES)
    (found.logits.sum()).backward()
    assert model.parts["kd_layer"].values.grad.abs().max() > 0


def test_two_terms_are_two_parts_each_with_its_own_loss(world):
    inter, last = method_of(world, 2), method_of(world)
    model, given, _ = prepared(world, inter)
    model, _, _ = prepared(world, last, model)
    assert {name: place.path for name, place in model.inserted.items()} == {"kd_layer": "layer2", "kd_layer2": "layer3"}
    answer = world[1](given, (*inter.needs, *last.needs))
    output = model(given.view)
    assert output.features["kd_layer.scores"].shape == (6, 2 * CLASSES, 8, 8)
    assert output.features["kd_layer2.scores"].shape == (6, TEMPLATES, 4, 4)
    assert inter.loss(given, output, answer).min() > 0
    assert last.loss(given, output, answer).min() > 0


def test_the_defaults_are_the_papers_and_fit_any_student():
    one, two = (method for method in build_methods(["kd_layer", "kd_layer:stage=2,as=inter"]).values())
    assert (one.tap, two.tap, one.needs, two.needs) == ("last", "last-1", ("features:last",), ("features:last-1",))
    assert one.asked == {"stage": 1, "tap": "last", "templates": 4096}
    assert two.asked == {"stage": 2, "tap": "last-1", "subclasses": 8}
    (own,) = build_methods(["kd_layer:tap=layer3.0,teacher_tap=layer3.1"]).values()
    assert (own.tap, own.needs) == ("layer3.0", ("features:layer3.1",))


def test_codebooks_that_do_not_fit_are_refused_with_both_sides(world):
    books = world[2]
    of_layer3 = {"teacher_tap": "layer3"}
    wrong = {
        "features with 32 channels, but the teacher's features at 'layer3' have 64": (1, "layer2", 1, "abc"),
        r"is for stage 2, but kd_layer has stage=1": (2, "layer3", 1, "abc"),
        r"is for stage 1, but kd_layer has stage=2": (1, "layer3", 2, "abc"),
        r"has 3 classes, but the student has 4": (2, "layer3", 2, "abcd"),
    }
    for text, (of, tap, stage, classes) in wrong.items():
        model = build_model("resnet8", tuple(classes), (16, 16))
        method = KDLayer(stage=stage, codebook=books[of, tap], **of_layer3)
        with pytest.raises(UserError, match=text):
            prepared(world, method, model)
        assert not model.inserted
    with pytest.raises(UserError, match="kd_layer needs a codebook of the teacher"):
        prepared(world, KDLayer(teacher_tap="layer3"))


class Tokens(nn.Module):
    """A student with the channels last."""

    def __init__(self):
        super().__init__()
        self.turn, self.same, self.head = nn.Conv2d(3, 6, 3, stride=4), nn.Identity(), nn.Linear(6, CLASSES)

    def forward(self, images):
        return self.head(self.same(self.turn(images).permute(0, 2, 3, 1)).mean((1, 2)))


def test_a_student_whose_feature_has_its_channels_elsewhere_is_refused(world):
    model = Model(Tokens(), tuple("abc"), size=(16, 16))
    with pytest.raises(
        UserError, match=r"takes features \[b c h w\], but the feature of Tokens at 'same' is \[1, 4, 4, 6\]"
    ):
        prepared(world, method_of(world, tap="same", their="layer3"), model)
    with pytest.raises(UserError, match="no tap 'layer9'"):
        prepared(world, method_of(world, tap="layer9", their="layer3"))


# trained


def trained(world, *methods, settings=None, teacher=None, **options) -> Model:
    built = {**build_methods(["ce"]), **{f"layer{number}": method for number, method in enumerate(methods)}}
    asked = teacher or world[1]
    return train(student(), built, world[0], Training(**{**SETTINGS, **(settings or {})}), teacher=asked, **options)


def test_the_finished_student_needs_no_teacher_and_no_label(world):
    model = trained(world, method_of(world), settings={"epochs": 1})
    images = torch.rand(2, 3, 16, 16)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = model

        def forward(self, images):
            return self.student.logits(images)

    exported = torch.export.export(Alone(), (images,))
    assert torch.allclose(exported.module()(images), model.logits(images), atol=1e-6)
    assert not [name for name in exported.state_dict if "centres" in name or "table" in name]


def test_a_student_is_saved_with_its_layer_and_is_the_same_to_the_last_bit(world, tmp_path):
    model = trained(world, method_of(world, alpha=0.3), method_of(world, 2), settings={"epochs": 1})
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(again.logits(images), model.logits(images))
    assert again.parts["kd_layer"].alpha.item() == pytest.approx(0.3)
    assert again.bare_state().keys() == model.bare_state().keys()
    assert not [key for key in again.bare_state() if "centres" in key or "table" in key or "alpha" in key]


def test_a_released_layer_leaves_the_plain_student(world):
    plain = student()
    model = trained(world, method_of(world, release=True), method_of(world, 2, release=True))
    assert parameters(model) == parameters(plain)
    assert model.bare_state().keys() == plain.bare_state().keys()
    assert not model.inserted
    images = torch.rand(2, 3, 16, 16)
    alone = student()
    alone.load_bare_state(model.bare_state())
    assert torch.equal(alone.eval().logits(images), model.logits(images))


def test_the_share_of_a_released_layer_falls_to_nothing_and_validation_is_without_it(world):
    method = method_of(world, alpha=0.8, release=True)
    model, given, answer = prepared(world, method)
    part, feature = model.parts["kd_layer"], torch.randn(4, 64, 4, 4)
    added = []
    for progress in (0.0, 0.25, 1.0):
        method.transform(given.replaced(progress=progress), answer)
        assert part.alpha.item() == pytest.approx(0.8 * (1 - progress))
        added.append((part.train()(feature, {}) - feature).abs().mean().item())
    assert added[1] == pytest.approx(0.75 * added[0], rel=1e-4)
    assert added[2] == 0
    method.transform(given.replaced(progress=0.0), answer)
    assert torch.equal(part.eval()(feature, {}), feature)
    stays = method_of(world, alpha=0.8)
    model, given, answer = prepared(world, stays)
    stays.transform(given.replaced(progress=1.0), answer)
    assert model.parts["kd_layer"].alpha.item() == pytest.approx(0.8)


def test_weight_zero_trains_the_same_layer_untaught(world):
    (control,) = build_methods([f"kd_layer:tap=layer3,weight=0,codebook={world[2][1, 'layer3']}"]).values()
    given = batch(world)
    answer = world[1](given, control.needs)
    objective = Objective(student(), {**build_methods(["ce"]), "kd_layer": control})
    objective.prepare(given, answer)
    terms = objective(given, answer)
    assert terms["kd_layer"].item() == 0
    sum(terms.values()).backward()
    grads = {name: value.grad for name, value in objective.student.parts["kd_layer"].named_parameters()}
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads.values()), grads.keys()
    taught = method_of(world)
    other = Objective(student(), {**build_methods(["ce"]), "kd_layer": taught})
    other.prepare(given, answer)
    assert parameters(other.student) == parameters(objective.student)


def test_nothing_of_the_codebook_is_in_a_checkpoint(world):
    objective = Objective(student(), {"kd_layer": method_of(world, 2)})
    given = batch(world)
    before = {f"student.{key}" for key in objective.student.state_dict()}
    objective.prepare(given, world[1](given, objective.needs))
    assert {key.partition(".parts.")[0] for key in objective.state_dict().keys() - before} == {"student"}


def test_training_goes_on_where_it_was_stopped(world, tmp_path):
    settings = {"select": "last"}

    def failing(batch, needs):
        assert batch.progress < 0.6, "the power is gone"
        return world[1](batch, needs)

    whole = trained(world, method_of(world), settings=settings)
    with pytest.raises(AssertionError, match="the power is gone"):
        trained(world, method_of(world), settings=settings, folder=tmp_path, teacher=failing)
    again = trained(world, method_of(world), settings=settings, folder=tmp_path)
    for key, value in whole.bare_state().items():
        assert torch.equal(value, again.bare_state()[key]), key


def test_templates_are_maps(world):
    model, given, _ = prepared(world, method_of(world))
    model.eval()
    explainer = EXPLAINERS.build("channel:tap=kd_layer.scores,number=3")
    found = explainer(model, given.images).maps
    scores = model(given.images).features["kd_layer.scores"]
    assert found.shape == (6, 4, 4)
    assert torch.allclose(found, scores[:, 3], atol=1e-6)
