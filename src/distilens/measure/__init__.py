"""What a trained model does, and what its maps are worth, in numbers. Every mean says n and its interval.

Of models: accuracy, agreement, cost. Of maps: `faithfulness` (does the model say so?), `localisation` (is it on the evidence?),
`sparsity`, `sanity` (does it depend on the model?), `likeness` (of two maps).
"""

from distilens.measure.accuracy import Share, accuracy, agreement, predict, share
from distilens.measure.cost import latency, macs, parameters
from distilens.measure.faithfulness import (
    Curves,
    average_drop,
    average_gain,
    curves,
    deletion,
    increase_in_confidence,
    insertion,
    masked_confidence,
    road,
)
from distilens.measure.imputation import noisy_linear
from distilens.measure.likeness import cosine, mean_interval, pearson, spearman, ssim, top_intersection
from distilens.measure.localisation import energy_in_mask, pointing_game
from distilens.measure.sanity import randomisation, randomised, stability
from distilens.measure.sparsity import complexity, sparseness

__all__ = [
    "Curves",
    "Share",
    "accuracy",
    "agreement",
    "average_drop",
    "average_gain",
    "complexity",
    "cosine",
    "curves",
    "deletion",
    "energy_in_mask",
    "increase_in_confidence",
    "insertion",
    "latency",
    "macs",
    "masked_confidence",
    "mean_interval",
    "noisy_linear",
    "parameters",
    "pearson",
    "pointing_game",
    "predict",
    "randomisation",
    "randomised",
    "road",
    "share",
    "sparseness",
    "spearman",
    "ssim",
    "stability",
    "top_intersection",
]
