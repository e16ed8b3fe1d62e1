"""The registry of methods, by name. Each method is one small file; to add one, write the file and a line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distilens.foundation.errors import UserError
from distilens.foundation.notation import Registry, Spec

if TYPE_CHECKING:
    from distilens.core import Method


Share = Annotated[float, Field(ge=0, le=1)]


def term(
    *, weight: Annotated[float, Field(ge=0)] = 1.0, warmup: Share = 0.0, decay: Share = 0.0, as_: str | None = None
) -> None:
    """The options of every method: the weight of its term, the term's warm-up and decay, and the term's name in the log.

    The term grows from 0 over the first share `warmup` of the steps and falls to 0 over the last share `decay`, both linearly.
    """


METHODS = Registry(
    "method",
    {
        "ce": "distilens.methods.ce:CE",
        "kd": "distilens.methods.kd:KD",
        "ig_overlay": "distilens.methods.ig_overlay:IGOverlay",
        "cam_fusion": "distilens.methods.cam_fusion:CamFusion",
        "map_match": "distilens.methods.map_match:MapMatch",
        "at": "distilens.methods.at:AT",
        "kd_layer": "distilens.methods.kd_layer:KDLayer",
        # labels
        "dice": "distilens.methods.dice:Dice",
        "lovasz": "distilens.methods.lovasz:Lovasz",
        # answers
        "dkd": "distilens.methods.dkd:DKD",
        "dist": "distilens.methods.dist:DIST",
        "mlkd": "distilens.methods.mlkd:MLKD",
        "r2kd": "distilens.methods.r2kd:R2KD",
        "osakd": "distilens.methods.osakd:OSAKD",
        # features
        "fitnet": "distilens.methods.fitnet:FitNet",
        "vid": "distilens.methods.vid:VID",
        "nst": "distilens.methods.nst:NST",
        "reviewkd": "distilens.methods.reviewkd:ReviewKD",
        "rtk": "distilens.methods.rtk:RTK",
        "simkd": "distilens.methods.simkd:SimKD",
        "spirit": "distilens.methods.spirit:Spirit",
        "mgd": "distilens.methods.mgd:MGD",
        # places of an image
        "cwd": "distilens.methods.cwd:CWD",
        "pairwise": "distilens.methods.pairwise:Pairwise",
        "ifvd": "distilens.methods.ifvd:IFVD",
        "cirkd": "distilens.methods.cirkd:CIRKD",
        # relations between images
        "sp": "distilens.methods.sp:SP",
        "rkd": "distilens.methods.rkd:RKD",
        "pkt": "distilens.methods.pkt:PKT",
        "crd": "distilens.methods.crd:CRD",
        # the student's own weights
        "opdf": "distilens.methods.opdf:OPDF",
        "powerprop": "distilens.methods.powerprop:PowerProp",
    },
    common=term,
)


def build_methods(parts: str | Sequence[str | Mapping[str, Any] | Spec | Method]) -> dict[str, Method]:
    """Build a run's list of methods, as term name -> method. Objects stay as they are; a single string is one method.

    Raises:
        UserError: the list has problems; the message names all of them.
    """
    problems, methods = [], {}
    for part in [parts] if isinstance(parts, str) else parts:
        try:
            if not isinstance(part, str | Mapping | Spec):
                name, method = type(part).__name__.lower(), part
            else:
                spec = METHODS.resolve(part)
                method = METHODS.build(spec)
                method.notation = str(spec)
                for option in ("weight", "warmup", "decay"):
                    setattr(method, option, spec.options[option])
                name = spec.options["as"] or spec.name
            if name in methods:
                raise UserError(f"two terms are called {name!r}: give one of them another name with as=")
            methods[name] = method
        except UserError as problem:
            problems.append(str(problem))
    if problems:
        raise UserError("\n".join(problems))
    return methods
