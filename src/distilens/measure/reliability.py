"""Calibration, whether a model's confidence matches its accuracy: error, reliability, temperature, log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distilens.foundation.estimate import Estimate

BINS = 15
RESAMPLES = 1000
TEMPERATURES = (0.05, 20.0)
"""The search range of the temperature."""


def answered_soundly(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Which images have a label and finite logits: only these have valid probabilities."""
    return (labels >= 0) & logits.isfinite().all(1)


def negative_log_likelihood(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`-log p(label)` per image, in nats, float64: 0 for certain and correct; guessing gives log(classes)."""
    return -logits.double().log_softmax(1).gather(1, labels[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Confidence:
    """A model's confidence in its top class, and whether that class is right.

    Attributes:
        sure: `[n]`, the probability of the top class, in (0, 1].
        right: `[n]`, whether the top class is the label.
        bins: the number of bins, of equal width: `(0, 1/bins], (1/bins, 2/bins], ...`.
    """

    sure: Float[np.ndarray, " n"]
    right: Bool[np.ndarray, " n"]
    bins: int = BINS

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "n classes"],
        labels: Int[Tensor, " n"],
        *,
        temperature: float = 1.0,
        bins: int = BINS,
    ) -> Confidence:
        """The confidence from logits divided by a temperature. All logits must be finite, and all images labelled."""
        sure, first = (logits.double() / temperature).softmax(1).max(1)
        return cls(sure.numpy(), (first == labels).numpy(), bins)

    @cached_property
    def bin(self) -> Int[np.ndarray, " n"]:
        """The bin of each image."""
        return np.searchsorted(np.linspace(0, 1, self.bins + 1)[1:-1], self.sure, side="left")

    def error(self) -> float:
        r"""The expected calibration error: $\sum_b \frac{n_b}{n} |\mathrm{accuracy}_b - \mathrm{confidence}_b|$, in [0, 1].

        Lower is better. On few images, even a perfectly calibrated model does not reach 0: see `floor`.

        Source: Guo et al. 2017 (arXiv 1706.04599), equation 3: bins of equal width, by the confidence of the top class.
        """
        return float(gaps((self.right - self.sure)[None], self.bin[None], self.bins)[0])

    def resampled(self, resamples: int = RESAMPLES) -> Float[np.ndarray, " r"]:
        """The error on bootstrap resamples of the images; the fixed seed gives every model of a split the same images."""
        differences = self.right - self.sure
        samples = rows_drawn(len(self.sure), resamples)
        return np.concatenate([gaps(differences[rows], self.bin[rows], self.bins) for rows in samples])

    def floor(self, resamples: int = RESAMPLES) -> tuple[float, float]:
        """The error of a perfectly calibrated model with the same confidences and n: mean and 97.5 % quantile.

        Source: Bröcker and Smith 2007, consistency resampling (Weather and Forecasting 22)
        """
        random = np.random.default_rng(1)
        errors = []
        for count in parts(len(self.sure), resamples):
            right = random.random((count, len(self.sure))) < self.sure
            errors.append(gaps(right - self.sure, np.broadcast_to(self.bin, right.shape), self.bins))
        every = np.concatenate(errors)
        return float(every.mean()), float(np.quantile(every, 0.975))

    def reliability(self) -> list[dict[str, float | int | None]]:
        """Per bin: `low` and `high`, the number of images, their mean confidence and their accuracy."""
        counts = np.bincount(self.bin, minlength=self.bins)
        sure, right = (np.bincount(self.bin, weights=values, minlength=self.bins) for values in (self.sure, self.right))
        return [
            {
                "low": at / self.bins,
                "high": (at + 1) / self.bins,
                "count": int(count),
                "confidence": float(sure[at] / count) if count else None,
                "accuracy": float(right[at] / count) if count else None,
            }
            for at, count in enumerate(counts)
        ]


def gaps(differences: Float[np.ndarray, "r n"], bin: Int[np.ndarray, "r n"], bins: int) -> Float[np.ndarray, " r"]:
    """The calibration error per row, from the differences (right as 1 or 0, minus confidence) and the bins of the images."""
    flat = bin + bins * np.arange(len(bin))[:, None]
    sums = np.bincount(flat.ravel(), weights=differences.ravel(), minlength=bins * len(bin))
    return np.abs(sums.reshape(len(bin), bins)).sum(1) / bin.shape[1]


def parts(n: int, resamples: int) -> list[int]:
    """The numbers of resamples per chunk, so that memory stays small for any n."""
    most = max(1, min(resamples, 1_000_000 // n))
    return [min(most, resamples - at) for at in range(0, resamples, most)]


def rows_drawn(n: int, resamples: int) -> Iterator[Int[np.ndarray, "r n"]]:
    """Bootstrap resamples of n images, one resample per row; the same for the same n."""
    random = np.random.default_rng(0)
    return (random.integers(0, n, (count, n)) for count in parts(n, resamples))


def fitted_temperature(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """The temperature that minimises the mean negative log-likelihood of `logits / temperature`, between 0.05 and 20.

    The accuracy does not change. Above 1, the model was overconfident. A limit of the range means that there is no minimum inside
    it, for example if all images are right.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(negative_log_likelihood(logits.double() / math.exp(log_temperature), labels).mean())

    low, high = map(math.log, TEMPERATURES)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4}).x
    return math.exp(min((low, high, best), key=loss))


