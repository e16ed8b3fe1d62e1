"""The losses of distillation as plain functions, for your own training loop.

Each function takes the student's tensor first and the teacher's second. It returns the mean over the images, `[]`; with
`reduction="none"` it returns one loss per image, `[b]`. No gradient goes to the teacher. Losses of logits are computed in
float32, the others in float32 or float64, also under autocast. The methods of a run call the same functions.

| logits `[images, classes]` | `kd`, `dkd`, `dist`, `mlkd`, `r2kd`; with labels `ce` |
|---|---|
| logits of places `[images, classes, height, width]` | `kd`, `dkd`, `dist`, `cwd`; with masks `dice`, `lovasz` |
| features `[images, channels, height, width]` | `fitnet`, `at`, `nst`, `hierarchical` |
| places of features: where, how similar | `cwd`, `pairwise`, `cross_image`; with masks `ifvd` |
| relations between the images of a batch | `sp`, `rkd`, `pkt`, `crd` |
| maps `[images, height, width]` | `map_match` |
"""

from distilens.losses.answers import ce, dkd, kd, mlkd
from distilens.losses.correlations import dist, r2kd
from distilens.losses.dense import cross_image, cwd, ifvd, pairwise
from distilens.losses.features import at, fitnet, hierarchical, nst
from distilens.losses.maps import map_match
from distilens.losses.regions import dice, lovasz
from distilens.losses.relations import crd, pkt, rkd, sp

__all__ = [
    "at",
    "ce",
    "crd",
    "cross_image",
    "cwd",
    "dice",
    "dist",
    "dkd",
    "fitnet",
    "hierarchical",
    "ifvd",
    "kd",
    "lovasz",
    "map_match",
    "mlkd",
    "nst",
    "pairwise",
    "pkt",
    "r2kd",
    "rkd",
    "sp",
]
