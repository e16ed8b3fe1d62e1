"""Explainers beside Captum's, where it is installed, and a distance correlation of 4,096 samples."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.explain.from_captum import Logits
from distilens.measure.transfer.distance_correlation import distance_correlation
from distilens.models import build_model
from distilens.models.folding import prepare
from gpu_parts.bench import Bench
from gpu_parts.card import Rows

STEPS = 32


def rows(bench: Bench) -> Rows:
    for notation in bench.of(("resnet56", "mobilenetv2"), ("resnet8",)):
        yield f"{notation} · Grad-CAM", lambda notation=notation: gradcam(bench, notation)
        yield f"{notation} · IG, {STEPS} steps", lambda notation=notation: ig(bench, notation)
    count = bench.of(4096, 128)
    yield f"distance correlation, n = {count}", lambda: correlated(bench, count)


def attributions() -> Any:
    """Captum, or None where it cannot be imported, with matplotlib, which it needs."""
    try:
        return importlib.import_module("captum.attr")
    except ImportError:
        return None


def subject(bench: Bench, notation: str) -> tuple[Model, Tensor, Tensor]:
    """A model whose batch norms have seen images, some images, and the model's own answers."""
    torch.manual_seed(0)
    model = build_model(notation, tuple("abcdefghij"), (32, 32)).to(bench.device).train()
    images = torch.rand(bench.of(256, 8), 3, 32, 32, device=bench.device)
    with torch.no_grad():
        for _ in range(3):
            model.logits(images)
        model.eval()
        return model, images, model.logits(images).argmax(1)


def compared(bench: Bench, count: int, floor: Callable, ours: Callable[[], Tensor], theirs: Callable | None) -> dict:
    """Images a second of both, beside what the definition needs; and how far the maps are apart, of the largest value."""
    found = {
        "floor_images_per_second": round(count / bench.seconds(floor)),
        "images_per_second": round(count / bench.seconds(ours)),
    }
    found["share"] = round(found["images_per_second"] / found["floor_images_per_second"], 3)
    if theirs is not None:
        found["captum_images_per_second"] = round(count / bench.seconds(theirs))
        found["times_captum"] = round(found["images_per_second"] / found["captum_images_per_second"], 2)
        a, b = ours().float(), theirs().detach().float()
        found["apart"] = float(f"{float((a - b.reshape(a.shape)).abs().max() / b.abs().max()):.2g}")
    return found


def gradcam(bench: Bench, notation: str) -> dict[str, Any]:
    model, images, target = subject(bench, notation)
    tap = model.path_of("last")
    explainer, ready = EXPLAINERS.build("gradcam"), prepare(model, keep=[tap])
    theirs = None
    if captum := attributions():
        attribution = captum.LayerGradCam(Logits(model), model.network.get_submodule(tap))

        def theirs() -> Tensor:
            return attribution.attribute(images, target=target, relu_attributions=True)[:, 0]

    def floor() -> None:
        with torch.no_grad():
            model.logits(images)

    return compared(bench, len(images), floor, lambda: explainer(ready, images, target).maps, theirs)


def ig(bench: Bench, notation: str) -> dict[str, Any]:
    model, images, target = subject(bench, notation)
    steps = bench.of(STEPS, 2)
    explainer, ready = EXPLAINERS.build(f"ig:steps={steps},baseline=zero,rule=riemann"), prepare(model)
    theirs = None
    if captum := attributions():
        attribution = captum.IntegratedGradients(Logits(model))

        def theirs() -> Tensor:
            found = attribution.attribute(
                images, baselines=0.0, target=target, n_steps=steps, method="riemann_middle", internal_batch_size=1024
            )
            return found.sum(1)

    def floor() -> None:
        for _ in range(steps):
            point = images.clone().requires_grad_()
            torch.autograd.grad(ready.logits(point).gather(1, target[:, None]).sum(), point)

    return compared(bench, len(images), floor, lambda: explainer(ready, images, target).maps, theirs)


def correlated(bench: Bench, count: int) -> dict[str, Any]:
    """Of two sets of features that share half of their columns."""
    torch.manual_seed(0)
    x = torch.randn(count, 256, device=bench.device)
    y = torch.cat([x[:, :128], torch.randn(count, 128, device=bench.device)], 1)
    value = 0.0

    def once() -> None:
        nonlocal value
        value = float(distance_correlation(x, y))

    peak = bench.peak(once)
    seconds = bench.seconds(once, repeats=3, warm_up=1)
    first = bench.of(512, 64)
    here, there = (distance_correlation(x[:first].to(to), y[:first].to(to)) for to in (bench.device, "cpu"))
    found = {"n": count, "seconds": round(seconds, 4), "value": round(value, 4)}
    found["off_the_cpu"] = float(f"{abs(float(here) - float(there)):.1g}")
    return found | ({"peak_gib": peak} if peak is not None else {})
