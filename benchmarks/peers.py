"""How others do an epoch of knowledge distillation: the peers of our training step.

Each peer loads, augments and trains as its own sample script does: PIL images one by one through torchvision's transforms in
a DataLoader with that script's number of workers, its loss, its optimizer and what it reads back in every step. All crop
with 4 pixels of padding and flip. Peers train the student that they are given; the teacher is set to eval mode.

    pip install 'distilens[benchmarks]' && python benchmarks/peers.py [--steps 4] [--batch-size 16] [--workers 0]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.interfaces.registry import register_forward_proc_func
from torchdistill.misc.log import MetricLogger, SmoothedValue
from torchvision import transforms

from distilens.models import build_network


@dataclass(frozen=True)
class Task:
    """What a peer is given: networks, images `[n 32 32 3]` (uint8), labels, and DataLoader processes (None: its own number)."""

    teacher: nn.Module
    student: nn.Module
    images: np.ndarray
    labels: np.ndarray
    batch_size: int
    device: torch.device
    workers: int | None = None

    def networks(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher.to(self.device).eval(), self.student.to(self.device).train()

    def loader(self, own_workers: int, **extra: Any) -> DataLoader:
        workers = own_workers if self.workers is None else self.workers
        return DataLoader(Pictures(self, **extra), self.batch_size, shuffle=True, num_workers=workers)


class Pictures(Dataset):
    """What torchvision's CIFAR10 does: an array row as a PIL image, transformed alone; with its index for RepDistiller."""

    def __init__(self, task: Task, indexed: bool = False):
        self.images, self.labels, self.indexed = task.images, task.labels, indexed
        normalise = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
        shift, mirror = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([shift, mirror, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        picture, label = self.transform(Image.fromarray(self.images[index])), int(self.labels[index])
        return (picture, label, index) if self.indexed else (picture, label)


@dataclass(frozen=True)
class Peer:
    """One way to train: its loader, what it does with a batch, and what it puts around the loader to watch an epoch."""

    loader: DataLoader
    step: Callable[[Any], None]
    watch: Callable[[Iterable], Iterator] = iter

    def images_per_second(self, steps: int, *, warm_up: int = 10) -> float:
        """The rate of `steps` steps after `warm_up` others; workers start anew (`warm_up=0` counts that, as an epoch does)."""
        synchronise = torch.cuda.synchronize if torch.cuda.is_available() else int
        batches = chain.from_iterable(self.watch(loader) for loader in repeat(self.loader))
        images, start = 0, time.perf_counter()
        for number, batch in enumerate(islice(batches, warm_up + steps), start=1):
            self.step(batch)
            images += len(batch[1])
            if number == warm_up:
                synchronise()
                images, start = 0, time.perf_counter()
        synchronise()
        return images / (time.perf_counter() - start)


def tutorial(task: Task) -> Peer:
    """PyTorch's own tutorial: float32, Adam, T = 2, 0.25 KL * T^2 + 0.75 CE, `.item()` in each step. It does not augment itself.

    Source: pytorch.org/tutorials/beginner/knowledge_distillation_tutorial.html, `train_knowledge_distillation`.
    """
    (teacher, student), device = task.networks(), task.device
    optimizer = torch.optim.Adam(student.parameters(), lr=0.001)

    def step(batch: Any) -> None:
        inputs, truth = batch[0].to(device), batch[1].to(device)
        optimizer.zero_grad()
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        student_logits = student(inputs)
        soft, log_student = functional.softmax(teacher_logits / 2, -1), functional.log_softmax(student_logits / 2, -1)
        soft_loss = torch.sum(soft * (soft.log() - log_student)) / len(log_student) * 2**2
        loss = 0.25 * soft_loss + 0.75 * functional.cross_entropy(student_logits, truth)
        loss.backward()
        optimizer.step()
        loss.item()

    return Peer(task.loader(own_workers=2), step)


def repdistiller(task: Task) -> Peer:
    """RepDistiller's loop: 0.1 CE + 0.9 KL * T^2 + 0, SGD; each step reads the loss back and finds top-1 and top-5 accuracy.

    Source: Tian et al. 2020 (arXiv 1910.10699), `train_distill` of helper/loops.py; its networks also return their features.
    """
    (teacher, student), device = task.networks(), task.device
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    sums: dict[str, Any] = {"loss": 0.0, 1: 0.0, 5: 0.0}

    def step(batch: Any) -> None:
        inputs, truth, _ = (part.to(device) for part in batch)
        student_logits = student(inputs.float())
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        log_student, soft = functional.log_softmax(student_logits / 4, 1), functional.softmax(teacher_logits / 4, 1)
        soft_loss = functional.kl_div(log_student, soft, reduction="sum") * 4**2 / len(inputs)
        loss = 0.1 * functional.cross_entropy(student_logits, truth) + 0.9 * soft_loss
        with torch.no_grad():
            right = student_logits.topk(5, 1, True, True)[1].t().eq(truth.view(1, -1))
            for first in (1, 5):  # stays on the device, as there
                sums[first] += right[:first].reshape(-1).float().sum(0, keepdim=True).mul_(100.0 / len(inputs))
        sums["loss"] += loss.item() * len(inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Peer(task.loader(own_workers=8, indexed=True), step)


class Stored(Pictures):
    """With the teacher's answers from disk: `cache_output` of torchdistill up to 1.1.4; 1.1.5 removed it.

    There the first epoch writes a file an image, and all later ones read the answer to that first crop, whatever theirs is.
    """

    def __init__(self, task: Task, folder: Path):
        super().__init__(task)
        self.folder = folder
        for number, (batch, _) in enumerate(DataLoader(Pictures(task), 256)):
            with torch.no_grad():
                answers = task.teacher(batch.to(task.device)).cpu()
            for index, answer in enumerate(answers, start=256 * number):
                self.path(index).parent.mkdir(parents=True, exist_ok=True)
                stored = {"teacher_outputs": answer.clone(), "extracted_outputs": {".": {"output": answer.clone()}}}
                torch.save(stored, self.path(index))

    def path(self, index: int) -> Path:
        return self.folder / f"{index:04d}"[-4:] / f"{index:04d}.pt"

    def __getitem__(self, index: int):
        return *super().__getitem__(index), {"cached_data": torch.load(self.path(index), weights_only=False)}


@register_forward_proc_func
def stored_answers(model: nn.Module, sample_batch: Tensor, targets: Tensor, supp_dict: dict, **_: Any) -> Tensor:
    return supp_dict["cached_data"]["teacher_outputs"].to(sample_batch.device)  # the teacher is not asked


def torchdistill(task: Task, *, bfloat16: bool = False, store: Path | None = None) -> Peer:
    """torchdistill's DistillationBox in its sample's loop: KDLoss (T = 4, alpha = 0.9), SGD, MetricLogger.

    `bfloat16` is autocast around the forward: torchdistill has no setting for it, and its path through accelerate reads
    `AcceleratorState.use_fp16`, which accelerate no longer has. `store` is a folder for the teacher's answers, filled first.

    Source: Matsubara 2023 (arXiv 2310.17644), v1.1.5: examples/torchvision/image_classification.py, configs/sample/cifar10/kd.
    """
    (teacher, student), device = task.networks(), task.device
    ends = {"student_module_path": ".", "student_module_io": "output"}
    ends |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    loss = {"key": "KDLoss", "kwargs": {**ends, "temperature": 4.0, "alpha": 0.9, "reduction": "batchmean"}}
    workers = 16 if task.workers is None else task.workers
    teacher_forward = "forward_batch_only" if store is None else "stored_answers"
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": task.batch_size, "num_workers": workers, "pin_memory": device.type == "cuda"},
            "requires_supp": store is None,  # a third part of each sample, which Stored brings itself
        },
        "teacher": {"wrapper": "DataParallel", "forward_proc": teacher_forward, "requires_grad": False},
        "student": {"wrapper": "DataParallel", "forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }
    pictures = Pictures(task) if store is None else Stored(task, store)
    box = get_distillation_box(teacher, student, {"train": pictures}, config, device, None, False, 1)
    box.pre_epoch_process(epoch=0)
    log = MetricLogger(delimiter="  ")
    log.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    log.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))

    def step(batch: Any) -> None:
        start = time.time()
        inputs, truth, extra = batch[0].to(device), batch[1].to(device), batch[2]
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = box.forward_process(inputs, truth, extra)
        box.post_forward_process(loss=loss)
        log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        log.meters["img/s"].update(len(inputs) / (time.time() - start))
        if torch.isnan(loss) or torch.isinf(loss):
            raise ValueError(f"The training loop was broken due to loss = {loss}")

    return Peer(box.train_data_loader, step, partial(log.log_every, log_freq=100, header="Epoch: [0]"))


def peers(store: Path) -> dict[str, Callable[[Task], Peer]]:
    """The peers by name. `store` is an empty folder for the stored answers of one teacher to one set of images."""
    return {
        "torchdistill": torchdistill,
        "torchdistill bfloat16": partial(torchdistill, bfloat16=True),
        "torchdistill stored": partial(torchdistill, store=store),
        "PyTorch tutorial": tutorial,
        "RepDistiller": repdistiller,
    }


def main(steps: int = 4, batch_size: int = 16, workers: int | None = None) -> None:
    """resnet56 teaches resnet20 on random images; `workers`: for each peer's own number. A CPU may only emulate bfloat16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = np.random.default_rng(0).integers(0, 256, (8 * batch_size, 32, 32, 3), dtype=np.uint8)
    labels = images[:, 0, 0, 0] % 10
    with tempfile.TemporaryDirectory() as store:
        for name, make in peers(Path(store)).items():
            teacher, student = (build_network(part, 10).network for part in ("resnet56", "resnet20"))
            peer = make(Task(teacher, student, images, labels, batch_size, device, workers))
            print(f"{name:>22}  {peer.images_per_second(steps, warm_up=1):>8,.0f} images/s", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
