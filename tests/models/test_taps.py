"""Taps read any model without a trace, whatever it does to its features, and parts stand behind them."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from distilens.core import Model, Output
from distilens.explain.gradcam import GradCAM
from distilens.foundation.errors import UserError
from distilens.measure import latency, macs
from distilens.models import build_model, taps
from distilens.teachers import LiveTeacher

CLASSES = tuple("abcd")


def images(size: int = 32, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def resnet(name: str = "resnet8") -> Model:
    torch.manual_seed(0)
    return build_model(name, CLASSES, (32, 32))


class Scale(nn.Module):
    """A part with a module of its own."""

    def __init__(self, factor: float):
        super().__init__()
        self.inner, self.factor = nn.Identity(), factor

    def forward(self, feature, inputs):
        return self.inner(feature * self.factor)


class Needing(nn.Module):
    """A part that cannot do without its input."""

    def forward(self, feature, inputs):
        return feature * inputs["gain"].view(-1, 1, 1, 1) if inputs else feature


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_taps_of_models_that_work_in_place_give_the_values_and_gradients_of_a_twin_that_does_not(name):
    net = build_model(name, CLASSES, (32, 32)).eval()
    twin = copy.deepcopy(net)
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    paths = ["bn1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2", "layer1.0", "layer2"]
    found = []
    for model in (net, twin):
        for path in paths:
            model.tap(path)
        pixels = images().requires_grad_()
        output = model(pixels)
        loss = output.logits[:, 0].sum() + sum(output.features[path].pow(2).mean() for path in paths)
        found.append([output.logits, *(output.features[path] for path in paths), *torch.autograd.grad(loss, pixels)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert (found[0][1] < 0).any()  # before the ReLU, indeed


def test_a_model_with_many_taps_can_be_copied_and_pickled_at_any_time():
    net = resnet().train()
    for path in ("layer1", "layer2", "last", "input"):
        net.tap(path)  # finding the later ones runs a forward through the earlier ones
    assert all(tap.value is None for tap in net.taps.values())
    next(iter(net.taps.values())).value = net.network.conv1(images())  # a forward that was interrupted
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        twin.eval()
        output = twin(images())
        assert set(output.features) == {"layer1", "layer2", "layer3", "last", "input"}
        assert torch.equal(output.features["input"], images())
        with torch.no_grad():
            twin.network.conv1.weight.zero_()
        assert net.network.conv1.weight.any()


def test_measuring_cost_leaves_nothing_in_the_taps():
    net = resnet()
    net.tap("last")
    for measured in (lambda: macs(net), lambda: latency(net, repeats=2, warm_up=0)):
        measured()
        assert net.taps["last"].value is None


def test_reading_is_for_the_context_alone():
    net = resnet().eval()
    before = [len(module._forward_hooks) for module in net.modules()]
    with net.reading("layer2") as tap:
        net(images())
        assert tap.take().shape == (3, 32, 16, 16)
        with pytest.raises(UserError, match="the tap 'layer2' is empty"):
            tap.take()
    with pytest.raises(ZeroDivisionError), net.reading("layer2"):
        1 / 0  # noqa: B018
    assert [len(module._forward_hooks) for module in net.modules()] == before
    assert net(images()).features == {}


def test_observing_leaves_modes_statistics_gradients_and_randomness():
    net = build_model("timm:mobilenetv3_small_050", CLASSES, (64, 64)).train()
    next(net.network.children()).eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes, random = [module.training for module in net.modules()], torch.get_rng_state()
    versions = [parameter._version for parameter in net.parameters()]
    assert net.tap("last") == "blocks"
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [parameter._version for parameter in net.parameters()] == versions
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


class Tokens(nn.Module):
    """Patches and a class token, which alone is read; the head starts at zero, as torchvision's does."""

    def __init__(self, prefix: int = 1):
        super().__init__()
        self.patches, self.prefix = nn.Conv2d(3, 8, 4, stride=4), prefix
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm1, self.norm2, self.head = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.new_ones(len(tokens), self.prefix, 8), tokens], 1)
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.head(self.norm2(tokens)[:, 0])


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_the_default_tap_of_a_class_token_model_is_where_patches_still_matter_even_with_a_zero_head(prefix):
    net = Model(Tokens(prefix), CLASSES, size=(16, 16))
    assert net.last_tap == "norm1"
    assert not net.network.head.weight.any()
    nn.init.normal_(net.network.head.weight)
    assert GradCAM()(net, images(16)).maps.shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("name", "path", "shape"),
    [
        ("timm:convnext_atto", "norm_pre", (320, 2, 2)),
        ("timm:mobilenetv3_small_050", "blocks", (288, 2, 2)),
        ("timm:swin_tiny_patch4_window7_224,size=64", "norm", (768, 2, 2)),
        ("torchvision:mobilenet_v2", "features", (1280, 2, 2)),
        ("torchvision:vit_b_32,size=64", "encoder.layers.encoder_layer_11.ln_1", (768, 2, 2)),
        ("wrn-16-1", "relu", (64, 16, 16)),
    ],
)
def test_default_taps_of_others_models(name, path, shape):
    net = build_model(name, CLASSES, (64, 64)).eval()
    assert net.tap() == path
    output = net(images(64, 2))
    assert taps.grid(output.features["last"]).shape == (2, *shape)
    assert output.features["last"] is output.features[path]


