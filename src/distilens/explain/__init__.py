"""The explainers, by name: each makes maps `[b h w]` of a model for images and target classes.

An explainer is called for evaluation, `explainer(model, images, target) -> Explanation`, and leaves no trace in the model;
those that a loss can use also have `from_output(output, target, create_graph=True) -> maps`, on the features and logits that
the step already has.
"""

from collections.abc import Iterable

from distilens.core import Model
from distilens.explain.explanation import Explanation, in_chunks, scores_of
from distilens.specs import Registry

EXPLAINERS = Registry(
    "explainer",
    {
        "gradcam": "distilens.explain.gradcam:GradCAM",
        "ig": "distilens.explain.integrated_gradients:IntegratedGradients",
    },
)


def check_taps(parts: Iterable[str], model: Model) -> None:
    """Raise a `UserError` where an explainer reads a tap that the model does not have, before anything is trained."""
    for part in parts:
        tap = getattr(EXPLAINERS.build(part), "tap", None)
        if tap is not None:
            with model.reading(tap):
                pass


__all__ = ["EXPLAINERS", "Explanation", "check_taps", "in_chunks", "scores_of"]
