"""`Metric`: the number by which models are compared, its unit and its direction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """The number by which models are compared.

    Attributes:
        name: as it is logged and shown: `accuracy`, `mean absolute error`.
        unit: `%` for a share in [0, 1], which is shown in per cent; else any unit, or empty.
        higher_is_better: its direction: the best checkpoint has the highest, or the lowest, value.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True

    @classmethod
    def read(cls, entry: Mapping[str, Any] | None) -> Metric:
        """The metric that a file names; the accuracy if it names none."""
        return cls(**entry) if entry else ACCURACY

    def plain(self) -> dict[str, Any]:
        """The metric as plain data."""
        return dataclasses.asdict(self)

    @property
    def better(self) -> Literal["higher", "lower"]:
        return "higher" if self.higher_is_better else "lower"

    @property
    def is_share(self) -> bool:
        """Whether it is a share, written in per cent, with differences in points."""
        return self.unit == "%"

    def rank(self, value: float) -> float:
        """The value, with the sign that makes higher better."""
        return value if self.higher_is_better else -value

    def written(self, value: float) -> str:
        """The value with its unit.

        >>> ACCURACY.written(0.931), Metric("error", "years", False).written(3.2414)
        ('93.1%', '3.241 years')
        """
        return f"{value:.1%}" if self.is_share else f"{value:.4g} {self.unit}".strip()


ACCURACY = Metric("accuracy", "%")
