"""A prepared model is the same function, computed with less: nothing is folded that something else reads."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.foundation.errors import UserError
from distilens.models.folding import prepare
from networks import built

CLASSES = tuple("abcd")
TARGET = torch.tensor([0, 1, 2, 3])
NETWORKS = {  # batch norms in it, and how many of them stand behind a convolution
    "resnet8": (9, 9),
    "vgg8": (5, 5),
    "mobilenetv2": (52, 52),
    "wrn-16-1": (13, 6),  # activation first: half of them stand before
    "timm:resnet10t": (14, 14),
    "timm:mobilenetv2_100": (52, 52),  # timm's norm with an activation in it
    "timm:tf_mobilenetv3_small_minimal_100": (34, 34),  # and its convolution with padding as TensorFlow's
    "torchvision:resnet18": (20, 20),
}


def images(size: int = 32) -> Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def settled(net: Model) -> Model:
    """Statistics, scales and shifts of a trained network, more or less."""
    source = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.7, 1.3),
                (module.bias.data, -0.2, 0.2),
            ):
                value.uniform_(low, high, generator=source)
    return net.eval()


def model(name: str) -> Model:
    net = settled(built(name))
    if "mobilenet" in name:  # untrained, its logits are next to nothing
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    return net


def norms(net: Model) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def close(ours: Tensor, theirs: Tensor, within: float = 1e-5) -> bool:
    assert theirs.abs().max() > 1e-4
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= within * theirs.abs().max())


def taken(net: Model) -> dict[str, Tensor]:
    """The output of every module that gives a feature map, by path."""
    kept = {}
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output, path=path: (
                kept.__setitem__(path, output.clone()) if isinstance(output, Tensor) else None
            )
        )
        for path, module in net.network.named_modules()
    ]
    with torch.no_grad():
        net(images())
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_features_are_the_same_and_the_model_is_left_as_it_is(name):
    net = model(name)
    before = copy.deepcopy(net)
    made = prepare(net)
    there, foldable = NETWORKS[name]
    assert norms(net) == there
    assert norms(made) == there - foldable
    assert len(made.folded) == foldable + (name == "timm:resnet10t")  # there a container ends in a convolution
    with torch.no_grad():
        assert close(made.logits(images()), net.logits(images()))
    ours, theirs = taken(made), taken(net)
    left = [path for path in theirs if path and path not in made.folded and path in ours]
    assert len(left) > foldable
    for path in left:  # in-place activations have overwritten some of both by now, in the same way
        assert close(ours[path], theirs[path], 1e-4), path
    # the original
    assert type(net) is type(before)
    assert not net.folded
    for (path, old), (_, new) in zip(before.named_modules(), net.named_modules(), strict=True):
        assert type(old) is type(new), path
        assert old.training == new.training
        assert len(old._forward_hooks) == len(new._forward_hooks)
    for (path, old), (_, new) in zip(before.named_parameters(), net.named_parameters(), strict=True):
        assert torch.equal(old, new), path
        assert old.requires_grad
        assert new.requires_grad
        assert new.grad is None
    for old, new in zip(before.buffers(), net.buffers(), strict=True):
        assert torch.equal(old, new)
    # the copy is frozen, in eval mode, and nobody else's
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert not any(module.training for module in made.modules())
    assert not {id(value) for value in made.parameters()} & {id(value) for value in net.parameters()}


@pytest.mark.parametrize("name", ["resnet8", "timm:mobilenetv2_100"])
def test_a_model_in_training_is_prepared_as_it_answers(name):
    net = model(name).train()
    made = prepare(net)
    assert all(module.training for module in net.modules())
    with torch.no_grad():
        expected = copy.deepcopy(net).eval().logits(images())
        assert close(made.logits(images()), expected)
        assert not close(net.logits(images()), expected, 0.01)  # and not as it trains


class Around(nn.Module):
    """A convolution and a batch norm behind it, in surroundings of all kinds."""

    def __init__(self, kind: str):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8 if kind == "concatenation" else 4, 4)
        if kind == "alias":
            self.body = nn.Sequential(self.conv, self.norm)
        if kind == "weight norm":
            nn.utils.parametrizations.weight_norm(self.conv)
        if kind == "standardised":
            self.conv = Standardised(4, 4, 3, padding=1)
        if kind == "pre-hook":
            self.conv.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))

    def forward(self, x: Tensor) -> Tensor:
        feature = self.conv(self.stem(x)) if self.kind != "alias" else self.body(self.stem(x))
        if self.kind == "alias":
            out = feature
        elif self.kind == "skip":
            out = self.norm(feature) + feature
        elif self.kind == "concatenation":
            out = torch.cat([self.norm(feature), feature], 1)
        elif self.kind == "gate":
            out = self.norm(feature) * functional.adaptive_avg_pool2d(feature, 1).sigmoid()
        elif self.kind == "shared conv":
            out = self.norm(self.conv(feature))
        elif self.kind == "shared norm":
            out = self.norm(self.norm(feature).relu())
        elif self.kind == "activation in place":
            out = self.norm(self.act(feature))
        elif self.kind == "function in place":
            out = self.norm(feature.mul_(-1))
        elif self.kind == "changed afterwards":
            out = self.norm(feature.clone()) + self.norm(feature)
        elif self.kind == "unused":
            self.norm(feature)
            out = feature
        elif self.kind == "view":
            out = self.norm(feature.view_as(feature)) + feature
        else:
            out = self.norm(feature)
        return self.head(out.relu().mean((2, 3)))


class Standardised(nn.Conv2d):
    """Weight standardisation: whatever scale the weights have, it is gone."""

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / spread, self.bias)


KINDS = [
    "skip",
    "concatenation",
    "gate",
    "shared conv",
    "shared norm",
    "activation in place",
    "function in place",
    "changed afterwards",
    "unused",
    "view",
    "alias",
    "weight norm",
    "standardised",
    "pre-hook",
]


def around(kind: str) -> Model:
    return settled(Model(Around(kind), CLASSES, size=(16, 16)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_something_else_reads_or_makes_is_not_folded(kind):
    net = around(kind)
    made = prepare(net)
    with torch.no_grad():
        assert close(made.logits(images(16)), net.logits(images(16)))
    assert "conv" not in made.folded
    assert norms(made) == norms(net)


def test_and_where_nothing_else_does_it_is():
    net = around("plain")
    made = prepare(net)
    with torch.no_grad():
        assert close(made.logits(images(16)), net.logits(images(16)))
    assert made.folded == {"conv"}
    assert norms(made) == 0


class Double(nn.Module):
    """A part: twice the feature."""

    def forward(self, feature: Tensor, inputs) -> Tensor:
        return 2 * feature


def test_a_convolution_with_a_part_or_a_tap_is_not_folded_and_parts_and_taps_at_norms_stay():
    net = model("resnet8")
    net.insert("conv1", Double(), name="twofold")
    net.insert("layer2.0.bn1", Double(), name="more")
    for tap in ("layer1.0.conv1", "layer1.0.bn2", "layer3.0.bn1", "last", "input"):
        net.tap(tap)
    made = prepare(net)
    assert not {"conv1", "layer1.0.conv1"} & made.folded
    assert {"layer1.0.conv2", "layer2.0.conv1", "layer3.0.conv1"} <= made.folded
    assert len(made.folded) == 7
    with torch.no_grad():
        ours, theirs = made(images()), net(images())
    assert close(ours.logits, theirs.logits)
    assert ours.features.keys() == theirs.features.keys()
    for path, feature in theirs.features.items():
        assert close(ours.features[path], feature), path
    plain = model("resnet8")
    with torch.no_grad():
        assert not close(plain.logits(images()), theirs.logits, 0.01)  # the parts do something


def test_tapping_what_was_folded_says_what_to_do_and_doing_it_helps():
    net = model("resnet8")
    made = prepare(net)
    for ask in (made.tap, lambda path: EXPLAINERS.build(f"gradcam:tap={path}")(made, images(), TARGET)):
        with pytest.raises(UserError, match=r"'layer2.0.conv1' of resnet8 is folded .* keep=\['layer2.0.conv1'\]"):
            ask("layer2.0.conv1")
    kept = prepare(net, keep=["layer2.0.conv1"])
    assert made.folded - kept.folded == {"layer2.0.conv1"}
    kept.tap("layer2.0.conv1")
    net.tap("layer2.0.conv1")
    with torch.no_grad():
        assert close(kept(images()).features["layer2.0.conv1"], net(images()).features["layer2.0.conv1"])


def test_a_container_that_ends_in_a_folded_convolution_is_told_and_kept_like_it():
    """timm's deep stem: `conv1` returns what its last convolution does."""
    net = model("timm:resnet10t")
    made = prepare(net)
    assert {"conv1", "conv1.6"} <= made.folded
    with pytest.raises(UserError, match="'conv1' of timm:resnet10t is folded"):
        made.tap("conv1")
    net.insert("conv1", Double(), name="twofold")
    net.tap("conv1")
    for one in (prepare(net), prepare(model("timm:resnet10t"), keep=["conv1"])):
        assert not {"conv1", "conv1.6"} & one.folded
    made = prepare(net)
    with torch.no_grad():
        ours, theirs = made(images()), net(images())
    assert close(ours.logits, theirs.logits)
    assert close(ours.features["conv1"], theirs.features["conv1"])


