"""A tap is a grid of places in the image, or is refused: no heads, windows, attention or tokens in another order."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from distilens.core import Answer, Batch, Model
from distilens.explain.gradcam import GradCAM
from distilens.foundation.errors import UserError
from distilens.measure.transfer.levels import levels_of
from distilens.methods import build_methods
from distilens.models import build_model, places, taps

CLASSES = tuple("abcd")


def built(name: str, size: int | tuple[int, int] = 64) -> Model:
    torch.manual_seed(0)
    return build_model(name, CLASSES, (size, size) if isinstance(size, int) else size).eval()


class Ordered(nn.Module):
    """Patches of four pixels as tokens; `then` makes something else of them, whose mean goes to the head."""

    def __init__(self, then: nn.Module):
        super().__init__()
        self.stem, self.then, self.head = nn.Conv2d(3, 16, 4, stride=4), then, nn.LazyLinear(4)

    def forward(self, x):
        made = self.then(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(made.reshape(len(x), -1))


class Then(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def ordered(function, size: tuple[int, int] = (32, 32)) -> Model:
    torch.manual_seed(0)
    network = Ordered(Then(function)).eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, *size))  # the head's size
    return Model(network, CLASSES, size=size, name="ordered").eval()


def shuffled(tokens):
    return tokens[:, torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(3))]


def windowed(tokens):
    """In windows of 4 × 4, one after the other, as an unrolled hierarchical transformer has them."""
    grid = tokens.view(len(tokens), 2, 4, 2, 4, -1)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(tokens.shape)


def among_the_batch(tokens):
    grid = tokens.view(len(tokens), 2, 4, 2, 4, -1)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, tokens.shape[2])


def attention(tokens):
    return (tokens @ tokens.transpose(1, 2)).softmax(2)[:, None]


def transposed(tokens):
    return tokens.transpose(1, 2).view(len(tokens), -1, 8, 8).transpose(2, 3)


MISPLACED = r"5 patches of the image were changed, and it changed at the place of [0-2] of them"
ANOTHER_ORDER = MISPLACED + ": its places are in another order"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (shuffled, ANOTHER_ORDER),
        (windowed, ANOTHER_ORDER),
        (transposed, ANOTHER_ORDER),
        (lambda tokens: tokens.flip(1), ANOTHER_ORDER),
        (attention, ANOTHER_ORDER),
        (among_the_batch, "it has 20 rows for 5 images, so its first axis also counts windows, heads or places"),
        (lambda tokens: tokens[:, None, :, :], "64 × 16 does not have the proportions of 32 × 32 pixels"),
    ],
    ids=["shuffled", "windows", "transposed", "turned", "attention", "batch", "heads"],
)
def test_what_looks_like_a_grid_and_is_none_is_refused_with_the_reason_and_the_nearest_taps(function, text):
    net = ordered(function)
    with pytest.raises(
        UserError, match=rf"the tap 'then' of ordered is not a feature map: .*{text}.* It gives \[b .*: stem$"
    ):
        net.tap("then")
    assert not net.taps
    assert net.last_tap == "stem"


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (64, 16)])
def test_tokens_and_maps_in_the_images_order_pass_whatever_its_proportion(size):
    height, width = size[0] // 4, size[1] // 4
    assert ordered(lambda tokens: tokens * 2, size).tap("then") == "then"
    assert ordered(lambda tokens: tokens.view(len(tokens), height, width, -1), size).last_tap == "then"
    if height != width:
        turned = ordered(lambda t: t.view(len(t), height, width, -1).transpose(1, 2), size)
        with pytest.raises(UserError, match="the tap 'then' of ordered is not a feature map"):
            turned.tap("then")


def test_a_grid_that_says_nothing_of_its_order_is_believed():
    """Attention that weighs all places alike changes all places alike."""
    assert ordered(lambda tokens: tokens + 100 * tokens.mean(1, keepdim=True)).last_tap == "then"


def test_one_place_is_no_grid():
    net = built("resnet8", 32)
    assert net.tap("avgpool") == "avgpool"
    with pytest.raises(UserError, match=r"a feature of shape \[2, 64, 1, 1\] has only one place"):
        GradCAM(tap="avgpool")(net, torch.rand(2, 3, 32, 32))


NOT_OURS = "timm:vit_tiny_patch16_224,size=64"


def test_keys_by_head_are_no_finer_grid_of_a_vit():
    net = built(NOT_OURS)
    assert net.last_tap == "blocks.11.norm1"
    with pytest.raises(UserError, match="no tap 'last-1': all feature maps of this model have one size"):
        net.tap("last-1")
    said = (
        r"the tap 'blocks.10.attn.k_norm' of .* is not a feature map: 17 × 64 does not have the proportions of 64 × 64 pixels. "
        r"It gives \[b 3 17 64\]. The nearest taps that are feature maps: blocks.10.attn.norm, blocks.10.attn.qkv, "
    )
    with pytest.raises(UserError, match=said):
        net.tap("blocks.10.attn.k_norm")
    with pytest.raises(UserError, match="not a feature map"), net.reading("blocks.10.attn.q_norm"):
        pass


@pytest.mark.parametrize(
    ("name", "size", "found", "refused"),
    [
        pytest.param(
            "timm:cait_xxs24_224,size=64",
            64,
            ["blocks_token_only.1.norm1"],
            ["blocks.3.attn.proj_l", "blocks.3.attn.attn_drop"],
            marks=pytest.mark.slow,
        ),
        ("timm:xcit_nano_12_p8_224,size=64", 64, None, ["blocks.3.attn.attn_drop"]),
        pytest.param(
            "timm:crossvit_tiny_240",
            240,
            ["blocks.2.fusion.0.norm1", "patch_embed.0"],
            ["blocks.2.fusion.0.attn.attn_drop"],
            marks=pytest.mark.slow,
        ),
        ("timm:swin_tiny_patch4_window7_224,size=64", 64, ["norm", "layers.2", "layers.1"], ["layers.1.blocks.0.attn"]),
    ],
)
def test_attention_and_windows_of_others_networks_are_no_feature_maps(name, size, found, refused):
    net = built(name, size)
    for path in refused:
        with pytest.raises(UserError, match=f"the tap '{path}' of .* is not a feature map: "):
            net.path_of(path)
    paths = []
    for tap in ("last", "last-1", "last-2"):
        with contextlib.suppress(UserError):  # fewer grids
            paths.append(net.path_of(tap))
    assert all(net.places[path].followed for path in paths)
    assert found is None or paths == found


@pytest.mark.slow
def test_hieras_tokens_are_refused_while_they_are_unrolled():
    net = built("timm:hiera_tiny_224", 224)
    with pytest.raises(UserError, match=f"'blocks.9' of .* is not a feature map: {ANOTHER_ORDER}"):
        net.tap("blocks.9")
    assert net.places[net.path_of("last")].grid == (7, 7)  # one place a mask unit is left: in the image's order again
    assert net.places[net.path_of("last-1")].followed  # before the tokens are unrolled


@pytest.mark.parametrize("size", [pytest.param(32, marks=pytest.mark.slow), (32, 64)])
def test_networks_of_convolutions_have_the_taps_that_they_had(size):
    before = {
        "resnet20": ["layer3", "layer2", "layer1"],
        "resnet8x4": ["layer3", "layer2", "layer1"],
        "wrn-16-2": ["relu", "layer2", "layer1"],
        "vgg8": ["layer5", "layer3", "layer2"],
        "mobilenetv2": ["features", "features.13", "features.6"],
        "timm:convnext_atto,size=64": ["norm_pre", "stages.2", "stages.1"],
    }
    for name, paths in before.items():
        net = built(name, size)
        assert [net.path_of(tap) for tap in ("last", "last-1", "last-2")] == paths, name
        assert not any(found.fault for found in net.places.values()), name


def test_broken_weights_do_not_hide_the_taps():
    net = built("resnet8", 32)
    with torch.no_grad():
        net.network.conv1.weight.fill_(torch.nan)
    assert net.tap() == "layer3"


def test_explainers_methods_and_comparisons_all_refuse_the_same_tap():
    net, other = ordered(shuffled), built("resnet8", 32)
    images = torch.rand(2, 3, 32, 32)
    said = "the tap 'then' of ordered is not a feature map"
    with pytest.raises(UserError, match=said):
        GradCAM(tap="then")(net, images)
    with pytest.raises(UserError, match=said):
        GradCAM(tap="then").attach(net)
    with pytest.raises(UserError, match=said):
        levels_of({"one": net, "two": other}, ["one=then", "two=layer1"])
    answer = Answer(logits=torch.zeros(2, 4), features={"layer1": torch.rand(2, 16, 32, 32)})
    batch = Batch(images, torch.zeros(2, dtype=torch.long), torch.arange(2))
    listed = "taps=[then],teacher_taps=[layer1]"
    for method in ("fitnet:tap=then,teacher_tap=layer1", f"at:{listed}", f"reviewkd:{listed}"):
        (made,) = build_methods([method]).values()
        with pytest.raises(UserError, match=said):
            made.prepare(net, batch, answer)


def test_the_forward_that_shows_it_runs_once_when_a_tap_is_asked_for_and_leaves_no_trace(monkeypatch):
    looked = []
    look = places.test_places
    monkeypatch.setattr(places, "test_places", lambda *given: looked.append(given) or look(*given))
    net = built("resnet8", 32).train()
    state, random = {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()
    assert not looked
    net.tap("layer1"), net.tap("last"), net.tap("last-1")
    with net.reading("layer2"):
        pass
    copy.deepcopy(net).tap("layer3")
    assert len(looked) == 1
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in net.modules())


def test_pooled_channels_are_no_tokens():
    with pytest.raises(UserError, match="has no spatial extent"):
        taps.grid(torch.rand(2, 64, 1))
