"""Ideas add up: any list of methods trains, whatever is in it, and what cannot be says so before."""

import copy
import itertools
import random

import pytest
import torch
from torch import nn

from distilens.core import Batch, Model, Objective
from distilens.data import load
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.methods import METHODS, build_methods, codebook
from distilens.methods.labels import DENSE
from distilens.models import build_model
from distilens.runs.recipe_file import make_recipe
from distilens.teachers import LiveTeacher

FIRST = "kd_layer:templates=6,codebook=FIRST"
OVERLAY = "ig_overlay:p=0.5,explainer=[ig:steps=2]"

VARIATIONS = {
    "ce": ["ce", "ce:smoothing=0.1"],
    "kd": ["kd", "kd:standardise=true", "kd:top=2"],
    "map_match": [
        "map_match",
        "map_match:explainer=cam,classes=all,pool=2,distance=at",
        "map_match:explainer=gradcam++,of=canonical,distance=kl",
        "map_match:classes=all,every=2",
    ],
    "at": ["at", "at:taps=[last]"],
    "ig_overlay": [f"{OVERLAY},mode={mode}" for mode in ("blend", "highlight", "blur_rest", "channel")],
    "cam_fusion": [f"cam_fusion:deploy={deploy}" for deploy in ("null", "self", "teacher")],
    "dkd": ["dkd:warmup=0"],
    "dist": ["dist"],
    "mlkd": ["mlkd"],
    "r2kd": ["r2kd", "r2kd:pruned=0,rank=2"],
    "osakd": ["osakd"],
    "fitnet": ["fitnet", "fitnet:tap=last-1"],
    "vid": ["vid"],
    "nst": ["nst"],
    "reviewkd": ["reviewkd:warmup=0"],
    "rtk": ["rtk:weight=10"],
    "simkd": ["simkd"],
    "cwd": ["cwd:tap=last"],
    "pairwise": ["pairwise"],
    "mgd": ["mgd"],
    "sp": ["sp:weight=100"],
    "rkd": ["rkd", "rkd:tap=last-1"],
    "pkt": ["pkt:weight=1000"],
    "crd": ["crd:width=8"],
    "opdf": ["opdf"],
    "powerprop": ["powerprop"],
    "kd_layer": [FIRST, "kd_layer:stage=2,subclasses=2,codebook=SECOND", f"{FIRST},release=true"],
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A teacher, its codebooks, and a batch of moved images that are sometimes without a label."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("combinations")
    data = load("shapes:train=64,test=40,shots=4,size=16", folder)
    teacher = LiveTeacher(build_model("resnet14", data.classes, data.size))
    for name, options in (("FIRST", {"stage": 1, "templates": 6}), ("SECOND", {"stage": 2, "subclasses": 2})):
        tap = "last" if name == "FIRST" else "last-1"
        codebook.make_codebook(teacher, data, tap=tap, **options).save(folder / name)
    batch = next(Batches(data.train, 6, augment=AUGMENTS.build("crop:padding=2")).epoch(0))
    return (
        folder,
        teacher,
        batch.replaced(targets=batch.labels.clone().index_fill(0, torch.tensor([2]), -1)),
        data.classes,
    )


def student(classes) -> Model:
    torch.manual_seed(0)
    return build_model("resnet8", classes, (16, 16)).train()


def step(parts: list[str], world) -> tuple[Objective, dict[str, torch.Tensor]]:
    folder, teacher, batch, classes = world
    parts = [part.replace("FIRST", str(folder / "FIRST")).replace("SECOND", str(folder / "SECOND")) for part in parts]
    objective = Objective(student(classes), build_methods(parts))
    objective.prepare(batch, teacher(batch, objective.needs))
    return objective, objective(batch, teacher(batch, objective.needs))


def check(parts: list[str], world) -> Objective:
    teacher = world[1]
    before = [value.clone() for value in teacher.model.state_dict().values()]
    objective, terms = step(parts, world)
    assert all(term.isfinite() and term.ndim == 0 for term in terms.values()), terms
    with_loss = [
        name for name, method in objective.terms().items() if not Spec.parse(name).name.startswith("ig_overlay")
    ]
    assert set(terms) >= set(with_loss) - {"cam_fusion", "opdf", "powerprop"}
    sum(terms.values()).backward()
    first = [parameter.grad for parameter in objective.student.network.conv1.parameters()]
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in first)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.model.state_dict().values(), strict=True))
    assert not [key for key in objective.state_dict() if "teacher" in key]
    return objective


def test_every_method_is_among_the_variations():
    dense = {name for name in METHODS if build_methods([name])[name].tasks == DENSE}
    first = {"spirit"}  # it works alone, before the others: test_spirit.py
    assert set(VARIATIONS) == set(METHODS) - dense - first | {"cwd"}  # with tap= it compares features


PAIRS = [
    (first, second)
    for a, b in itertools.combinations(VARIATIONS, 2)
    for first, second in itertools.product(VARIATIONS[a], VARIATIONS[b])
]


