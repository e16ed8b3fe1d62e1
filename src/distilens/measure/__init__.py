"""What a trained model does, in numbers: accuracy, agreement, likeness of maps, cost. Every number says n and its interval."""

from distilens.measure.accuracy import Share, accuracy, agreement, predict, share
from distilens.measure.cost import latency, macs, parameters
from distilens.measure.likeness import cosine, energy_in_mask, mean_interval

__all__ = [
    "Share",
    "accuracy",
    "agreement",
    "cosine",
    "energy_in_mask",
    "latency",
    "macs",
    "mean_interval",
    "parameters",
    "predict",
    "share",
]
