"""Maps are shown as the formulas say, in the images that are drawn and no others, and stand where the image stands."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from distilens.core import Answer, Batch, Model, Objective, Teacher
from distilens.data import from_arrays, load
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.measure import parameters
from distilens.methods import build_methods
from distilens.methods.ig_overlay import IGOverlay, sharpen_maps
from distilens.models import build_model
from distilens.teachers import LiveTeacher, StoredTeacher
from distilens.teachers.needs import Need
from distilens.training.loop import train
from distilens.training.settings import Training

CLASSES = tuple("abcd")
MODES = ["blend", "highlight", "blur_rest", "channel"]


def batch(count: int = 6, side: int = 8, **changes) -> Batch:
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))
    return Batch(images, torch.zeros(count, dtype=torch.long), torch.arange(count), **changes)


def student(name: str = "resnet8", side: int = 8) -> Model:
    torch.manual_seed(0)
    return build_model(name, CLASSES, (side, side)).eval()


def shown(method: IGOverlay, given: Batch, maps: Tensor) -> Batch:
    return method.transform(given, Answer(maps={method.needs[0]: maps}))


def light(maps: Tensor, power: float = 1.0) -> Tensor:
    """The paper's own order: the power of the raw values, then min and max; in float64."""
    raw = maps.double().abs() ** power
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    return ((raw - low) / (high - low))[:, None].float()


FORMULAS = {
    "blend": lambda x, m, a: (1 - a) * x + a * m,
    "highlight": lambda x, m, a: x * (1 - a + a * m),
    "blur_rest": lambda x, m, a: (1 - a + a * m) * x + (a - a * m) * gaussian_blur(x, [5, 5]),
}


@pytest.mark.parametrize("mode", FORMULAS)
@pytest.mark.parametrize("blend", [0.0, 0.3, 1.0])
def test_a_pixel_is_what_the_formula_says(mode, blend):
    method, given = IGOverlay(mode=mode, p=1, blend=blend, exponent=(2, 2)), batch()
    maps = torch.randn(6, 8, 8) * torch.logspace(-3, 3, 6)[:, None, None]  # signed, and of any scale
    seen = shown(method, given, maps)
    assert torch.allclose(seen.view, FORMULAS[mode](given.images, light(maps, 2), blend), atol=1e-5)
    assert torch.equal(seen.images, given.images)  # what teachers see is never changed
    assert torch.equal(seen.view, given.images) == (blend == 0)


def test_it_changes_what_is_there_already():
    method, given = IGOverlay(mode="highlight", p=1), batch()
    before = given.replaced(view=given.images * 0.5)
    maps = torch.rand(6, 8, 8)
    assert torch.allclose(shown(method, before, maps).view, shown(method, given, maps).view * 0.5)


def test_the_power_is_drawn_log_uniformly_for_each_image_and_epoch():
    method = IGOverlay(p=1, blend=1, exponent=(0.5, 4))
    maps = torch.tensor([[0.0, 0.5], [0.5, 1.0]]).expand(500, 2, 2)
    powers = []
    for epoch in (0, 1):
        middle = shown(method, batch(500, 2, epoch=epoch), maps).view[:, 0, 0, 1]  # 0.5^e
        powers.append(-middle.log2())
    found = torch.stack(powers)
    assert not torch.allclose(found[0], found[1])
    assert found.min() >= 0.5 - 1e-5
    assert found.max() <= 4 + 1e-5
    assert (found < math.sqrt(0.5 * 4)).float().mean().item() == pytest.approx(
        0.5, abs=0.05
    )  # the range's geometric middle


def test_a_power_neither_overflows_nor_vanishes():
    maps = torch.rand(3, 4, 4)
    expected = sharpen_maps(maps, torch.full((3,), 2.0))
    for scale in (1e-30, 1e30):
        assert torch.allclose(sharpen_maps(maps * scale, torch.full((3,), 2.0)), expected, atol=1e-5)


