"""Which methods hold for dense answers: the table in the docs, method by method, with a step of training."""

import re
from pathlib import Path

import pytest
import torch

import distilens
from dense import Batch, Data, first_batch, network, pictures
from distilens.core import Objective, check_task
from distilens.foundation.errors import UserError
from distilens.methods import METHODS, build_methods
from distilens.methods.codebook import make_codebook
from distilens.tasks import Classification
from distilens.teachers import LiveTeacher

PAGE = Path(__file__).parents[2] / "docs" / "segmentation-methods.md"
TABLE = dict(re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", PAGE.read_text(), re.M))
LEVELS = "taps=[early,middle,late]"
PARTS = {
    **{name: f"{name}:tap=late" for name in ("pairwise", "ifvd", "mgd", "fitnet", "sp", "rkd", "pkt")},
    **{name: f"{name}:{LEVELS},warmup=0" for name in ("reviewkd", "rtk", "at")},
    "cirkd": "cirkd:tap=late,stored_pixels=50,stored_regions=20",
    "spirit": "spirit:tap=late",
    "vid": "vid:taps=[late]",
    "nst": "nst:taps=[late]",
    "crd": "crd:tap=late,width=8",
    "dkd": "dkd:warmup=0",
    "map_match": "map_match:explainer=attention,tap=late",
    "ig_overlay": "ig_overlay:explainer=gradcam,p=1",
    "kd_layer": "kd_layer:tap=late,templates=6,codebook=BOOK",
}
"""With the taps of the tiny network, and small; without an entry, the method's defaults."""
OTHERS = ["cwd:tap=late", "kd:standardise=true", "kd:top=2", "dist:gamma=0", "crd:tap=late,width=8,negatives=5"]
REFUSED = ["kd_layer:stage=2", "map_match:target=label"]
WITHOUT_TERM = {"cam_fusion", "ig_overlay", "opdf", "powerprop"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Data, Batch, LiveTeacher, Path]:
    data, teacher = pictures(), LiveTeacher(network(8, seed=1))
    book = tmp_path_factory.mktemp("dense") / "book"
    make_codebook(teacher, data, stage=1, tap="late", templates=6).save(book)
    return data, first_batch(data), teacher, book


def test_the_table_has_every_method():
    assert set(TABLE) == set(METHODS)
    assert set(TABLE.values()) == {"yes", "no", "only for these"}


def test_it_says_for_each_method_what_the_method_says(world):
    data = world[0]
    for name, holds in TABLE.items():
        (method,) = build_methods([name]).values()
        for task, wanted in ((data.task, holds != "no"), (Classification(("a", "b", "c")), None)):
            try:
                check_task({name: method}, task)
                allowed = True
            except UserError:
                allowed = False
            if wanted is None:
                wanted = holds != "only for these" and name != "cwd"  # which needs tap= there
            assert allowed == wanted, (name, task.name)


@pytest.mark.parametrize("part", [*(PARTS.get(name, name) for name, holds in TABLE.items() if holds != "no"), *OTHERS])
def test_what_holds_trains_a_step(part, world):
    data, batch, teacher, book = world
    methods = build_methods(["ce:as=labels", part.replace("BOOK", str(book))])
    check_task(methods, data.task)
    width = 8 if "spirit" in methods else 4  # the teacher's
    objective = Objective(network(width).train(), methods)
    objective.prepare(batch, teacher(batch, objective.needs))
    terms = objective(batch, teacher(batch, objective.needs))
    assert all(term.isfinite() and term.ndim == 0 for term in terms.values()), terms
    own = [term for name, term in terms.items() if name != "labels"]
    name = part.partition(":")[0]
    assert bool(own) == (name not in WITHOUT_TERM)
    for term in own or terms.values():
        (gradient,) = torch.autograd.grad(
            term, [next(iter(objective.student.network.early.parameters()))], retain_graph=True
        )
        assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert objective.finish().logits(batch.images).shape == (len(batch), 3, 4, 4)


@pytest.mark.parametrize("part", [*(name for name, holds in TABLE.items() if holds == "no"), *REFUSED])
def test_what_does_not_hold_is_refused_with_the_reason_before_training(part, world):
    data, _, teacher, _ = world
    name = part.partition(":")[0]
    with pytest.raises(UserError, match=rf"{name} is for .*, but the task of these data is segmentation: \w+"):
        distilens.distill(network(), teacher, data, ["ce", part], epochs=1, progress=False)
