"""The explainers, by name: each makes maps `[b h w]` of a model for images and target classes.

An explainer is called for evaluation, `explainer(model, images, target) -> Explanation`, and leaves no trace in the model;
those that a loss can use also have `from_output(output, target, create_graph=True) -> maps`, on the features and logits that
the step already has, or `from_model(model, images, target)` where they need forwards of their own.
"""

from collections.abc import Iterable

from distilens.core import Model
from distilens.explain.explanation import Explainer, Explanation, in_chunks, scores_of
from distilens.specs import Registry

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


def check_taps(parts: Iterable[str], model: Model) -> None:
    """Raise a `UserError` where an explainer reads a tap that the model does not have, before anything is trained."""
    for part in parts:
        tap = getattr(EXPLAINERS.build(part), "tap", None)
        if tap is not None:
            with model.reading(tap):
                pass


__all__ = ["EXPLAINERS", "Explainer", "Explanation", "check_taps", "in_chunks", "scores_of"]