def test_a_coarse_map_is_brought_to_the_image():
    method, given = IGOverlay(mode="highlight", p=1), batch()
    coarse = torch.zeros(6, 2, 2)
    coarse[:, 0, 0] = 1
    factor = shown(method, given, coarse).view / given.images
    assert torch.allclose(factor[:, :, 0, 0], torch.ones(6, 3))
    assert torch.allclose(factor[:, :, 7, 7], torch.full((6, 3), 0.5))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0.0, 3.0, math.nan])
def test_a_map_that_says_nothing_leaves_its_image_as_it_is(mode, value):
    method, given = IGOverlay(mode=mode, p=0.999), batch()
    maps = torch.rand(6, 8, 8)
    maps[2] = value
    seen = shown(method, given, maps)
    changed = (
        (seen.view != given.images).flatten(1).any(1) if mode != "channel" else seen.inputs["map_channel"].any((1, 2))
    )
    assert changed.tolist() == [True, True, False, True, True, True]
    assert seen.view.isfinite().all()
    assert torch.equal(seen.view[2], given.images[2])


@pytest.mark.parametrize("mode", MODES)
def test_only_the_images_drawn_are_changed_others_in_each_epoch(mode):
    method, changed = IGOverlay(mode=mode, p=0.3), []
    maps = torch.rand(64, 4, 4)
    for epoch in range(20):
        given = batch(64, epoch=epoch)
        seen = shown(method, given, maps)
        if mode == "channel":
            assert torch.equal(seen.view, given.images)
        else:
            assert not seen.inputs
        found = seen.inputs["map_channel"] if mode == "channel" else seen.view - given.images
        changed.append(found.flatten(1).any(1))
        assert torch.equal(changed[-1], given.draw("ig_overlay")[:, 0] < 0.3)
    assert torch.stack(changed).float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert not torch.equal(changed[0], changed[1])


def test_maps_are_made_of_the_images_drawn_alone():
    asked = []

    class Counting(LiveTeacher):
        def explainer(self, part):
            explainer, model = super().explainer(part)
            return lambda model, images, target: asked.append(len(images)) or explainer(model, images, target), model

    given, teacher = batch(64), Counting(student())
    for part in ("ig_overlay:explainer=gradcam,p=0.25", "ig_overlay:explainer=gradcam,p=0.25,anneal=true"):
        (method,) = build_methods([part]).values()
        seen = method.transform(given, teacher(given, method.needs))
        drawn = given.draw("ig_overlay")[:, 0] < 0.25
        assert asked.pop() == int(drawn.sum()) == len(Need.parse(method.needs[0]).rows(given))
        assert torch.equal((seen.view != given.images).flatten(1).any(1), drawn)


def test_what_it_asks_for():
    given = {
        "ig_overlay": "maps:ig:steps=50,channels=size,of=canonical,target=top1,share=0.1,draw=ig_overlay",
        "ig_overlay:target=label,p=1": "maps:ig:steps=50,channels=size,of=canonical,target=label",
        "ig_overlay:explainer=gradcam,p=0.5": "maps:gradcam:of=canonical,target=top1,share=0.5,draw=ig_overlay",
    }
    for part, need in given.items():
        (method,) = build_methods([part]).values()
        assert method.needs == (need,)
        Need.parse(need)


def test_annealing_ends_with_the_images_as_they_are():
    method, maps, shares = IGOverlay(p=1, anneal=True), torch.rand(400, 4, 4), []
    before = torch.ones(400, dtype=torch.bool)
    for progress in (0.0, 0.25, 0.75, 1.0):
        given = batch(400, progress=progress)
        changed = (shown(method, given, maps).view != given.images).flatten(1).any(1)
        assert not (changed & ~before).any()  # the same draws: fewer of them
        before = changed
        shares.append(changed.float().mean().item())
    assert shares == pytest.approx([1, 0.75, 0.25, 0], abs=0.06)
    assert shares[-1] == 0


class Green(Teacher):
    """A teacher whose map is the green channel of the untransformed image, from 0 to 255."""

    precision = "float32"
    identity = {"teacher": "green"}

    def __init__(self):
        self.asked = 0

    def __call__(self, seen, needs):
        self.asked += len(seen)
        (need,) = needs
        maps = (seen.canonical[:, 1] * 255).round()
        return Answer(maps={need: maps}, targets={need: seen.labels})


