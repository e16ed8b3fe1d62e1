"""The losses of distillation as plain functions, for those who have a training loop of their own.

Each takes the student's tensor first and the teacher's second, and gives the mean over the images, `[]`; with
`reduction="none"` it gives one loss per image, `[b]`. No gradient goes to the teacher. Losses of answers are computed in
float32, the others in float32 or float64, also under autocast. The methods of a run call the same functions.

| of answers `[images, classes]` | `kd`, `dkd`, `dist`, `mlkd`, `r2kd`; of labels `ce` |
|---|---|
| of features `[images, channels, height, width]` | `fitnet`, `at`, `nst`, `hierarchical` |
| of relations between the images of a batch | `sp`, `rkd`, `pkt`, `crd` |
| of maps `[images, height, width]` | `map_match` |
"""

from distilens.losses.answers import ce, dkd, kd, mlkd
from distilens.losses.correlations import dist, r2kd
from distilens.losses.features import at, fitnet, hierarchical, nst
from distilens.losses.maps import map_match
from distilens.losses.relations import crd, pkt, rkd, sp

__all__ = [
    "at",
    "ce",
    "crd",
    "dist",
    "dkd",
    "fitnet",
    "hierarchical",
    "kd",
    "map_match",
    "mlkd",
    "nst",
    "pkt",
    "r2kd",
    "rkd",
    "sp",
]
