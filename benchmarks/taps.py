"""Which feature maps `last`, `last-1` and `last-2` are, in every family of timm and torchvision and some of Hugging Face.

One small member of each family is built with random weights. Beside each tap's path and grid stands how many of seven places are
right: a patch of an image of noise is changed, and the feature must change most there (more than for the mean patch), to a place
or an eighth of the sides. That is stricter than the library's own check (`distilens/places.py`), and uses other images. Deep
layers of random weights may spread a change over all places alike, so that nothing can be seen; those are marked `~`.

    python benchmarks/taps.py [--only timm:vit hf:swin] [--out docs/taps.md]

With `--out` the rows of the table in that file are replaced. All take about half an hour on one core. Needs timm,
torchvision and transformers.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

from distilens.core import Model
from distilens.foundation.errors import UserError
from distilens.models import build_model, taps

CLASSES = tuple("abcde")
SMALL = 128
"""Side of the images for networks that take any; those that do not take it get their own."""
SPOTS = [(0.125, 0.125), (0.125, 0.875), (0.875, 0.125), (0.875, 0.875), (0.125, 0.625), (0.625, 0.125), (0.375, 0.875)]
TAPS = ("last", "last-1", "last-2")
START, END = "<!-- table: benchmarks/taps.py -->", "<!-- end of table -->"

OF_TIMM = """
beit=beit_base_patch16_224 byoanet=botnet26t_256 byobnet=mobileone_s1 cait=cait_xxs24_224 coat=coat_tiny convit=convit_tiny
convmixer=convmixer_768_32 convnext=convnext_atto cpubone=cpubone_nano crossvit=crossvit_tiny_240 csatv2=csatv2
cspnet=cs3darknet_focus_s cspnext=cspnext_tiny davit=davit_tiny deepseek_vit=deepseek_vit_412m
deit=deit_tiny_distilled_patch16_224 densenet=densenet121 dla=dla46x_c dpn=dpn48b edgenext=edgenext_xx_small
efficientformer=efficientformer_l1 efficientformer_v2=efficientformerv2_s0 efficientnet=efficientnet_b0
efficientvim=efficientvim_m1 efficientvit_mit=efficientvit_b0 efficientvit_msra=efficientvit_m0 eva=eva02_tiny_patch14_224
fasternet=fasternet_t0 fastvit=fastvit_t8 focalnet=focalnet_tiny_srf gcvit=gcvit_xxtiny gemma4_vit=gemma4_vit_167m
ghostnet=ghostnet_050 hardcorenas=hardcorenas_b hgnet=hgnetv2_b0 hiera=hiera_tiny_224 hieradet_sam2=sam2_hiera_tiny
hrnet=hrnet_w18_small iformer=iformer_t inception_next=inception_next_atto inception_resnet_v2=inception_resnet_v2
inception_v3=inception_v3 inception_v4=inception_v4 lcnetv2=lcnetv2_small levit=levit_128s lowformer=lowformer_b0
mambaout=mambaout_femto maxxvit=maxvit_pico_rw_256 metaformer=poolformer_s12 mlp_mixer=mixer_s32_224
mobilenetv3=mobilenetv3_small_050 mobilenetv5=mobilenetv5_base mobilevit=mobilevit_xxs mvitv2=mvitv2_tiny
naflexvit=naflexvit_base_patch16_siglip nasnet=nasnetalarge nest=nest_tiny nextvit=nextvit_small nfnet=nf_regnet_b0 pit=pit_ti_224
pnasnet=pnasnet5large pvt_v2=pvt_v2_b0 qwen3_vit=qwen3_vit_88m_merge rdnet=rdnet_tiny regnet=regnetx_002 repghost=repghostnet_050
repvit=repvit_m1 res2net=res2next50 resnest=resnest14d resnet=resnet18 resnetv2=resnetv2_18 rexnet=rexnet_100 selecsls=selecsls42
senet=legacy_seresnet18 sequencer=sequencer2d_s shvit=shvit_s1 sknet=skresnet18 starnet=starnet_s050 swiftformer=swiftformer_xs
swin_transformer=swin_tiny_patch4_window7_224 swin_transformer_v2=swinv2_tiny_window8_256
swin_transformer_v2_cr=swinv2_cr_tiny_224 tiny_vit=tiny_vit_5m_224 tnt=tnt_s_legacy_patch16_224 tresnet=tresnet_m
twins=twins_svt_small vgg=vgg11_bn visformer=visformer_tiny vision_transformer=vit_tiny_patch16_224
vision_transformer_hybrid=vit_tiny_r_s16_p8_224 vision_transformer_relpos=vit_srelpos_small_patch16_224
vision_transformer_sam=samvit_base_patch16_224 vitamin=vitamin_small_224 volo=volo_d1_224 vovnet=ese_vovnet19b_slim_dw
xception=legacy_xception xception_aligned=xception41p xcit=xcit_nano_12_p8_224
"""
"""A small member of each family (a module of timm), by the family's name."""
OF_TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11
vgg11_bn vit_b_32 wide_resnet50_2
"""


@dataclass(frozen=True)
class Seen:
    """A tap of a model: its path, its grid, and how many of the seven places are right; or why there is none."""

    path: str
    grid: tuple[int, int] = (0, 0)
    right: int = 0
    spread: bool = False

    def __str__(self) -> str:
        if not self.grid[0]:
            return self.path
        return f"`{self.path}` {self.grid[0]} × {self.grid[1]}: {self.right}{'~' * self.spread}"


def from_timm() -> Iterator[tuple[str, Callable[[], Model]]]:
    import timm

    chosen = dict(pair.split("=") for pair in OF_TIMM.split())
    for family in timm.list_modules():
        name = chosen.get(family) or next(iter(timm.list_models(module=family)), "")
        if name:
            config = timm.get_pretrained_cfg(name, allow_unregistered=True)
            own = config.input_size[-1] if config else 224
            fixed = bool(config and config.fixed_input_size)
            yield f"timm:{name}", partial(built, f"timm:{name}", (own,) if fixed else (SMALL, own))


def from_torchvision() -> Iterator[tuple[str, Callable[[], Model]]]:
    for name in OF_TORCHVISION.split():
        side = 299 if name == "inception_v3" else 224 if name in ("maxvit_t", "vit_b_32") else SMALL
        yield f"torchvision:{name}", partial(built, f"torchvision:{name}", (side,))


def from_hugging_face() -> Iterator[tuple[str, Callable[[], Model]]]:
    import transformers

    side = 64
    vit = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 8,
    }
    stages = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
    swin = {"embed_dim": 16, "depths": [1, 2, 2], "num_heads": [2, 2, 4], "window_size": 4, "patch_size": 4}
    segformer = {**stages, "num_attention_heads": [1, 1, 2, 2]}
    parts = {
        "ViT": {**vit, "image_size": side},
        "DeiT": {**vit, "image_size": side},
        "Swin": {**swin, "image_size": side},
        "Swinv2": {**swin, "image_size": side},
        "ConvNext": {**stages, "image_size": side},
        "ConvNextV2": {**stages, "image_size": side},
        "Beit": {**vit, "image_size": side, "use_relative_position_bias": True},
        "Dinov2": {**vit, "image_size": side},
        "Dinov2WithRegisters": {**vit, "image_size": side},
        "Segformer": segformer,
        "ResNet": {**stages, "embedding_size": 16, "layer_type": "basic"},
    }
    for name, options in parts.items():
        yield f"hf:{name}", partial(configured, transformers, name, options, side)


def configured(transformers: object, name: str, options: dict, side: int) -> Model:
    config = getattr(transformers, f"{name}Config")(num_labels=len(CLASSES), **options)
    network = getattr(transformers, f"{name}ForImageClassification")(config)
    return Model(network, CLASSES, size=(side, side), name=f"hf:{name}").eval()


def built(name: str, sides: tuple[int, ...]) -> Model:
    """A model for the first of some sizes of images that it takes."""
    for side in sides:
        try:
            model = build_model(name, CLASSES, (side, side)).eval()
            model.probe()
            return model
        except Exception:
            if side == sides[-1]:
                raise
    raise AssertionError


def seen_at(model: Model) -> list[Seen]:
    """What `last`, `last-1` and `last-2` of a model are."""
    found: dict[str, str] = {}
    for tap in TAPS:
        try:
            found[tap] = model.tap(tap)
        except UserError as error:
            one = "have one size" in str(error)
            found[tap] = "" if one or "sizes of feature maps" in str(error) else str(error)[:80]
    with torch.no_grad():
        features = {tap: taps.grid(feature, model.size) for tap, feature in model(patched(model)).features.items()}
    return [
        Seen(found[tap], (rows.shape[2], rows.shape[3]), right_of(rows), not model.places[found[tap]].shows)
        if (rows := features.get(tap)) is not None
        else Seen(found[tap] or "none")
        for tap in TAPS
    ]


def patched(model: Model) -> torch.Tensor:
    """An image of noise, and seven copies with a patch of another noise and another colour."""
    height, width = model.size
    images = torch.rand(1, model.mean.shape[1], height, width).repeat(1 + len(SPOTS), 1, 1, 1)
    for image, (y, x) in zip(images[1:], SPOTS, strict=True):
        side = max(2, height // 8)
        top, left = max(0, int(y * height) - side // 2), max(0, int(x * width) - side // 2)
        patch = image[:, top : top + side, left : left + side]
        patch.copy_((torch.rand_like(patch) + torch.rand(len(image), 1, 1)) / 2)
    return images


def right_of(feature: torch.Tensor) -> int:
    distance = (feature[1:] - feature[:1]).abs().sum(1)
    rows, columns = distance.shape[1:]
    share = distance / distance.sum((1, 2), keepdim=True).clamp_min(1e-30)
    right = 0
    for change, (y, x) in zip(share - share.mean(0), SPOTS, strict=True):
        row, column = divmod(int(change.argmax()), columns)
        down, along = abs((row + 0.5) / rows - y), abs((column + 0.5) / columns - x)
        right += down <= max(1 / rows, 0.13) and along <= max(1 / columns, 0.13)
    return right


def row_of(name: str, make: Callable[[], Model]) -> str:
    torch.manual_seed(0)
    try:
        model = make()
        cells = ["×".join(map(str, model.size)), *map(str, seen_at(model))]
    except Exception as error:  # whatever a family does that cannot be built or run
        cells = [f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}", "", "", ""]
    return f"| `{name}` | " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


HEADER = ["| model | pixels | " + " | ".join(f"`{tap}`" for tap in TAPS) + " |", "|---|---|---|---|---|"]


def all_models() -> Iterator[tuple[str, Callable[[], Model]]]:
    for source in (from_torchvision, from_hugging_face, from_timm):
        yield from source()


def rows_in(page: str) -> dict[str, str]:
    """The rows of the table in a page, by the model's name."""
    table = page[page.index(START) : page.index(END)].splitlines()
    return {line.split("`")[1]: line for line in table if line.startswith("| `") and line.split("|")[1].strip()[1:-1]}


def main(only: tuple[str, ...] = (), out: Path | None = None) -> None:
    """Print the table, and put its rows into a page, each as soon as it is known.

    Args:
        only: beginnings of names; all by default.
        out: the page. Rows of other models stay as they are.
    """
    warnings.filterwarnings("ignore")
    print("\n".join(HEADER), flush=True)
    for name, make in all_models():
        if only and not name.startswith(only):
            continue
        start = time.perf_counter()
        row = row_of(name, make)
        print(row, f"{time.perf_counter() - start:.1f} s", flush=True)
        if out is not None:
            page = out.read_text()
            found = {**rows_in(page), name: row}
            rows = [found[known] for known, _ in all_models() if known in found]
            head, tail = page[: page.index(START) + len(START)], page[page.index(END) :]
            out.write_text(f"{head}\n" + "\n".join([*HEADER, *rows]) + f"\n{tail}")


if __name__ == "__main__":
    tyro.cli(main)
