"""The explainers, by name: each makes maps `[b h w]` of a model for images and target classes.

An explainer is called for evaluation, `explainer(model, images, target) -> Explanation`, and leaves no trace in the model;
those that a loss can use also have `from_output(output, target, create_graph=True) -> maps`, on the features and logits that
the step already has, or `from_model(model, images, target)` where they need forwards of their own.
"""

from collections.abc import Iterable, Sequence

from distilens.core import Model
from distilens.data.subset import Data
from distilens.errors import UserError
from distilens.explain.explanation import Explainer, Explanation, in_chunks, scores_of
from distilens.explain.reference import reference_images
from distilens.specs import Registry, Spec, safe
from distilens.taps import grid

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
        # from answers alone
        "occlusion": "distilens.explain.occlusion:Occlusion",
        "rise": "distilens.explain.rise:RISE",
        # from elsewhere, and controls
        "captum": "distilens.explain.from_captum:CaptumExplainer",
        "random": "distilens.explain.controls:RandomMap",
        "centre": "distilens.explain.controls:CentreMap",
    },
)


def labels(parts: Sequence[str]) -> dict[str, str]:
    """A short name for each explainer, unlike the others and fit to be a file's: its own, and its options where two share that.

    >>> list(labels(["ig:steps=8", "gradcam:tap=layer1", "gradcam:tap=layer2"]).values())
    ['ig', 'gradcam-tap-layer1', 'gradcam-tap-layer2']
    """
    names = [Spec.parse(part).name for part in parts]
    alone = [name if names.count(name) == 1 else str(Spec.parse(part)) for part, name in zip(parts, names, strict=True)]
    return {part: safe(label) for part, label in zip(parts, alone, strict=True)}


def build_explainer(part: str | Spec | Explainer, data: Data | None = None) -> Explainer:
    """The explainer that the notation names, with training images to compare with where there are data."""
    explainer = part if isinstance(part, Explainer) else EXPLAINERS.build(part)
    if data is not None and explainer.compares and explainer.reference is None:
        explainer.reference = reference_images(data)
    return explainer


def check_taps(parts: Iterable[str], model: Model) -> None:
    """Raise a `UserError` where an explainer reads a tap that the model does not have, or that makes no map, before training."""
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