@pytest.mark.parametrize("maps", ["float16", "uint8"])
@pytest.mark.parametrize("p", [1.0, 0.5])
def test_a_stored_map_stands_exactly_where_its_image_stands(tmp_path, maps, p):
    """The paper's code reads another image's map, and does not move it with crop and flip."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
    pixels[:, 6, 6:8, 1] = [0, 255]  # in every crop: so that from 0 to 1 changes nothing
    data = from_arrays(pixels, np.arange(40) % 4)
    teacher = StoredTeacher(tmp_path, Green(), maps=maps)
    method = IGOverlay(explainer="gradcam", p=p, blend=1, exponent=(1, 1))
    batches = Batches(data.train, 8, augment=AUGMENTS.build("crop:padding=3,flip=random"), seed=1)
    moved = 0
    for epoch in (0, 1, 2):
        for given in batches.epoch(epoch):
            seen = method.transform(given, teacher(given, method.needs))
            drawn = given.draw("ig_overlay")[:, 0] < p
            expected = torch.where(drawn[:, None, None, None], given.images[:, 1:2], given.images)
            if maps == "float16":
                assert torch.equal(seen.view, expected)
            else:  # 256 levels between 0 and 255, to float32's rounding
                assert torch.allclose(seen.view, expected, atol=1e-6, rtol=0)
            moved += int((given.images != given.canonical).flatten(1).any(1).sum())
    assert moved > 50  # the crops are crops
    asked = teacher.teacher.asked
    for given in batches.epoch(0):
        teacher(given, method.needs)
    assert teacher.teacher.asked == asked  # stored once, for all variants


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2", "timm:resnet18"])
def test_the_channel_is_a_fourth_channel_of_the_first_convolution(name):
    given, net = batch(side=32), student(name, 32)
    method = IGOverlay(mode="channel", p=0.9, exponent=(1, 1))
    method.prepare(net, given, Answer())
    convolution = next(module for module in net.network.modules() if isinstance(module, nn.Conv2d))
    part, maps = net.parts["ig_overlay"], torch.rand(6, 32, 32)
    seen = shown(method, given, maps)
    assert torch.equal(net(seen.view, seen.inputs).logits, net.logits(given.images))  # it starts at zero
    nn.init.normal_(part.conv.weight)
    kept = []
    handle = convolution.register_forward_hook(lambda module, inputs, output: kept.append((inputs[0], output)))
    net(seen.view, seen.inputs)
    handle.remove()
    (pixels, found) = kept[0]
    whole = torch.cat([convolution.weight, part.conv.weight], 1)
    both = torch.cat([pixels, seen.inputs["map_channel"][:, None]], 1)
    expected = nn.functional.conv2d(both, whole, None, convolution.stride, convolution.padding)
    assert torch.allclose(found, expected, atol=1e-4)
    drawn = given.draw("ig_overlay")[:, 0] < 0.9
    assert torch.equal(seen.inputs["map_channel"].any((1, 2)), drawn)


@pytest.mark.parametrize(("side", "size"), [(8, 16), (16, 8)])
def test_a_channel_of_another_size_is_resized_as_images_are(side, size):
    given, net = batch(32, side=side), student(side=size)
    method = IGOverlay(mode="channel", p=0.9, exponent=(1, 1))
    method.prepare(net, given, Answer())
    maps = torch.rand(32, side, side)
    seen = shown(method, given, maps).inputs["map_channel"]
    drawn = given.draw("ig_overlay")[:, 0] < 0.9
    resized = net.prepare(light(maps).expand(-1, 3, -1, -1)) * net.std + net.mean
    assert torch.allclose(seen[drawn], resized[drawn, 0], atol=1e-5)
    assert not seen[~drawn].any()


def test_the_channel_learns_and_is_gone_in_the_end():
    given, net = batch(side=16), student(side=16)
    plain = parameters(net)
    teacher = LiveTeacher(student("resnet14", 16))
    made = Objective(net.train(), build_methods(["ce", "ig_overlay:explainer=gradcam,p=0.7,mode=channel"]))
    answer = teacher(given, made.needs)
    made.prepare(given, answer)
    sum(made(given, answer).values()).backward()
    part = net.parts["ig_overlay"]
    assert part.conv.weight.grad.any()
    assert net.network.conv1.weight.grad.any()
    with torch.no_grad():
        part.conv.weight.sub_(part.conv.weight.grad)
    seen = made.methods["ig_overlay"].transform(given, answer)
    net.eval()
    assert not torch.allclose(net(seen.view, seen.inputs).logits, net.logits(given.images))
    alone = net.logits(given.images)
    finished = made.finish()
    assert torch.equal(finished.logits(given.images), alone)
    assert parameters(finished) == plain
    assert not finished.parts
    bare = student(side=16)
    bare.load_bare_state(finished.bare_state())  # the plain network's keys, and no others
    assert torch.equal(bare.logits(given.images), alone)


def test_a_step_in_which_no_image_is_drawn_is_a_step():
    given, net = batch(4, side=16), student(side=16)
    for mode in MODES:
        method = IGOverlay(mode=mode, p=1e-6)
        method.prepare(net, given, Answer())
        for maps in (torch.zeros(4, 2, 2), torch.zeros(4, 16, 16)):
            seen = shown(method, given, maps)
            assert torch.equal(seen.view, given.images)
    assert torch.equal(seen.inputs["map_channel"], torch.zeros(4, 16, 16))  # the same graph in every process


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("ig_overlay:mode=channel,p=1", "never have seen an image alone. Give it anneal=true, or p below 1"),
        ("ig_overlay:exponent=[2,1]", "a at most b; given 2 and 1"),
        ("ig_overlay:exponent=[0,1]", "exponent"),
        ("ig_overlay:p=0", "'p'"),
        ("ig_overlay:p=1.1", "'p'"),
        ("ig_overlay:blend=2", "blend"),
        ("ig_overlay:mode=dim", "mode"),
    ],
)
def test_what_cannot_be_says_so(part, said):
    with pytest.raises(UserError, match=said):
        build_methods([part])


def test_a_network_that_begins_with_no_convolution_says_so():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    late = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for network in (flat, late):
        with pytest.raises(UserError, match="needs a network that begins with a convolution"):
            IGOverlay(mode="channel").prepare(Model(network, CLASSES, size=(8, 8)), batch(), Answer())


def test_a_padding_by_name_is_the_same_padding():
    network = nn.Sequential(nn.Conv2d(3, 4, 5, padding="same", dilation=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = Model(network, CLASSES, size=(16, 16))
    IGOverlay(mode="channel").prepare(net, batch(side=16), Answer())
    assert net.parts["ig_overlay"].conv.padding == (4, 4)

    class Lopsided(nn.Conv2d):
        """As timm's `Conv2dSame`: it pads for itself."""

        def forward(self, images):
            return super().forward(nn.functional.pad(images, (0, 1, 0, 1)))

    lopsided = nn.Sequential(Lopsided(3, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="with a padding that is known"):
        IGOverlay(mode="channel").prepare(Model(lopsided, CLASSES, size=(16, 16)), batch(side=16), Answer())


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[] if mode == "channel" else [pytest.mark.slow]) for mode in MODES]
)
def test_a_run_trains_with_it(mode, tmp_path):
    data = load("shapes:limit=40,size=16", tmp_path)
    teacher = LiveTeacher(build_model("resnet8", data.classes, data.size))
    net = build_model("resnet8", data.classes, data.size)
    part = f"ig_overlay:explainer=[ig:steps=2,channels=size],p=0.4,mode={mode}"
    settings = Training(epochs=1, batch_size=12, precision="float32")
    net = train(net, build_methods(["ce", part]), data, settings, teacher=teacher)
    assert not net.parts
    assert net.logits(torch.rand(2, 3, 32, 32)).isfinite().all()
