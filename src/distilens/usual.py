"""Which optimizer, learning rate and clipping a network is trained with where nobody says it: by its family and its weights.

| network | weights | optimizer | gradients clipped to |
|---|---|---|---|
| CIFAR families of distilens | random | `sgd:lr=0.2` | not |
| CIFAR families of distilens | loaded | `sgd:lr=0.02` | not |
| timm, torchvision, Hugging Face, your own | random | `adamw:lr=0.001,weight_decay=0.05` | 1 |
| timm, torchvision, Hugging Face, your own | loaded | `adamw:lr=0.0002,weight_decay=0.05` | 1 |
| your own | nobody knows | `adamw:lr=0.0005,weight_decay=0.05` | 1 |

Stochastic gradient descent at 0.2 trains small residual networks with batch norm fastest; most others diverge under it.
AdamW at a thousandth is what ViTs, ConvNeXts and mobile networks are usually trained with (Steiner et al. 2021, arXiv
2106.10270; Wightman et al. 2021, arXiv 2110.00476). Loaded weights are to be changed little, so their rate is a fifth
to a tenth. The schedule is `one_cycle` for all: a fifth of the steps is warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distilens.errors import UserError
from distilens.models import MODELS
from distilens.optimizers import OPTIMIZERS
from distilens.specs import Spec

if TYPE_CHECKING:
    from distilens.core import Model
    from distilens.recipe import Training

Family = Literal["zoo", "other"]
Weights = Literal["random", "loaded", "unknown"]

ADAPTERS = ("timm", "torchvision", "hf", "python")

OPTIMIZER: dict[tuple[Family, Weights], str] = {
    ("zoo", "random"): "sgd:lr=0.2",
    ("zoo", "loaded"): "sgd:lr=0.02",
    ("zoo", "unknown"): "sgd:lr=0.2",
    ("other", "random"): "adamw:lr=0.001,weight_decay=0.05",
    ("other", "loaded"): "adamw:lr=0.0002,weight_decay=0.05",
    ("other", "unknown"): "adamw:lr=0.0005,weight_decay=0.05",
}
CLIP: dict[Family, float] = {"zoo": 0.0, "other": 1.0}


@dataclass(frozen=True)
class Kind:
    """What the choice goes by."""

    family: Family
    weights: Weights

    def __str__(self) -> str:
        family = "one of distilens' CIFAR families" if self.family == "zoo" else "no CIFAR family of distilens"
        return f"{family}, {'weights' if self.weights != 'unknown' else 'its weights are'} {self.weights}"


def kind_of(part: str | Spec) -> Kind:
    """The family and the weights of a model by its notation; the name of a class is a network of somebody's own.

    Raises:
        UserError: the saved model that it names cannot be read.
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
        return Kind("zoo", "random")
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
    """Of a model that is there: by the notation that made it, and by whether weights were loaded into it."""
    found = kind_of(model.name)
    if model.loaded is None:
        return found
    return Kind(found.family, "loaded" if model.loaded else "random")


def settled(settings: Training, kind: Kind) -> Training:
    """The settings with an optimizer and a clipping: what they say, or what is usual for the network."""
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
