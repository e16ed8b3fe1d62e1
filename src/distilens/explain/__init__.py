"""The explainers, by name. Each explainer makes maps `[b h w]` of a model, for images and target classes.

For evaluation, call `explainer(model, images, target) -> Explanation`; it leaves the model unchanged. Explainers that a loss can
use also have `from_output(output, target, create_graph=True) -> maps`, which takes the features and logits of the training step,
or `from_model(model, images, target)`, which runs its own forward passes.
"""

from collections.abc import Iterable, Sequence

from distilens.data.splits import Data
from distilens.explain.explanation import Explainer, Explanation, in_chunks, scores_of
from distilens.explain.reference import reference_images
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Registry, Spec, safe
from distilens.models.model import Model
from distilens.models.taps import grid

EXPLAINERS = Registry(
    "explainer",
    {
        # from features at a tap
        "gradcam": "distilens.explain.gradcam:GradCAM",
        "gradcam++": "distilens.explain.gradcam_plus_plus:GradCAMPlusPlus",
        "layercam": "distilens.explain.layercam:LayerCAM",
        "hirescam": "distilens.explain.hirescam:HiResCAM",
        "cam": "distilens.explain.cam:CAM",
        "eigencam": "distilens.explain.eigencam:EigenCAM",
        "attention": "distilens.explain.attention:Attention",
        "channel": "distilens.explain.channel:Channel",
        # from gradients of pixels
        "gradient": "distilens.explain.gradient:Gradient",
        "smoothgrad": "distilens.explain.smoothgrad:SmoothGrad",
        "ig": "distilens.explain.integrated_gradients:IntegratedGradients",
        "expected_gradients": "distilens.explain.expected_gradients:ExpectedGradients",
        # from the model's outputs only
        "occlusion": "distilens.explain.occlusion:Occlusion",
        "rise": "distilens.explain.rise:RISE",
        # from elsewhere, and controls
        "captum": "distilens.explain.from_captum:CaptumExplainer",
        "random": "distilens.explain.controls:RandomMap",
        "centre": "distilens.explain.controls:CentreMap",
    },
)


def labels(parts: Sequence[str]) -> dict[str, str]:
    """A unique short name for each explainer, valid as a file name; options are added if two explainers share a name.

    >>> list(labels(["ig:steps=8", "gradcam:tap=layer1", "gradcam:tap=layer2"]).values())
    ['ig', 'gradcam-tap-layer1', 'gradcam-tap-layer2']
    """
    names = [Spec.parse(part).name for part in parts]
    alone = [name if names.count(name) == 1 else str(Spec.parse(part)) for part, name in zip(parts, names, strict=True)]
    return {part: safe(label) for part, label in zip(parts, alone, strict=True)}


def build_explainer(part: str | Spec | Explainer, data: Data | None = None) -> Explainer:
    """The explainer that the notation names; with `data`, an explainer that compares gets reference images."""
    explainer = part if isinstance(part, Explainer) else EXPLAINERS.build(part)
    if data is not None and explainer.compares and explainer.reference is None:
        explainer.reference = reference_images(data)
    return explainer


def check_taps(parts: Iterable[str], model: Model) -> None:
    """Raise a `UserError` if an explainer reads a tap that the model does not have, or that has no spatial grid."""
    for part in parts:
        explainer = EXPLAINERS.build(part)
        tap = getattr(explainer, "tap", None)
        if tap is not None:
            with model.reading(tap) as read:
                model.probe()
                feature = read.take()
            try:
                grid(feature, model.size)
            except UserError as error:
                raise UserError(
                    f"{part} needs a feature map at the tap {tap!r} of {model.name}: {error}. Take tap=last, or another layer "
                    "whose output has places"
                ) from None


__all__ = [
    "EXPLAINERS",
    "Explainer",
    "Explanation",
    "build_explainer",
    "check_taps",
    "in_chunks",
    "labels",
    "scores_of",
]