def is_at_limit(temperature: float) -> bool:
    """Whether the search ended at a limit of its range."""
    return any(math.isclose(temperature, limit) for limit in TEMPERATURES)


def calibration(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], *, temperature: float = 1.0
) -> dict[str, Any]:
    """Calibration error and negative log-likelihood with 95 % intervals, as plain data; None if no image can be scored.

    Intervals come from a bootstrap over images with a fixed seed. The error has the basic interval, `2 error - quantile`: noise
    raises the error, and raises it again in a resample, so plain quantiles would be too high.
    """
    sound = answered_soundly(logits, labels)
    left_out = {"n": int(sound.sum()), "not finite": int((~logits[labels >= 0].isfinite().all(1)).sum())}
    if not left_out["n"]:
        return {"ece": None, "nll": None, **left_out}
    logits, labels = logits[sound], labels[sound]
    confidence = Confidence.of(logits, labels, temperature=temperature)
    losses = negative_log_likelihood(logits / temperature, labels).numpy()
    error = confidence.error()
    low, high = (max(0.0, end) for end in basic_interval(error, confidence.resampled()))
    floor, floor_high = confidence.floor()
    return {
        "ece": Estimate(error, low, high).plain("value") | {"floor": floor, "floor high": floor_high},
        "nll": Estimate(float(losses.mean()), *quantiles(resampled_means(losses))).plain("value"),
        "bins": confidence.reliability(),
        **left_out,
    }


def quantiles(resamples: Float[np.ndarray, " r"]) -> tuple[float, float]:
    """The ends of the 95 % interval of a bootstrap, by its quantiles."""
    return float(np.quantile(resamples, 0.025)), float(np.quantile(resamples, 0.975))


def basic_interval(value: float, resamples: Float[np.ndarray, " r"]) -> tuple[float, float]:
    """The ends of the basic 95 % interval of a bootstrap: the quantiles, mirrored at the value."""
    low, high = quantiles(resamples)
    return 2 * value - high, 2 * value - low


def resampled_means(values: Float[np.ndarray, " n"], resamples: int = RESAMPLES) -> Float[np.ndarray, " r"]:
    """The means over bootstrap resamples, with the same images as in `Confidence.resampled`."""
    return np.concatenate([values[rows].mean(1) for rows in rows_drawn(len(values), resamples)])


def with_temperature(test: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> dict[str, Any] | None:
    """The temperature fitted on validation, and the calibration on test with it; None if there is no image to fit it on.

    Args:
        test: logits `[n classes]` and labels `[n]`.
        validation: the same for the split that the temperature is fitted on.
    """
    sound = answered_soundly(*validation)
    if not sound.any():
        return None
    temperature = fitted_temperature(validation[0][sound], validation[1][sound])
    return {
        "value": temperature,
        "at limit": is_at_limit(temperature),
        "n": int(sound.sum()),
        **{key: value for key, value in calibration(*test, temperature=temperature).items() if key in ("ece", "nll")},
    }


def calibration_apart(
    logits: Float[Tensor, "n classes"], others: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]
) -> dict[str, dict[str, float | int | None] | None]:
    """The differences of two models' calibration errors and negative log-likelihoods, on the same images.

    Intervals come from a bootstrap over images, as in `calibration`.
    """
    sound = answered_soundly(logits, labels) & answered_soundly(others, labels)
    n = int(sound.sum())
    if n < 2:
        return {"ece": None, "nll": None}
    one, other = (Confidence.of(values[sound], labels[sound]) for values in (logits, others))
    error = one.error() - other.error()
    spread = one.resampled() - other.resampled()
    losses = [negative_log_likelihood(values[sound], labels[sound]).numpy() for values in (logits, others)]
    gain = losses[0] - losses[1]
    return {
        "ece": Estimate(error, *basic_interval(error, spread), n).plain(),
        "nll": Estimate(float(gain.mean()), *quantiles(resampled_means(gain)), n).plain(),
    }