class Bare(nn.Module):
    """A model as it is exported: from pixels to a tensor of logits."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.logits(images)


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The forms of finished students that were exported: the methods that only add a term leave the same one."""
    return set()


@pytest.mark.parametrize("part", [part for parts in VARIATIONS.values() for part in parts])
def test_every_method_trains_beside_the_labels_and_is_exported_without_teacher_and_label(part, world, exported):
    objective = check([part] if part.startswith("ce") else ["ce", part], world)
    if "deploy=teacher" in part:
        return
    finished = objective.finish().eval()
    hooks = [name for name, module in finished.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    form = f"{finished} {hooks} {part if hooks else ''}"
    if form in exported:
        return
    images = torch.rand(2, 3, 16, 16)
    program = torch.export.export(Bare(finished), (images,))
    assert torch.allclose(program.module()(images), finished.logits(images), atol=1e-5)
    exported.add(form)


SHARES = [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, 40))]
"""A fortieth is quick; each pair and each list is in one of the forty."""


@pytest.mark.parametrize("part", SHARES)
def test_all_pairs_train(part, world):
    for first, second in PAIRS[part::40]:
        check([first, second] if first.startswith("ce") else ["ce", first, second], world)


@pytest.mark.parametrize("seed", SHARES)
@pytest.mark.slow
def test_two_hundred_random_lists_train(seed, world):
    chance = random.Random(seed)
    for _ in range(5):
        names = chance.sample(list(VARIATIONS), chance.randint(3, len(VARIATIONS)))
        parts = [chance.choice(VARIATIONS[name]) for name in names if name != "ce"]
        if chance.random() < 0.5:
            parts.append("map_match:explainer=attention,distance=at,as=again")
        chance.shuffle(parts)
        check(["ce", *parts], world)


def test_the_order_of_methods_that_only_add_a_term_makes_no_difference(world):
    parts = ["ce", "kd", "map_match", "at", FIRST]
    one, other = step(parts, world)[1], step(parts[::-1], world)[1]
    assert {name: value.item() for name, value in one.items()} == pytest.approx(
        {n: v.item() for n, v in other.items()}, rel=1e-4
    )


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["ce", "kd", "kd"], "two terms are called 'kd'"),
        (["ig_overlay"], "have no loss"),
        (["map_match:every=2"], "have no loss at some step"),
        (["ce", "map_match:weight=-1"], "weight"),
        (["ce", "at:weight=nan"], "weight"),
        (["ce", "map_match:explainer=occlusion"], "cannot train through the maps of occlusion"),
    ],
)
def test_lists_that_cannot_be_are_refused_in_the_recipe(methods, said):
    content = {"data": "shapes", "teacher": {"model": "resnet14"}, "student": {"model": "resnet8", "methods": methods}}
    with pytest.raises(UserError, match=said):
        make_recipe(content)


@pytest.mark.parametrize("part", ["map_match", "map_match:explainer=gradcam++"])
def test_second_derivatives_cannot_be_compiled_and_the_recipe_says_so(part):
    content = {
        "data": "shapes",
        "teacher": {"model": "resnet14"},
        "student": {"model": "resnet8", "methods": ["ce", part]},
        "train": {"compile": True},
    }
    with pytest.raises(UserError, match="compile=true cannot be used with map_match"):
        make_recipe(content)
    content["student"]["methods"] = ["ce", "map_match:explainer=cam,classes=all", "at"]
    assert make_recipe(content).train.compile


@pytest.mark.parametrize("part", ["map_match:of=canonical", "ig_overlay:p=1,explainer=gradcam"])
def test_maps_of_one_image_do_not_go_with_mixed_images(part, world):
    _, teacher, _, classes = world
    data = load("shapes:train=64,test=40,shots=4,size=16", world[0])
    mixed = next(Batches(data.train, 6, augment=AUGMENTS.build("crop:mix=mixup")).epoch(0))
    objective = Objective(student(classes), build_methods(["ce", part]))
    with pytest.raises(UserError, match="mix= shows two"):
        teacher(mixed, objective.needs)


@pytest.mark.parametrize("part", ["cam_fusion", "ig_overlay:mode=channel"])
def test_a_part_stands_in_a_student_once(part, world):
    again = f"{part}{',' if ':' in part else ':'}as=again"
    with pytest.raises(UserError, match="the name is in use"):
        check(["ce", part, again], world)


def test_a_student_may_have_several_kd_layers(world):
    check(["ce", FIRST, "kd_layer:stage=2,subclasses=2,codebook=SECOND,as=again"], world)


def test_nothing_of_the_batch_is_changed(world):
    _, teacher, batch, classes = world
    before = copy.deepcopy({name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)})
    parts = ["ce", "ig_overlay:p=1,explainer=gradcam", "cam_fusion", "map_match"]
    objective = Objective(student(classes), build_methods(parts))
    answer = teacher(batch, objective.needs)
    objective.prepare(batch, answer)
    objective(batch, answer)
    assert isinstance(batch, Batch)
    assert all(torch.equal(getattr(batch, name), value) for name, value in before.items())
