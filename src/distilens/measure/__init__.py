"""What a trained model does, and what its maps are worth, in numbers. Every mean says n and its interval.

Of models: accuracy, agreement, calibration, confusion, cost; `predictions` are all their answers. Of maps: `faithfulness` (does
the model say so?), `localisation` (is it on the evidence?), `sparsity`, `sanity` (does it depend on the model?), `likeness` (of
two maps). Of two models: `transfer` (FSS, RS) and `unicam` (maps of what one knows and the other does not), on
`distance_correlation` and `dependence` (how sure it is).
"""

from distilens.measure.accuracy import Share, accuracy, agreement, predict, share, top_k
from distilens.measure.calibration import Confidence, calibration, fitted_temperature, negative_log_likelihood
from distilens.measure.confusion import confusion, most_confused, worst_errors
from distilens.measure.cost import latency, macs, parameters
from distilens.measure.dependence import Contrast, Dependence, contrast, dependence
from distilens.measure.distance_correlation import (
    Distances,
    distance_correlation,
    partial,
    remove,
    semi_partial,
)
from distilens.measure.explained import most_relevant
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
from distilens.measure.levels import features_at
from distilens.measure.likeness import cosine, mean_interval, pearson, spearman, ssim, top_intersection
from distilens.measure.localisation import energy_in_mask, pointing_game
from distilens.measure.paired import share_apart
from distilens.measure.predictions import Predictions, SplitPredictions, read_predictions
from distilens.measure.sanity import randomisation, randomised, stability
from distilens.measure.sparsity import complexity, sparseness
from distilens.measure.transfer import cka, fss, rs
from distilens.measure.unicam import UniCAM

__all__ = [
    "Confidence",
    "Contrast",
    "Curves",
    "Dependence",
    "Distances",
    "Predictions",
    "Share",
    "SplitPredictions",
    "UniCAM",
    "accuracy",
    "agreement",
    "average_drop",
    "average_gain",
    "calibration",
    "cka",
    "complexity",
    "confusion",
    "contrast",
    "cosine",
    "curves",
    "deletion",
    "dependence",
    "distance_correlation",
    "energy_in_mask",
    "features_at",
    "fitted_temperature",
    "fss",
    "increase_in_confidence",
    "insertion",
    "latency",
    "macs",
    "masked_confidence",
    "mean_interval",
    "most_confused",
    "most_relevant",
    "negative_log_likelihood",
    "noisy_linear",
    "parameters",
    "partial",
    "pearson",
    "pointing_game",
    "predict",
    "randomisation",
    "randomised",
    "read_predictions",
    "remove",
    "road",
    "rs",
    "semi_partial",
    "share",
    "share_apart",
    "sparseness",
    "spearman",
    "ssim",
    "stability",
    "top_intersection",
    "top_k",
    "worst_errors",
]
