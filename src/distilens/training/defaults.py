"""The default optimizer, learning rate and gradient clipping of a network, by its family and its weights.

| network | weights | optimizer | gradients clipped to |
|---|---|---|---|
| CIFAR families of distilens | random | `sgd:lr=0.2` | not |
| CIFAR families of distilens | loaded | `sgd:lr=0.02` | not |
| U-Net of distilens | random | `adamw:lr=0.01,weight_decay=0.05` | 1 |
| U-Net of distilens | loaded | `adamw:lr=0.001,weight_decay=0.05` | 1 |
| timm, torchvision, Hugging Face, smp; your own | random | `adamw:lr=0.001,weight_decay=0.05` | 1 |
| timm, torchvision, Hugging Face, smp; your own | loaded | `adamw:lr=0.0002,weight_decay=0.05` | 1 |
| your own | unknown | `adamw:lr=0.0005,weight_decay=0.05` | 1 |

For a task of your own, which is not a classification, CIFAR families have the defaults of the others: the rate 0.2 is for the
cross-entropy. A loaded encoder with a new decoder (`smp:`) counts as loaded.

Stochastic gradient descent with rate 0.2 trains small residual networks with batch norm fastest; most other networks diverge
with it. ViTs, ConvNeXts and mobile networks are usually trained with AdamW at 0.001 (Steiner et al. 2021, arXiv 2106.10270;
Wightman et al. 2021, arXiv 2110.00476). Loaded weights should change little, so their rate is a fifth to a tenth of that. The
schedule is always `one_cycle`: a fifth of the steps is warm-up.

The U-Net learns slowly with AdamW at 0.001. On CamVid (45x60 pixels, width 8, 8 epochs, validation split, n = 101, one seed) its
mIoU is 0.15 at 0.001, 0.24 at 0.003, 0.25 at 0.01 and 0.30 at 0.03. On squares (43 images for training, n = 12, widths 8 and 16,
two seeds each, 12 epochs) it is 0.26 to 0.89 at 0.001, and at least 0.98 at 0.01 and 0.03.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.models import MODELS
from distilens.tasks import Classification, Task
from distilens.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from distilens.core import Model
    from distilens.training.settings import Training

Family = Literal["zoo", "unet", "other"]
Weights = Literal["random", "loaded", "unknown"]

ADAPTERS = ("timm", "torchvision", "hf", "smp", "python")

OPTIMIZER: dict[tuple[Family, Weights], str] = {
    ("zoo", "random"): "sgd:lr=0.2",
    ("zoo", "loaded"): "sgd:lr=0.02",
    ("zoo", "unknown"): "sgd:lr=0.2",
    ("unet", "random"): "adamw:lr=0.01,weight_decay=0.05",
    ("unet", "loaded"): "adamw:lr=0.001,weight_decay=0.05",
    ("unet", "unknown"): "adamw:lr=0.01,weight_decay=0.05",
    ("other", "random"): "adamw:lr=0.001,weight_decay=0.05",
    ("other", "loaded"): "adamw:lr=0.0002,weight_decay=0.05",
    ("other", "unknown"): "adamw:lr=0.0005,weight_decay=0.05",
}
CLIP: dict[Family, float] = {"zoo": 0.0, "unet": 1.0, "other": 1.0}


FAMILIES: dict[Family, str] = {
    "zoo": "one of distilens' CIFAR families",
    "unet": "distilens' U-Net",
    "other": "not one of distilens' CIFAR families",
}


@dataclass(frozen=True)
class Kind:
    """What the defaults depend on."""

    family: Family
    weights: Weights

    def __str__(self) -> str:
        return (
            f"{FAMILIES[self.family]}, {'weights' if self.weights != 'unknown' else 'its weights are'} {self.weights}"
        )


def kind_for(part: str | Spec, task: Task) -> Kind:
    """The kind of a model, from its notation and its task."""
    return for_task(kind_of(part), task)


def for_task(kind: Kind, task: Task) -> Kind:
    """The same kind for a classification; for other tasks, it is never one of the CIFAR families."""
    return kind if isinstance(task, Classification) or kind.family != "zoo" else Kind("other", kind.weights)


def kind_of(part: str | Spec) -> Kind:
    """The family and the weights of a model, from its notation. An unknown name, such as a class's, is a network of your own.

    Raises:
        UserError: the notation names a saved model that cannot be read.
    """
    try:
        spec = MODELS.resolve(part)
    except UserError:
        return Kind("other", "unknown")
    if spec.name == "run":
        return Kind(saved_family(spec), "loaded")
    if spec.name == "file":
        return Kind(kind_of(spec.options["model"]).family, "loaded")
    if spec.name == "shrink":
        return kind_of(spec.options["model"])
    if spec.name not in ADAPTERS:
        return Kind("unet" if spec.name == "unet" else "zoo", "random")
    if spec.name == "python":
        return Kind("other", "unknown")
    given = spec.options.get("pretrained") or spec.options.get("weights")
    return Kind("other", "loaded" if given else "random")


def saved_family(spec: Spec) -> Family:
    from distilens.models.adapters import model_folder
    from distilens.models.saved import described

    folder = model_folder(spec.argument or "", spec.options.get("part"))
    return kind_of(described(Path(folder) / "model.json").model).family


def kind_of_model(model: Model) -> Kind:
    """The kind of a built model: from its notation, and from whether weights were loaded into it."""
    kind = kind_for(model.name, model.task)
    if model.loaded is None:
        return kind
    return Kind(kind.family, "loaded" if model.loaded else "random")


def settled(settings: Training, kind: Kind) -> Training:
    """The settings with `auto` replaced: the optimizer and the clipping that are usual for the network."""
    spec = OPTIMIZERS.resolve(settings.optimizer)
    if spec.name != "auto":
        clip = None if settings.clip == "auto" else settings.clip or None
        return settings.model_copy(update={"clip": clip})
    usual = Spec.parse(OPTIMIZER[kind.family, kind.weights])
    if spec.options.get("lr") is not None:
        usual = usual.replaced(lr=spec.options["lr"])
    clip = CLIP[kind.family] if settings.clip == "auto" else settings.clip
    return settings.model_copy(update={"optimizer": str(usual), "clip": clip or None})


def in_words(settings: Training) -> str:
    """The optimizer, the schedule and the clipping in words."""
    clip = f"gradients clipped to a norm of {settings.clip:g}" if settings.clip else "gradients as they are"
    return f"{settings.optimizer}, {settings.schedule}, {clip}"
