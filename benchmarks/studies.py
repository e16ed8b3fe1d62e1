"""What `benchmarks/methods.py` compares: the studies, and how their students are trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rows import (
    BALANCED,
    BEST,
    BLOCKS,
    BY_SGD,
    DEEP,
    EXPLAINED,
    FIELD,
    GUIDED,
    LED,
    ROWS,
    UNDER_A_VIT,
    Row,
    controls,
    plain,
    with_taps,
)


@dataclass(frozen=True)
class Study:
    """Rows, and how they are trained.

    Attributes:
        tuned: the study whose choice of candidates this one takes; None has its own.
        watch: how many validation images are seen after each epoch, which choose nothing.
    """

    rows: dict[str, Row]
    tuned: str | None = None
    student: str = "resnet8"
    shots: int = 50
    settings: dict[str, Any] = field(default_factory=dict)
    watch: int = 64


MUON = "muon:lr=0.08,momentum=0.6,rest_lr=0.1,weight_decay=5e-4"
FEW = {"epochs": 100, "batch_size": 32, "optimizer": MUON, "schedule": "one_cycle:warmup=0.15", "select": "last"}

STUDIES = {
    "few": Study(
        ROWS
        | FIELD
        | BALANCED
        | BY_SGD
        | controls(BEST, "class maps")
        | controls("kd + gradcam", "gradcam", ("maps permuted",))
        | controls("kd + attention", "attention", ("maps permuted",))
        | controls(
            "kd + overlay", "overlay", ("maps permuted", "maps mirrored", "blobs with the maps' values", "centred maps")
        ),
        settings=FEW,
    ),
    # a method named beside kd without any number: does it do harm? One folder (--out) for each pair
    "defaults": Study(plain(), settings={**FEW, "epochs": 30}),
    "defaults, mobile": Study(plain(), student="mobilenetv2:width=0.25", settings={**FEW, "epochs": 30}),
    "defaults, vit": Study(
        plain({name: f"{name}:{BLOCKS}" for name in DEEP}, without=("simkd",)), settings={**FEW, "epochs": 30}
    ),
    # paper 0: the map as an input; what is compared is the area under the curve of validation, and the end
    "fusion": Study(
        {
            "kd": ROWS["kd"],
            "null": Row(((*GUIDED, "cam_fusion"),)),
            "null, constant maps": Row(((*GUIDED, "cam_fusion"),), control="random_maps:kind=constant"),
            "null, maps permuted": Row(((*GUIDED, "cam_fusion"),), control="permuted:only=maps"),
            "null, a random network's maps": Row(((*GUIDED, "cam_fusion"),), control="random_maps:kind=network"),
            "null, gate": Row(((*GUIDED, "cam_fusion:fuse=gate"),)),
            "null, film": Row(((*GUIDED, "cam_fusion:fuse=film"),)),
            "self": Row(((*GUIDED, "cam_fusion:deploy=self"),)),
            "teacher, as published": Row(((*GUIDED, "cam_fusion:deploy=teacher"),)),
        },
        tuned="few",
        settings=FEW,
        watch=1000,
    ),
    # paper 1: whom to follow
    "teachers": Study(
        {
            "the first alone": Row((EXPLAINED,)),
            "mean": Row((EXPLAINED,), follow="mean"),
            "random": Row((EXPLAINED,), follow="random"),
            **{
                judge: Row((EXPLAINED,), follow=f"best_explained:judge={judge}")
                for judge in ("confidence", "average_drop", "insertion", "focus", "consensus")
            },
            "insertion, drawn": Row((EXPLAINED,), follow="best_explained:judge=insertion,tau=0.05"),
            "insertion, no gate": Row((EXPLAINED,), follow="best_explained:judge=insertion,gate=false"),
            "insertion, without maps": Row((GUIDED,), follow="best_explained:judge=insertion"),
            "mean, without maps": Row((GUIDED,), follow="mean"),
        },
        settings=FEW,
    ),
    # paper 3: a layer of templates; without supervision (weight=0) it has the same parameters
    "layer": Study(
        {
            "ce": Row((("ce",),)),
            **{f"{k} templates": Row((("ce", f"kd_layer:templates={k}"),)) for k in (64, 256, 1024)},
            **{f"{k} templates, untaught": Row((("ce", f"kd_layer:templates={k},weight=0"),)) for k in (64, 256, 1024)},
            "256 templates, released": Row((("ce", "kd_layer:templates=256,release=true"),)),
            "256 templates and stage 2": Row((("ce", "kd_layer:templates=256", "kd_layer:stage=2,as=second"),)),
            "kd": ROWS["kd"],
            "kd and 256 templates": Row(((*GUIDED, "kd_layer:templates=256"),)),
        },
        tuned="few",
        settings=FEW,
    ),
    # what the background gives away: the test set's does not; recipes/shapes-shortcut.toml
    "shortcut": Study(
        {
            "labels": Row((("ce",),)),
            "kd": ROWS["kd"],
            "kd + gradcam": ROWS["kd + gradcam"],
            "kd + attention": ROWS["kd + attention"],
            BEST: ROWS[BEST],
            **controls(BEST, "class maps", ("maps permuted", "a random network's maps")),
        },
        shots=150,
        settings={**FEW, "epochs": 50},
    ),
    # the settings of recipes/shapes-shortcut.toml, with the weights that CIFAR-10's validation chose
    "shortcut, shorter": Study(
        {
            "ce": Row((("ce",),)),
            **LED,
            **controls(BEST, "class maps", ("maps permuted", "a random network's maps")),
        },
        tuned="few",
        shots=150,
        settings={**FEW, "epochs": 30},
    ),
    # the settings of recipes/few-shot-class-maps.toml
    "longer": Study(
        {name: ROWS[name] for name in ("kd", BEST)} | controls(BEST, "class maps", ("maps permuted",)),
        tuned="few",
        settings={**FEW, "epochs": 150},
    ),
    # another family, with the weights that ResNet-20 -> ResNet-8 chose
    "few, vit": Study(
        {name: (ROWS | FIELD)[name] for name in ("kd", "kd standardised", *UNDER_A_VIT)}
        | {name: with_taps((ROWS | FIELD)[name]) for name in ("kd + attention", "kd + reviewkd")},
        tuned="few",
        settings=FEW,
    ),
    "two hundred": Study(
        {"labels": ROWS["labels"], **LED},
        tuned="few",
        shots=200,
        settings={**FEW, "epochs": 30},
    ),
}
