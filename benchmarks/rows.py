"""The rows of `benchmarks/methods.py`: lists of methods as they are compared, with their candidates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A list of methods as it is compared.

    Attributes:
        methods: the candidates, among which `--tune` chooses.
        control: a wrapper around the teacher, in the notation of CONTROLS.
        follow: how several teachers are made one; None asks the first alone.
        like: the row whose choice of candidate this one takes, as controls do.
        settings: of the training, where they are not the study's.
        aside: answers a question of its own, and is no list to be recommended.
        live: ask the teacher at each step: features of fine grids are slower read from the disk than made.
    """

    methods: tuple[tuple[str, ...], ...]
    control: str | None = None
    follow: str | None = None
    like: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    aside: bool = False
    live: bool = False


def each(*options: str, before: tuple[str, ...] = ()) -> tuple[tuple[str, ...], ...]:
    """Candidates that differ in one method."""
    return tuple((*before, option) for option in options)


CE, KD = "ce:weight=0.1", "kd:temperature=4,weight=3"
GUIDED = (CE, KD)
STANDARD = "kd:temperature=2,standardise=true"
CLASS_MAPS = "map_match:explainer=cam,classes=all,distance=cosine"
IG = "ig_overlay:explainer=[ig:steps=32,channels=size]"

BEST = "kd + class maps"
CONTROLLED = {
    "maps permuted": "permuted:only=maps",
    "maps mirrored": "misregistered",
    "blobs with the maps' values": "random_maps:kind=blobs",
    "centred maps": "random_maps:kind=centre",
    "constant maps": "random_maps:kind=constant",
    "a random network's maps": "random_maps:kind=network",
}


def controls(row: str, named: str, which: tuple[str, ...] = tuple(CONTROLLED)) -> dict[str, Row]:
    """The same list with maps that say less: what is left of its gain is not the explanation."""
    return {f"{named}, {name}": dataclasses.replace(ROWS[row], control=CONTROLLED[name], like=row) for name in which}


ROWS = {
    "labels": Row(each("ce", "ce:smoothing=0.1", "ce:smoothing=0.2")),
    "kd": Row(each("kd:temperature=4,weight=1", KD, "kd:temperature=4,weight=10", before=(CE,))),
    "kd standardised": Row(each(*(f"{STANDARD},weight={w}" for w in (3, 9, 27)), before=(CE,))),
    "kd + gradcam": Row(each(*(f"map_match:weight={w}" for w in (1, 5, 20)), before=GUIDED)),
    "kd + gradcam++": Row(each(*(f"map_match:explainer=gradcam++,weight={w}" for w in (1, 5, 20)), before=GUIDED)),
    "kd + attention": Row(each(*(f"at:weight={w}" for w in (300, 1000, 3000)), before=GUIDED)),
    BEST: Row(each(*(f"{CLASS_MAPS},pool=4,weight={w}" for w in (10, 25, 60)), before=GUIDED)),
    "kd + class maps + attention": Row(
        each(*(f"at:weight={w}" for w in (300, 1000, 3000)), before=(*GUIDED, f"{CLASS_MAPS},pool=4,weight=25"))
    ),
    "kd + overlay": Row(each(*(f"{IG},p={p}" for p in (0.1, 0.3, 0.6)), before=GUIDED)),
    "labels + overlay": Row(each(*(f"{IG},p={p}" for p in (0.1, 0.3, 0.6)), before=("ce",))),
}


def beside(*options: str, live: bool = False) -> Row:
    """Candidates beside the labels and `kd`."""
    return Row(each(*options, before=GUIDED), live=live)


def instead(*options: str) -> Row:
    """Candidates beside the labels, in the place of `kd`."""
    return Row(each(*options, before=(CE,)))


