"""The eight combinations of the Integrated-Gradients paper (KD, IG, AT) for its 4.12 × smaller student, on all of CIFAR-10.

MobileNetV2 teaches its own first 14 of 19 blocks. The lists with IG are trained twice: with the image's own map, moved with the
image (aligned), and with another image's (permuted), which is what the paper's published code does. Students are trained side by
side on the one card, a process each; the teacher's answers are recorded once before and read by all. Validation, a tenth of the
training images, chooses each student's epoch; the test split is read once a student. As many seeds as time lets.

The schedule is not the paper's (100 epochs of 64 images, Adam at a constant 1e-3): it is as short as a quarter of an hour wants.

Source: Hernandez, Chang and Nordling 2025 (arXiv 2503.13008); `recipes/ig-overlay.toml` has their numbers.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from distilens.core import Model, Teacher, needs_of
from distilens.data import Data, load
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.foundation.devices import processes
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.models.saved import load_model, save_model
from distilens.teachers import LiveTeacher, PermutedTeacher, StoredTeacher, nobody
from distilens.teachers.needs import Need
from distilens.training.log import Log
from distilens.training.loop import make_accelerator, train
from distilens.training.settings import Training
from gpu_parts.bench import Bench, OutOfTime, percent_right
from gpu_parts.card import Rows

KD = ["ce:weight=0.99", "kd:temperature=2.5,weight=0.01"]
STEPS = 8
SEEDS = 10


def lists(tiny: bool) -> dict[str, tuple[list[str], bool]]:
    """By name: the methods, and whether maps are another image's."""
    ig = f"ig_overlay:p=0.1,target=label,explainer=[ig:steps={2 if tiny else STEPS},channels=size]"
    at = "at:taps=[features.9],weight=0.8"
    plain = {"student": ["ce"], "KD": KD, "AT": ["ce", at], "KD + AT": [*KD, at]}
    shown = {"IG": ["ce", ig], "KD + IG": [*KD, ig], "IG + AT": ["ce", ig, at], "KD + IG + AT": [*KD, ig, at]}
    found = {name: (parts, False) for name, parts in plain.items()}
    for name, parts in shown.items():
        found[name] = (parts, False)
        found[f"{name}, permuted"] = (parts, True)
    return {name: found[name] for name in ("student", "KD + IG + AT", "KD + IG + AT, permuted")} if tiny else found


def notations(tiny: bool) -> tuple[str, str]:
    pixels = "mean=[0.4914,0.4822,0.4465],std=[0.2471,0.2435,0.2616]"
    teacher = f"mobilenetv2:{'width=0.25,' if tiny else ''}{pixels}"
    student = f"shrink:blocks=5{',model=[mobilenetv2:width=0.25]' if tiny else ''},mean=[0,0,0],std=[1,1,1]"
    return teacher, student


def settings(tiny: bool) -> Training:
    epochs = 1 if tiny else 16
    return Training(
        epochs=epochs, batch_size=64 if tiny else 256, optimizer="adam:lr=2e-3", schedule="one_cycle", variants=epochs,
        augment="crop:padding=4,flip=random", log_every=10**6,
    )  # fmt: skip


def rows(bench: Bench) -> Rows:
    yield "teacher", lambda: teach(bench)
    yield "answers", lambda: record(bench)
    for seed in range(bench.of(SEEDS, 1)):
        yield f"seed {seed}", lambda seed=seed: side_by_side(bench, seed)


def teach(bench: Bench) -> dict[str, Any]:
    torch.manual_seed(0)
    epochs = bench.of(20, 1)
    chosen = Training(epochs=epochs, batch_size=bench.of(256, 64), optimizer="sgd:lr=0.2", schedule="one_cycle")
    model, watch = bench.train(bench.model(notations(bench.tiny)[0]), build_methods(["ce"]), bench.data, chosen)
    save_model(model, bench.folder / "mobilenet")
    return {"epochs": epochs, "seconds": round(watch.ends[-1], 1), **scores(model, bench.data, bench.device)}


