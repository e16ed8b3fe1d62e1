"""What explanations cost: ours, Captum's, pytorch-grad-cam's and torch-cam's, beside the forwards and backwards that they need.

Everything runs in one process, on the same model (its normalisation included), images and targets, interleaved: one call of each
contestant a round. Reported are median milliseconds and the median of the rounds' ratios to the floor, which is what the
definition needs and nothing else. Memory is the peak above what was there before the call.

    python benchmarks/explainers.py [--parts cam ig loss curves] [--models resnet20 mobilenetv2 torchvision:resnet18,size=224]
        [--batches 1 64 256] [--rounds 5]

Needs the peers: pip install 'distilens[dev]'.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.explain.from_captum import Logits
from distilens.explain.gradcam import GradCAM
from distilens.explain.path import rows_at_once
from distilens.measure import cosine, curves
from distilens.models import build_model
from distilens.models.folding import prepare
from distilens.models.taps import find

Contestants = dict[str, Callable[[], object]]
CLASSES = tuple("abcdefghij")
# first, middle and last stage
TAPS = {
    "resnet20": ("layer1", "layer2", "layer3"),
    "mobilenetv2": ("features.3", "features.10", "last"),
    "torchvision:resnet18,size=224": ("layer1", "layer2", "layer4"),
}


def trained_a_little(name: str, device: torch.device) -> Model:
    """A model whose batch norms have statistics of their own: with those of a fresh one, folding would change nothing."""
    torch.manual_seed(0)
    model = build_model(name, CLASSES, (32, 32)).to(device).train()
    with torch.no_grad():
        for _ in range(3):
            model.logits(torch.rand(16, 3, *model.size, device=device))
    return model.eval()


# ------------------------------------------------------------------------------------------------ measuring


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object]) -> float:
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    return 1000 * (time.perf_counter() - start)


def peak(call: Callable[[], object]) -> float:
    """MiB above what was there: the device's allocator's, or the resident set's high-water mark on a CPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return (status("VmHWM") - before) / 1024