def test_a_size_that_the_network_cannot_take_is_said():
    said = r"timm:inception_v3 fails on an image of 32×32 pixels: .* If it takes images of another size, give it size="
    with pytest.raises(UserError, match=said):
        build_model("timm:inception_v3", CLASSES, (32, 32)).tap()


def test_grid_reads_channels_first_last_and_tokens():
    feature = torch.rand(2, 6, 4, 4)
    assert torch.equal(taps.grid(feature), feature)
    assert torch.equal(taps.grid(feature.permute(0, 2, 3, 1)), feature)
    tokens = feature.flatten(2).transpose(1, 2)
    for prefix in (0, 1, 2, 5):
        assert torch.equal(taps.grid(torch.cat([torch.rand(2, prefix, 6), tokens], 1)), feature)
    for shape in ((2, 6), (2, 1, 6), (2, 60, 6), (2,)):
        with pytest.raises(UserError, match="has no spatial extent"):
            taps.grid(torch.rand(shape))


def test_a_module_that_is_never_called_or_gives_no_tensor_cannot_be_tapped():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), Two()

        def forward(self, x):
            return self.two(self.used(x))[0].mean((2, 3))

    class Two(nn.Module):
        def forward(self, x):
            return x, x

    net = Model(Odd(), CLASSES, size=(8, 8), name="odd")
    for path in ("unused", "two"):
        with pytest.raises(UserError, match=f"the forward of odd gives no tensor at the tap '{path}'"):
            net.tap(path)
    assert net.taps == {}


@pytest.mark.parametrize("first", ["tap", "part"])
def test_a_tap_reads_the_module_itself_whether_a_part_came_before_or_after(first):
    net = resnet().eval()
    with net.reading("last") as tap:
        net(images())
        plain = tap.take()
    if first == "tap":
        net.tap("last")
    net.insert("last", Scale(0.0), name="part")
    net.tap("last")
    net.tap("part.inner")
    output = net(images())
    assert torch.equal(output.features["last"], plain)
    assert not output.features["part.inner"].any()
    assert torch.allclose(output.logits, net.network.fc.bias.expand(3, -1))  # the head gets what the part made


def test_a_tap_keeps_what_a_part_behind_it_overwrites():
    class Emptying(nn.Module):
        def forward(self, feature, inputs):
            return feature.mul_(0)

    net = resnet().eval()
    net.insert("last", Emptying(), name="part")
    net.tap("last")
    assert net(images()).features["last"].any()


def test_a_part_that_needs_its_input_does_not_stop_probing_after_a_batch_of_another_size():
    net = resnet()
    net.insert("layer2", Needing(), name="part")
    net(images(), {"gain": torch.ones(3)})
    assert net.tap("last") == "layer3"  # the probe is one image, the last batch had three
    assert macs(net) > 0
    with pytest.raises(UserError, match="'part' cannot be inserted: the name is in use"):
        net.insert("layer2", Needing(), name="part")


def test_bare_state_holds_network_and_parts_and_comes_back():
    net, other = resnet(), resnet()
    for model in (net, other):
        model.insert("last", BehindLinear(), name="kd_layer")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    state = net.bare_state()
    assert {key for key in state if key.startswith("parts.")} == {
        "parts.kd_layer.layer.weight",
        "parts.kd_layer.layer.bias",
    }
    assert {key for key in state if not key.startswith("parts.")} == set(resnet().network.state_dict())
    other.load_bare_state(state)
    assert torch.equal(other.eval().logits(images()), net.eval().logits(images()))


class BehindLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(64, 64, 1)

    def forward(self, feature, inputs):
        return self.layer(feature)


def test_frozen_modules_stay_in_eval_mode_and_the_head_does_not():
    net = resnet()
    net.freeze(but=["fc"])
    net.train()
    assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == [
        "network.fc.weight",
        "network.fc.bias",
    ]
    assert net.network.fc.training
    assert not net.network.bn1.training
    twin = copy.deepcopy(net).eval().train()
    assert not twin.network.bn1.training
    before = net.network.bn1.running_mean.clone()
    net(images())
    assert torch.equal(net.network.bn1.running_mean, before)


def test_a_teachers_tap_under_two_names_is_one_feature():
    teacher = LiveTeacher(resnet())
    net = teacher.model
    net.tap("last"), net.tap("layer3")
    output = net(images())
    assert isinstance(output, Output)
    assert output.features["last"] is output.features["layer3"]
    assert sum(len(module._forward_hooks) for module in net.modules()) == 1


COMPILED = """
import torch
from distilens.models import build_model

net = build_model("torchvision:resnet18", "abcd", (32, 32)).eval()  # in-place ReLUs
net.tap("last"), net.tap("layer1.0.bn1")
images = torch.rand(3, 3, 32, 32)
expected = net(images)
compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
for _ in range(2):
    found = compiled(images)
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    for path, feature in expected.features.items():
        assert torch.allclose(found.features[path], feature, atol=1e-5), path
assert net.taps["last"].value is None
found.features["last"].sum().backward()
assert net.network.conv1.weight.grad.any()
"""


@pytest.mark.slow
def test_a_tapped_model_compiles_into_one_graph_and_gives_the_same():
    """In a process of its own: the checks of shapes in annotations, which tests add, are not for a compiler."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_last_tap_of_a_hugging_face_vit_is_the_input_of_its_last_attention():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    network = transformers.ViTForImageClassification(config)
    found = Model(network, ("a", "b"), size=(32, 32)).eval().last_tap
    assert found.endswith("1.layernorm_before")  # not a projection inside the attention, though those have its shape


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("resnet8", 32, ["layer3", "layer2", "layer1"]),
        ("wrn-16-1", 32, None),
        ("mobilenetv2", 32, None),
        ("timm:resnet18", 64, ["layer4", "layer3", "layer2", "layer1"]),
        ("vgg8", 32, None),
    ],
)
def test_the_taps_before_the_last_are_of_ever_finer_grids(name, size, found):
    torch.manual_seed(0)
    net = build_model(name, CLASSES, (size, size)).eval()
    names = ["last", "last-1", "last-2"]
    paths = [net.tap(path) for path in names]
    features = net(images(size)).features
    places = [features[path].shape[2] for path in names]
    assert places == sorted(set(places)), (paths, places)
    assert all(path.count(".") <= 1 for path in paths), paths  # results of blocks or stages, not of what is inside them
    if found:
        assert paths == found[:3]
    assert all(torch.equal(features[path], features[own]) for path, own in zip(names, paths, strict=True))


def test_a_tap_finer_than_all_says_how_many_there_are():
    with pytest.raises(UserError, match=r"no tap 'last-9': this model has 3 sizes of feature maps, so last to last-2"):
        resnet().tap("last-9")


def test_a_part_can_stand_behind_the_images_and_be_taken_out_again():
    net = resnet().eval()
    plain = net.logits(images())
    net.tap("layer3")
    net.insert("input", Scale(0.5), name="dimmer")
    net.tap("dimmer.inner")
    assert torch.allclose(net.logits(images()), resnet().eval().logits(images() * 0.5), atol=1e-5)
    net.remove("dimmer")
    assert torch.equal(net.logits(images()), plain)
    assert list(net.taps) == ["layer3"]
    assert not net.parts


def test_the_last_feature_map_has_a_gradient_at_more_than_one_place():
    feature = torch.rand(1, 2, 4, 4)
    assert not taps.has_gradient(feature.mean((2, 3)), feature, (4, 4)), "it is not part of a graph"
    feature.requires_grad_()
    assert taps.has_gradient(feature.mean((2, 3)), feature, (4, 4))
    assert not taps.has_gradient(feature[:, :, 0, 0], feature, (4, 4)), "only one place counts"
    assert not taps.has_gradient(torch.ones(1, 2, requires_grad=True), feature, (4, 4))