def scores(model: Model, data: Data, device: torch.device) -> dict[str, float]:
    return {name: percent_right(model, getattr(data, name), device) for name in ("validation", "test")}


def record(bench: Bench) -> dict[str, Any]:
    """All that any list asks of the teacher, for all epochs: logits and attention of each variant, IG of each image."""
    accelerator, chosen = make_accelerator(settings(bench.tiny)), settings(bench.tiny)
    teacher = LiveTeacher(load_model(bench.folder / "mobilenet").to(bench.device))
    stored = StoredTeacher(bench.folder / "mobilenet-answers", teacher, variants=chosen.epochs)
    asked = needs_of(method for parts, _ in lists(bench.tiny).values() for method in build_methods(parts).values())
    each = [Need.parse(text) for text in asked]
    still = [need.name for need in each if need.of == "canonical"]
    moving = [need.name for need in each if need.of != "canonical"]
    size, start = bench.of(1024, 64), time.monotonic()
    with accelerator.autocast():
        for batch in Batches(bench.data.train, size, device=bench.device):
            stored(batch, still)
            if bench.left < 0:
                raise OutOfTime("the teacher's maps were not recorded in time")
        maps = time.monotonic() - start
        options = {
            "ordered": True,
            "device": bench.device,
            "variants": chosen.epochs,
            "variant_seed": chosen.variant_seed,
        }
        batches = Batches(bench.data.train, size, augment=AUGMENTS.build(chosen.augment), **options)
        for epoch in range(chosen.epochs):
            for batch in batches.epoch(epoch):
                stored(batch, moving)
            if bench.left < 0:
                raise OutOfTime("the teacher's answers were not recorded in time")
    seconds = time.monotonic() - start
    return {"answers": stored.recorded, "seconds": round(seconds, 1), "of_it_maps": round(maps, 1), "steps": STEPS}


def side_by_side(bench: Bench, seed: int) -> dict[str, Any]:
    """One seed of all lists, several at a time."""
    names, at_once = list(lists(bench.tiny)), bench.of(6, 2)
    done: dict[str, Any] = {}
    start = time.monotonic()
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn"), initializer=quiet) as pool:
        jobs: dict[Future, str] = {
            pool.submit(learn, bench.notation, str(bench.folder), name, seed, bench.tiny): name for name in names
        }
        waiting = set(jobs)
        while waiting:
            ended, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            done |= {jobs[job]: job.result() for job in ended}
            spent = time.monotonic() - start
            rest = spent / len(done) * len(waiting) if len(done) >= at_once else 0.0
            if waiting and (bench.left < 0 or rest > bench.left + 10):
                for process in list(pool._processes.values()):
                    process.terminate()
                raise OutOfTime(
                    f"{len(done)} of {len(names)} students were trained; about {rest:.0f} s more were needed"
                )
    return {
        "epochs": settings(bench.tiny).epochs,
        "seconds": round(time.monotonic() - start, 1),
        "at_once": at_once,
        "test": {name: done[name]["test"] for name in names},
        "validation": {name: done[name]["validation"] for name in names},
        "seconds_a_student": round(statistics.median(one["seconds"] for one in done.values()), 1),
    }


def quiet() -> None:
    torch.set_num_threads(1)


def learn(notation: str, folder: str, name: str, seed: int, tiny: bool) -> dict[str, Any]:
    """One student, in a process of its own, from what is recorded: the teacher is not there."""
    data, device = load(notation), processes().device
    parts, permuted = lists(tiny)[name]
    methods = build_methods(parts)
    teacher: Teacher = nobody
    if needs_of(methods.values()):
        teacher = StoredTeacher(Path(folder) / "mobilenet-answers")
        teacher = PermutedTeacher(teacher, only="maps") if permuted else teacher
    torch.manual_seed(seed)
    start = time.monotonic()
    student = build_model(notations(tiny)[1], data.classes, data.size).to(device)
    student = train(student, methods, data, settings(tiny), teacher=teacher, seed=seed, log=Log())
    return {"seconds": time.monotonic() - start, **scores(student, data, device)}