def status(key: str) -> int:
    """A line of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def compete(title: str, contestants: Contestants, rounds: int, *, floor: str, memory: bool = True) -> None:
    """Print a table: milliseconds, ratio to the floor, peak memory."""
    for call in contestants.values():
        call()  # warm-up
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            times[name].append(milliseconds(call))
    print(f"\n{title}\n{'':<44}{'ms':>10}{'× floor':>10}{'peak MiB':>10}")
    for name, taken in times.items():
        ratio = statistics.median(own / base for own, base in zip(taken, times[floor], strict=True))
        most = f"{peak(contestants[name]):>10.0f}" if memory else ""
        print(f"{name:<44}{statistics.median(taken):>10.1f}{ratio:>10.3f}{most}", flush=True)


# ------------------------------------------------------------------------------------------------ contestants


def captum_gradcam(model: Model, tap: str, images: Tensor, target: Tensor) -> Callable[[], object]:
    from captum.attr import LayerGradCam

    peer = LayerGradCam(Logits(model), find(model.network, tap))
    return lambda: peer.attribute(images, target, relu_attributions=True)


def torchcam_gradcam(model: Model, tap: str, images: Tensor, target: Tensor) -> Callable[[], object]:
    from torchcam.methods import GradCAM as Peer

    wrapped, classes = Logits(model), target.tolist()

    def call() -> object:
        model.requires_grad_(True)  # it needs a graph from the weights on
        with Peer(wrapped, target_layer=find(model.network, tap)) as peer, torch.enable_grad():
            return peer(classes, wrapped(images))

    return call


def pytorch_gradcam(model: Model, tap: str, images: Tensor, target: Tensor) -> Callable[[], object]:
    from pytorch_grad_cam import GradCAM as Peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    wrapped, targets = Logits(model), [ClassifierOutputTarget(int(each)) for each in target]

    def call() -> object:
        model.requires_grad_(True)
        with Peer(wrapped, [find(model.network, tap)]) as peer:
            return peer(images, targets)

    return call


def cam_contest(name: str, model: Model, batch: int, rounds: int) -> None:
    images, target = (
        torch.rand(batch, 3, *model.size, device=model.device),
        torch.arange(batch, device=model.device) % 10,
    )
    ready, half = prepare(model), prepare(model, precision="bfloat16")

    def forward(net: Model) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return net.logits(images)

        return call

    for tap in TAPS.get(name, ("last",)):
        path = model.last_tap if tap == "last" else tap
        ours = GradCAM(tap=path)
        contestants: Contestants = {
            "forward (floor)": forward(model),
            "distilens": lambda ours=ours: ours(model, images, target),
            "captum": captum_gradcam(model, path, images, target),
            "torch-cam": torchcam_gradcam(model, path, images, target),
            "pytorch-grad-cam": pytorch_gradcam(model, path, images, target),
            "forward, prepared": forward(ready),
            "distilens, prepared": lambda ours=ours: ours(ready, images, target),
            "captum, prepared": captum_gradcam(ready, path, images, target),
            "torch-cam, prepared": torchcam_gradcam(prepare(model), path, images, target),
            "distilens, prepared, bfloat16": lambda ours=ours: ours(half, images, target),
        }
        compete(f"Grad-CAM · {name} · {path} · batch {batch}", contestants, rounds, floor="forward (floor)")


def ig_contest(name: str, model: Model, rounds: int, *, images: int = 16, steps: int = 32) -> None:
    """All with their residual (Captum's convergence delta), which takes a forward of the images."""
    from captum.attr import IntegratedGradients as Peer

    model.requires_grad_(False)
    pictures, target = (
        torch.rand(images, 3, *model.size, device=model.device),
        torch.arange(images, device=model.device) % 10,
    )
    black = torch.zeros_like(pictures)
    ready, half = prepare(model), prepare(model, precision="bfloat16")
    chunk = rows_at_once(pictures, None)

    def bare(net: Model) -> Callable[[], object]:
        rows = torch.rand(chunk, 3, *model.size, device=model.device)
        aims = torch.arange(chunk, device=model.device) % 10

        def call() -> None:
            for _ in range(images * steps // chunk):
                points = rows.detach().requires_grad_()
                torch.autograd.grad(net.logits(points).gather(1, aims[:, None]).sum(), points)

        return call

    def captum(net: Model, rows: int | None) -> Callable[[], object]:
        peer, options = Peer(Logits(net)), {"n_steps": steps, "internal_batch_size": rows}
        return lambda: peer.attribute(pictures, black, target, return_convergence_delta=True, **options)

    ours = EXPLAINERS.build(f"ig:steps={steps}")
    contestants: Contestants = {
        "forwards and input backwards (floor)": bare(model),
        "distilens": lambda: ours(model, pictures, target),
        **{
            f"captum, {rows or images * steps} rows": captum(model, rows)
            for rows in (chunk // 2, chunk, 2 * chunk, None)
        },
        "floor, prepared": bare(ready),
        "distilens, prepared": lambda: ours(ready, pictures, target),
        **{f"captum, {rows} rows, prepared": captum(ready, rows) for rows in (chunk // 2, chunk)},
        "distilens, prepared, bfloat16": lambda: ours(half, pictures, target),
    }
    title = f"Integrated Gradients · {name} · {images} images × {steps} steps"
    compete(title, contestants, rounds, floor="forwards and input backwards (floor)")
    print("peak MiB by steps:", end="")
    for many in (8, 32, 128):
        explain = EXPLAINERS.build(f"ig:steps={many}")
        print(f"  {many}: {peak(lambda explain=explain: explain(model, pictures, target)):.0f}", end="")
    print()


def loss_contest(name: str, model: Model, batch: int, rounds: int) -> None:
    """A training step, and the same with the distance between Grad-CAM maps in the loss, at the last tap."""
    net = trained_a_little(name, model.device).requires_grad_(True).train()
    tap = net.tap("last")
    images, target = torch.rand(batch, 3, *net.size, device=net.device), torch.arange(batch, device=net.device) % 10
    shape = net(images[:1]).features[tap].shape[-2:]
    maps = torch.rand(batch, *shape, device=net.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True)
    explain = GradCAM(tap=tap)

    def step(guided: bool) -> Callable[[], object]:
        def call() -> None:
            output = net(images)
            loss = functional.cross_entropy(output.logits, target)
            if guided:
                loss = loss + (1 - cosine(explain.from_output(output, target), maps)).nan_to_num().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return call

    contestants = {"training step (floor)": step(False), "with a Grad-CAM loss": step(True)}
    compete(f"Training step · {name} · {tap} · batch {batch}", contestants, rounds, floor="training step (floor)")


def curves_contest(name: str, model: Model, batch: int, rounds: int, *, steps: int = 20) -> None:

    model.requires_grad_(False)
    images, target = (
        torch.rand(batch, 3, *model.size, device=model.device),
        torch.arange(batch, device=model.device) % 10,
    )
    maps = GradCAM()(model, images, target).maps
    ready, half = prepare(model), prepare(model, precision="bfloat16")
    chunk = rows_at_once(images, None, recorded=False)

    class Given:
        """torch-cam's metric, given maps that are there already."""

        def __init__(self, net: Model):
            self.model = Logits(net)

        def __call__(self, *arguments: Any, **options: Any) -> list[Tensor]:
            return [maps]

        def fuse_cams(self, cams: list[Tensor]) -> Tensor:
            return cams[0]

        def _hooks_off(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    def bare(net: Model) -> Callable[[], object]:
        rows = torch.rand(chunk, 3, *model.size, device=model.device)
        # both curves, without the ends, which they share: the image and nothing
        count = batch * (2 * (steps - 1) + 1) + 1

        def call() -> None:
            with torch.inference_mode():
                for start in range(0, count, chunk):
                    net.logits(rows[: count - start]).softmax(1)

        return call

    def peer(net: Model, size: int) -> Callable[[], object]:
        from torchcam.metrics import DeletionInsertionMetric

        def call() -> object:
            metric = DeletionInsertionMetric(Given(net), lambda z: z.softmax(1), steps=steps, batch_size=size)
            metric.update(images, target.tolist())
            return metric.summary()

        return call

    contestants: Contestants = {
        "the forwards (floor)": bare(model),
        "distilens": lambda: curves(model, images, maps, target, steps=steps, fill="mean"),
        **{f"torch-cam, {rows} rows": peer(model, rows) for rows in (8, 32, 64)},  # 32 is its default
        "distilens, prepared": lambda: curves(ready, images, maps, target, steps=steps, fill="mean"),
        "distilens, prepared, bfloat16": lambda: curves(
            half, images, maps, target, steps=steps, fill="mean", chunk=chunk
        ),
    }
    compete(
        f"Insertion and deletion · {name} · {batch} images × {steps} steps",
        contestants,
        rounds,
        floor="the forwards (floor)",
    )


def main(
    parts: tuple[Literal["cam", "ig", "loss", "curves"], ...] = ("cam", "ig", "loss", "curves"),
    models: tuple[str, ...] = ("resnet20", "mobilenetv2", "torchvision:resnet18,size=224"),
    batches: tuple[int, ...] = (1, 64, 256),
    rounds: int = 5,
    threads: int | None = None,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads of a CPU"
    print(f"torch {torch.__version__}, {where}, {rounds} rounds, float32 unless said")
    for name in models:
        model = trained_a_little(name, device)
        large = min(model.size) > 64
        if "cam" in parts:
            for batch in batches:
                cam_contest(name, model, batch, rounds)
        if "ig" in parts:
            ig_contest(name, model, rounds, images=1 if large else 16)
        if "loss" in parts:
            loss_contest(name, model, 16 if large else 128, rounds)
        if "curves" in parts:
            curves_contest(name, model, 4 if large else 16, rounds)


if __name__ == "__main__":
    tyro.cli(main)
