"""The built-in models are those of the published tables: sizes, shapes, and errors that say what would be right."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distilens.foundation.errors import UserError
from distilens.models.zoo.mobilenetv2 import mobilenetv2
from distilens.models.zoo.resnet import resnet
from distilens.models.zoo.vgg import vgg
from distilens.models.zoo.wrn import wrn

SMALLEST = [
    pytest.param(resnet, {"depth": 8}, "conv1", id="resnet8"),
    pytest.param(wrn, {"depth": 10, "width": 1}, "conv1", id="wrn_10_1"),
    pytest.param(vgg, {"depth": 8}, "layer1.0", id="vgg8"),
    pytest.param(mobilenetv2, {"width": 0.25}, "features.0.0", id="mobilenetv2_025"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def features_at(model: nn.Module, images: Tensor, taps: list[str]) -> dict[str, Tensor]:
    features = {}
    handles = [
        model.get_submodule(tap).register_forward_hook(
            lambda _module, _inputs, output, tap=tap: features.update({tap: output})
        )
        for tap in taps
    ]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return features


# Parameter counts, by hand: a 3x3 convolution from c to d channels has 9cd weights, a batch norm of d channels 2d.


def resnet_sum(blocks: int, stem: int, width: int, classes: int) -> int:
    total, before = 27 * stem + 2 * stem, stem
    for channels in (16 * width, 32 * width, 64 * width):
        total += 9 * before * channels + 9 * channels**2 + 4 * channels
        total += before * channels + 2 * channels if before != channels else 0
        total += (blocks - 1) * (18 * channels**2 + 4 * channels)
        before = channels
    return total + before * classes + classes


def wrn_sum(blocks: int, width: int, classes: int) -> int:
    total, before = 27 * 16, 16
    for channels in (16 * width, 32 * width, 64 * width):
        total += 2 * before + 9 * before * channels + 2 * channels + 9 * channels**2
        total += before * channels if before != channels else 0
        total += (blocks - 1) * (18 * channels**2 + 4 * channels)
        before = channels
    return total + 2 * before + before * classes + classes


def vgg_sum(channels: list[int], classes: int) -> int:
    total = sum(9 * c * d + d + 2 * d for c, d in zip([3, *channels[:-1]], channels, strict=True))
    return total + 512 * classes + classes


def mobilenetv2_sum(classes: int) -> int:
    """One (channels in, out, expansion) a block: widen 1x1, depthwise 3x3, narrow 1x1, each with a batch norm."""
    blocks = [(16, 24), (24, 24), (24, 32), (32, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 64), (64, 96)]
    blocks += [(96, 96), (96, 96), (96, 160), (160, 160), (160, 160), (160, 320)]
    total = (27 * 32 + 64) + (9 * 32 + 64 + 32 * 16 + 32)
    for before, after in blocks:
        hidden = 6 * before
        total += before * hidden + 2 * hidden + 9 * hidden + 2 * hidden + hidden * after + 2 * after
    return total + 320 * 1280 + 2 * 1280 + 1280 * classes + classes


@pytest.mark.parametrize(
    ("depth", "width", "published"),
    [
        (8, 1, 83_892),
        (14, 1, 181_108),
        (20, 1, 278_324),
        (32, 1, 472_756),
        (44, 1, 667_188),
        (56, 1, 861_620),
        (110, 1, 1_736_564),
        (8, 4, 1_233_540),
        (32, 4, 7_433_860),
    ],
)
def test_resnet_has_the_published_number_of_parameters(depth: int, width: int, published: int):
    assert resnet_sum((depth - 2) // 6, 16 if width == 1 else 32, width, 100) == published
    assert parameters(resnet(100, depth=depth, width=width)) == published


@pytest.mark.parametrize(
    ("depth", "width", "published"), [(16, 1, 180_916), (16, 2, 703_284), (40, 1, 569_780), (40, 2, 2_255_156)]
)
def test_wrn_has_the_published_number_of_parameters(depth: int, width: int, published: int):
    assert wrn_sum((depth - 4) // 6, width, 100) == published
    assert parameters(wrn(100, depth=depth, width=width)) == published


@pytest.mark.parametrize(
    ("depth", "channels", "published"),
    [
        (8, [64, 128, 256, 512, 512], 3_965_028),
        (11, [64, 128, 256, 256, 512, 512, 512, 512], 9_277_284),
        (13, [64, 64, 128, 128, 256, 256, 512, 512, 512, 512], 9_462_180),
        (16, [64, 64, 128, 128, *[256] * 3, *[512] * 6], 14_774_436),
        (19, [64, 64, 128, 128, *[256] * 4, *[512] * 8], 20_086_692),
    ],
)
def test_vgg_has_the_published_number_of_parameters(depth: int, channels: list[int], published: int):
    assert vgg_sum(channels, 100) == published
    with torch.device("meta"):
        assert parameters(vgg(100, depth=depth)) == published


def test_mobilenetv2_has_the_stated_parameters_and_multiply_accumulates():
    assert mobilenetv2_sum(10) == 2_236_682
    assert parameters(mobilenetv2(10)) == 2_236_682
    assert parameters(mobilenetv2(100)) == mobilenetv2_sum(100)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        mobilenetv2(10).eval()(torch.empty(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * 87_976_448


def test_the_count_grows_with_the_classes_by_the_classifier_alone():
    assert parameters(resnet(100)) - parameters(resnet(10)) == 90 * 65
    assert parameters(wrn(100)) - parameters(wrn(10)) == 90 * 129
    assert parameters(vgg(100)) - parameters(vgg(10)) == 90 * 513
    assert parameters(mobilenetv2(100)) - parameters(mobilenetv2(10)) == 90 * 1281


@pytest.mark.parametrize(("build", "options", "_first"), SMALLEST)
@pytest.mark.parametrize(
    ("classes", "batch", "height", "width"), [(2, 1, 32, 32), (10, 3, 32, 48), (1, 2, 37, 33), (200, 1, 64, 64)]
)
def test_any_size_and_any_number_of_classes(build, options, _first, classes, batch, height, width):
    with torch.no_grad():
        logits = build(classes, **options).eval()(torch.rand(batch, 3, height, width))
    assert logits.shape == (batch, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("build", "options", "first"), SMALLEST)
def test_a_gradient_reaches_the_first_layer(build, options, first):
    model = build(5, **options).train()
    nn.functional.cross_entropy(model(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
    gradient = model.get_submodule(first).weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().amax(dim=(1, 2, 3)).gt(0).float().mean() > 0.5
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("build", "options", "_first"), SMALLEST)
def test_a_state_dict_makes_an_equal_model(build, options, _first):
    model, other = build(5, **options), build(5, **options)
    images = torch.rand(4, 3, 32, 32)
    model.train()(images)  # moves the batch norm statistics, which must travel too
    assert not torch.equal(model.eval()(images), other.eval()(images))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images), other(images))


@pytest.mark.parametrize(("build", "options", "_first"), SMALLEST)
def test_an_image_is_answered_alone_as_in_a_batch(build, options, _first):
    model = build(5, **options).eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images[1:2]), model(images)[1:2])


@pytest.mark.parametrize(
    ("model", "size", "shapes"),
    [
        (resnet(10, depth=8), 32, {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)}),
        (resnet(10, depth=8, width=4), 32, {"bn1": (32, 32, 32), "layer1": (64, 32, 32), "layer3": (256, 8, 8)}),
        (wrn(10, depth=10, width=2), 32, {"layer1": (32, 32, 32), "layer2": (64, 16, 16), "layer3": (128, 8, 8)}),
        (vgg(10), 32, {"layer1": (64, 32, 32), "layer3": (256, 8, 8), "layer4": (512, 4, 4), "layer5": (512, 4, 4)}),
        (vgg(10), 64, {"layer4": (512, 8, 8), "layer5": (512, 4, 4)}),
        (mobilenetv2(10), 32, {"features.0": (32, 32, 32), "features.3": (24, 32, 32), "features.18": (1280, 4, 4)}),
    ],
    ids=["resnet8", "resnet8x4", "wrn_10_2", "vgg8", "vgg8_64", "mobilenetv2"],
)
def test_the_taps_have_the_sizes_of_the_tables(model, size, shapes):
    features = features_at(model, torch.rand(1, 3, size, size), list(shapes))
    assert {tap: tuple(feature.shape[1:]) for tap, feature in features.items()} == shapes


def test_relu_comes_last_in_a_resnet_and_a_vgg_stage_and_not_in_a_wrn_stage():
    images = torch.rand(2, 3, 32, 32)
    assert features_at(resnet(10, depth=8), images, ["layer3"])["layer3"].min() >= 0
    assert features_at(vgg(10), images, ["layer5"])["layer5"].min() >= 0
    wide = features_at(wrn(10, depth=10), images, ["layer3", "relu"])
    assert wide["layer3"].min() < 0 <= wide["relu"].min()


def test_no_relu_of_ours_overwrites_a_feature():
    for model in (resnet(10, depth=8), wrn(10, depth=10), vgg(10)):
        found = [module for module in model.modules() if isinstance(module, nn.ReLU)]
        assert found
        assert not any(module.inplace for module in found)


def test_a_resnet_block_is_the_formula():
    block = resnet(10, depth=8).layer2[0].eval()
    x = torch.randn(2, 16, 8, 8)

    def norm(z, batch_norm):  # fresh statistics: mean 0, variance 1
        assert batch_norm.weight.eq(1).all()
        return z / (1 + batch_norm.eps) ** 0.5

    inner = norm(nn.functional.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1).clamp(min=0)
    inner = norm(nn.functional.conv2d(inner, block.conv2.weight, padding=1), block.bn2)
    short = norm(nn.functional.conv2d(x, block.downsample[0].weight, stride=2), block.downsample[1])
    torch.testing.assert_close(block(x), (inner + short).clamp(min=0))


@pytest.mark.parametrize("changes_shape", [True, False])
def test_a_wrn_block_is_the_formula(changes_shape: bool):
    model = wrn(10, depth=16, width=1).eval()
    block = model.layer2[0 if changes_shape else 1]
    x = torch.randn(2, 16 if changes_shape else 32, 8, 8)
    scale = (1 + block.bn1.eps) ** -0.5
    stride = 2 if changes_shape else 1
    activated = (x * scale).clamp(min=0)
    inner = (nn.functional.conv2d(activated, block.conv1.weight, stride=stride, padding=1) * scale).clamp(min=0)
    inner = nn.functional.conv2d(inner, block.conv2.weight, padding=1)
    short = nn.functional.conv2d(activated, block.downsample.weight, stride=2) if changes_shape else x
    torch.testing.assert_close(block(x), inner + short)


def test_wrn_dropout_acts_in_training_only():
    images = torch.rand(2, 3, 32, 32)
    model = wrn(10, depth=10, width=1, dropout=0.5)
    assert torch.equal(model.eval()(images), model(images))
    assert not torch.equal(model.train()(images), model(images))
    model = wrn(10, depth=10, width=1).train()
    assert torch.equal(model(images), model(images))


def test_convolutions_are_drawn_with_fan_out():
    for weight in (resnet(10, depth=8, width=4).layer3[0].conv1.weight, vgg(10).layer4[0].weight):
        assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (
            resnet,
            {"depth": 18},
            "the depth of a resnet is 6n + 2 (n = 1, 2, ...); it was 18. Nearest valid: 14 and 20.",
        ),
        (resnet, {"depth": 2}, "the depth of a resnet is 6n + 2 (n = 1, 2, ...); it was 2. Nearest valid: 8."),
        (resnet, {"depth": -3}, "the depth of a resnet is 6n + 2 (n = 1, 2, ...); it was -3. Nearest valid: 8."),
        (resnet, {"width": 0}, "the width of a resnet multiplies its channels and must be at least 1; it was 0."),
        (wrn, {"depth": 20}, "the depth of a wrn is 6n + 4 (n = 1, 2, ...); it was 20. Nearest valid: 16 and 22."),
        (wrn, {"depth": 4}, "the depth of a wrn is 6n + 4 (n = 1, 2, ...); it was 4. Nearest valid: 10."),
        (wrn, {"width": -1}, "the width of a wrn multiplies its channels and must be at least 1; it was -1."),
        (wrn, {"dropout": 1.0}, "the dropout of a wrn is a probability in [0, 1); it was 1.0."),
        (vgg, {"depth": 18}, "the depth of a vgg is one of 8, 11, 13, 16, 19; it was 18. Nearest valid: 19."),
        (
            mobilenetv2,
            {"width": 0.0},
            "the width of a mobilenetv2 multiplies its channels and must be above 0; it was 0.0.",
        ),
    ],
)
def test_an_error_says_what_would_be_right(build, options, message):
    with pytest.raises(UserError) as error:
        build(10, **options)
    assert str(error.value) == message