def test_what_stands_in_timms_norm_can_still_be_tapped():
    net = model("timm:mobilenetv2_100")
    made = prepare(net)
    for path in ("bn1", "bn1.act", "blocks.1.0.bn2.act"):
        net.tap(path)
        made.tap(path)
    with torch.no_grad():
        ours, theirs = made(images()).features, net(images()).features
    assert all(close(ours[path], theirs[path]) for path in theirs)


def test_preparing_what_is_prepared_changes_nothing():
    once = prepare(model("resnet8"))
    twice = prepare(once)
    assert twice.folded == once.folded
    with torch.no_grad():
        assert close(twice.logits(images()), once.logits(images()))
    with pytest.raises(UserError, match="folded"):
        twice.tap("conv1")


@pytest.mark.parametrize("name", ["resnet8", "vgg8", pytest.param("timm:resnet10t", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("part", "within"),
    [
        ("gradcam", 1e-4),
        ("eigencam", 1e-4),
        ("hirescam", 1e-4),
        ("gradient:channels=sum", 1e-3),
        ("ig:steps=4", 1e-3),
        ("occlusion:window=16", 1e-3),
    ],
)
def test_maps_of_a_prepared_model_are_the_models(name, part, within):
    """In float64 where many gradients are summed: by rounding, float32 puts some units on the other side of a ReLU."""
    net = model(name)
    made, pixels = prepare(net), images()
    if part.startswith(("ig", "gradient")):
        net, made, pixels = net.double(), made.double(), pixels.double()
    ours = EXPLAINERS.build(part)(made, pixels, TARGET).maps
    assert close(ours, EXPLAINERS.build(part)(net, pixels, TARGET).maps, within)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", pytest.param("timm:resnet10t", marks=pytest.mark.slow)])
def test_bfloat16_is_near_and_its_maps_are_float32(name):
    net = model(name)
    made = prepare(net, precision="bfloat16")
    assert next(made.network.parameters()).dtype == torch.bfloat16
    assert next(net.network.parameters()).dtype == torch.float32
    with torch.no_grad():
        ours, theirs = made.logits(images()), net.logits(images())
    assert ours.dtype == torch.float32
    assert close(ours, theirs, 0.04)
    assert not torch.equal(ours, theirs)
    for part in ("gradcam", "eigencam", "hirescam", "gradient", "ig:steps=4", "occlusion:window=16", "rise:masks=5"):
        found = EXPLAINERS.build(part)(made, images(), TARGET)
        assert found.maps.dtype == torch.float32
        assert found.maps.any()
    pair = [EXPLAINERS.build("gradcam")(one, images(), TARGET).maps.flatten() for one in (made, net)]
    assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.99


def test_cam_reads_the_head_of_a_prepared_model():
    net = model("resnet8")
    expected = EXPLAINERS.build("cam")(net, images(), TARGET).maps
    assert close(EXPLAINERS.build("cam")(prepare(net), images(), TARGET).maps, expected, 1e-4)
    assert close(EXPLAINERS.build("cam")(prepare(net, precision="bfloat16"), images(), TARGET).maps, expected, 0.05)