FIELD = {
    "dkd": instead("dkd:beta=2,weight=1", "dkd:beta=8,weight=1", "dkd:beta=2,weight=4", "dkd:beta=2,weight=12"),
    "dist": instead(*(f"dist:weight={w}" for w in (1, 3, 10, 0.3))),
    "mlkd": instead(*(f"mlkd:weight={w}" for w in (0.2, 0.5, 1.5, 0.05, 0.02))),
    "r2kd": instead(*(f"r2kd:weight={w}" for w in (3, 10, 30))),
    "osakd": Row(each(*(f"osakd:weight={w}" for w in (0.3, 1, 3, 0.1, 0.03)), before=("ce",))),
    "kd + fitnet": beside(*(f"fitnet:weight={w}" for w in (1, 10, 100, 300, 1000))),
    "kd + vid": beside(*(f"vid:weight={w}" for w in (0.3, 1, 3, 10, 30, 100))),
    "kd + nst": beside(*(f"nst:weight={w}" for w in (10, 50, 250, 1000, 4000))),
    "kd + reviewkd": beside(*(f"reviewkd:weight={w}" for w in (1, 5, 20, 80, 300)), live=True),
    "kd + rtk": beside(*(f"rtk:weight={w}" for w in (300, 1000, 3000)), live=True),
    "simkd": Row((("simkd",), (*GUIDED, "simkd"), (*GUIDED, "simkd:weight=10"))),
    # as large as simkd's, with the teacher's classifier, not taught its features
    "kd, simkd's student": Row(((*GUIDED, "simkd:weight=0"),)),
    "simkd + class maps": Row((("simkd", f"{CLASS_MAPS},pool=4,weight=60"),)),
    "kd + sp": beside(*(f"sp:weight={w}" for w in (300, 1000, 3000, 10000))),
    "kd + rkd": beside(*(f"rkd:weight={w}" for w in (0.1, 0.3, 1))),
    "kd + pkt": beside(*(f"pkt:weight={w}" for w in (3000, 10000, 30000))),
    "kd + crd": beside(*(f"crd:weight={w}" for w in (0.25, 0.8, 2.5))),
    "kd + opdf": beside(*(f"opdf:factors={n}" for n in (2, 3, 4))),
    "kd, half of its weights": beside("powerprop:alpha=1"),  # left out at the end, as powerprop's are
    "kd + powerprop": beside(*(f"powerprop:alpha={a}" for a in (1.5, 2, 3))),
}
"""The field's methods, with weights around the published ones; further ones where the best was at an end."""

UNWEIGHTED = {
    "kd, balanced": (KD, "ce"),
    "kd + class maps, balanced": (KD, "ce", f"{CLASS_MAPS},pool=4"),
    **{f"kd + {name}, balanced": (KD, "ce", name) for name in ("at", "fitnet", "vid", "nst", "sp", "crd")},
}
BALANCED = {name: Row((methods,), settings={"balance": "ratio:0.3"}) for name, methods in UNWEIGHTED.items()}
"""Weights that nobody chose."""
SGD = {"optimizer": "sgd:lr=0.05,momentum=0.9,weight_decay=5e-4"}
BY_SGD = {
    f"{name}, SGD": Row(((*GUIDED, *parts),), settings=SGD, aside=True)
    for name, parts in {
        "kd": (),
        "kd + opdf": ("opdf:factors=2",),
        "kd, half of its weights": ("powerprop:alpha=1",),
        "kd + powerprop": ("powerprop:alpha=1.5",),
        "kd + powerprop, alpha 2": ("powerprop:alpha=2",),
    }.items()
}
"""Muon orthogonalises what it moves of a convolution: a power too, whose gradient is to be large where it is large itself; and
the tensors that `opdf` makes of it are none."""

BLOCKS = "teacher_taps=[blocks.1,blocks.3,blocks.5.norm1]"
"""Of timm:test_vit, whose grids are of one size, for methods of several depths."""
DEEP = ("at", "reviewkd", "rtk")
DEFAULTS = (
    "dkd",
    "dist",
    "mlkd",
    "r2kd",
    "osakd",
    "fitnet",
    "vid",
    "nst",
    "reviewkd",
    "rtk",
    "simkd",
    "sp",
    "rkd",
    "pkt",
    "crd",
)
DEFAULTS += ("opdf", "powerprop", "map_match", "at", "ig_overlay", "cam_fusion", "kd_layer")
"""All methods, as they are without any number."""
FINE = ("reviewkd", "rtk")
"""Those that compare whole features of fine grids."""


def plain(named: dict[str, str] | None = None, without: tuple[str, ...] = ()) -> dict[str, Row]:
    """`kd`, and every method beside it, without numbers."""
    parts = {name: (named or {}).get(name, name) for name in DEFAULTS if name not in without}
    return {"kd": Row((("kd",),)), **{name: Row((("kd", part),), live=name in FINE) for name, part in parts.items()}}


def with_taps(row: Row) -> Row:
    """The same list under the ViT."""
    return dataclasses.replace(row, methods=tuple((*before, f"{last},{BLOCKS}") for *before, last in row.methods))


EXPLAINED = (*GUIDED, "map_match:weight=20")
LEADING = (
    "simkd",
    "kd + reviewkd",
    "kd + class maps + attention",
    BEST,
    "kd + fitnet",
    "kd + vid",
    "kd + attention",
    "kd + nst",
    "kd + gradcam",
)
"""The eight lists that did best at 50 images a class, and the ninth."""
UNDER_A_VIT = ("kd + fitnet", "kd + vid", "kd + nst", "kd + gradcam")
"""Those of them that a ViT can teach as they are."""
LED = {name: (ROWS | FIELD)[name] for name in ("kd", "kd standardised", *LEADING)}
