"""The explainers, by name: each makes maps `[b h w]` of a model for images and target classes.

An explainer is called for evaluation, `explainer(model, images, target) -> Explanation`, and leaves no trace in the model;
those that a loss can use also have `from_output(output, target, create_graph=True) -> maps`, on the features and logits that
the step already has.
"""

from distilens.explain.explanation import Explanation, in_chunks, scores_of
from distilens.specs import Registry

EXPLAINERS = Registry(
    "explainer",
    {
        "gradcam": "distilens.explain.gradcam:GradCAM",
        "ig": "distilens.explain.integrated_gradients:IntegratedGradients",
    },
)

__all__ = ["EXPLAINERS", "Explanation", "in_chunks", "scores_of"]
