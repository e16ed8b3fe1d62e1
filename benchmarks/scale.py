"""How recording and training grow: with processes, and with data that do not fit into memory.

python benchmarks/scale.py processes [--counts 1 2 4]     rates, losses and bytes of 1, 2 and 4 processes on this machine
python benchmarks/scale.py memory [--images 500000]       anonymous memory while a streamed parquet folder is recorded and learnt
python benchmarks/scale.py plan                           the arithmetic of ImageNet-1k and ImageNet-21k on 1 to 64 machines
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import tyro

app = tyro.extras.SubcommandApp()

NETS = """
from torch import nn

class Frozen(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)

def body(classes, width, norm):
    parts, channels = [], 3
    for factor, stride in ((1, 2), (2, 2), (2, 1)):
        parts += [nn.Conv2d(channels, width * factor, 3, stride, 1, bias=False), norm(width * factor), nn.ReLU()]
        channels = width * factor
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

def large(classes):
    return body(classes, 32, nn.BatchNorm2d)

def small(classes):
    return body(classes, 16, Frozen)
"""

RECIPE = """
name = "scale"
data = "DATA"
[teacher]
model = "python:nets:large"
answers = "stored"
[teacher.train]
epochs = 1
[student]
model = "python:nets:small"
methods = ["ce:weight=0.1", "kd:weight=0.9", "ig_overlay:mode=highlight,p=1,exponent=[1,1],explainer=gradcam"]
[train]
epochs = EPOCHS
batch_size = 128
optimizer = "sgd:lr=0.002"
clip = 1
precision = "float32"
log_every = 1
resident = RESIDENT
select = "last"
[explain]
explainers = ["gradcam"]
images = 2
measured = 2
"""


def write(folder: Path, data: str, epochs: int, resident: str = '"auto"') -> None:
    (folder / "nets.py").write_text(NETS)
    (folder / "recipe.toml").write_text(
        RECIPE.replace("DATA", data).replace("EPOCHS", str(epochs)).replace("RESIDENT", resident)
    )


def launch(folder: Path, command: list[str], processes: int, *, threads: int) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(folder)}
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "distilens", *command],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(said[-3000:])
    return said


@app.command
def processes(counts: tuple[int, ...] = (1, 2, 4), images: int = 12_000, epochs: int = 2) -> None:
    """Record and train with 1, 2 and 4 processes; the threads of the machine are shared among them."""
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, f"shapes:train={images},test=200,val_fraction=0.05", epochs)
        finished(
            launch(folder, ["record", "recipe.toml", "--out", "runs/teacher", "--variants", "1"], 1, threads=threads)
        )
        found = {}
        for count in counts:
            each = max(1, threads // count)
            shutil.rmtree(folder / "runs/teacher/teacher/answers")
            start = time.perf_counter()
            said = finished(launch(folder, ["record", "runs/teacher"], count, threads=each))
            whole = time.perf_counter() - start
            answers = {
                path.name: path.read_bytes() for path in sorted((folder / "runs/teacher/teacher/answers").iterdir())
            }
            shutil.copytree(folder / "runs/teacher", folder / f"runs/{count}")
            finished(launch(folder, ["train", f"runs/{count}"], count, threads=each))
            rows = [json.loads(line) for line in (folder / f"runs/{count}/metrics.jsonl").read_text().splitlines()]
            steps = [row for row in rows if row["stage"] == "student" and "terms" in row]
            losses = np.array([list(row["terms"].values()) for row in steps])
            rate = 1 / np.median([1 / row["images_per_second"] for row in steps])
            own = re.findall(r"([\d,]+) images/s", said)[-1]
            found[count] = (answers, losses, rate)
            same = answers == found[counts[0]][0]
            off = float(np.abs(losses / found[counts[0]][1] - 1).max())
            print(
                f"{count} processes of {each} threads: recorded in {whole:.1f} s with start-up ({own} images/s in the first "
                f"process), the same bytes: {same}; trained at {rate:,.0f} images/s ({rate / found[counts[0]][2]:.2f} of "
                f"{counts[0]}), {len(losses)} losses within {off:.1e} of those of {counts[0]}",
                flush=True,
            )


@app.command
def memory(images: int = 500_000, files: int = 50, folder: Path | None = None) -> None:
    """Make a folder of parquet files, record and train from it without keeping it in memory, and watch anonymous memory."""
    place = folder or Path(tempfile.mkdtemp())
    made = place / "images"
    if not made.is_dir():
        make_images(made, images, files)
    write(place, f"parquet:path={made},limit=1000000", 1, "false")
    for name, command in (
        ("recording", ["record", "recipe.toml", "--out", "runs/big", "--variants", "1"]),
        ("training", ["train", "runs/big"]),
    ):
        process = launch(place, command, 1, threads=1)
        samples = []
        while process.poll() is None:
            samples.append(anonymous(process.pid))
            time.sleep(1)
        finished(process)
        half = samples[len(samples) // 2 :]
        print(
            f"{name}: {len(samples)} s; anonymous memory of all its processes, MiB: at a quarter {samples[len(samples) // 4]}, "
            f"half {samples[len(samples) // 2]}, three quarters {samples[3 * len(samples) // 4]}, most {max(samples)}, "
            f"most of the second half {max(half)}",
            flush=True,
        )


@app.command
def plan(
    machines: int = 8,
    side: int = 224,
    variants: int = 16,
    epochs: int = 100,
    teacher_rate: float = 2500,
    student_rate: float = 3000,
    student_parameters: float = 11.7e6,
    batch: int = 256,
    decode_rate: float = 300,
    cores: int = 16,
    shared: float = 1.25e9,
    local: float = 3e9,
    network: float = 1.25e9,
    logits_bytes: int = 50,
    map_bytes: int = 65,
) -> None:
    """Times and sizes of recording and training ImageNet-1k and -21k, from rates that you know of your machines.

    Args:
        teacher_rate, student_rate: images a second of a machine's accelerators: the teacher's forward, the student's step.
        batch: images of a machine in a step.
        decode_rate: JPEG images that a core decodes and resizes in a second; done once, into a cache of uint8.
        shared, local, network: bytes a second of a shared folder (all machines together), of a machine's own disk, and between
            machines.
        logits_bytes, map_bytes: of a record; the defaults are top-10 logits and 7 x 7 uint8 maps.
    """
    for name, images, classes in (("ImageNet-1k", 1_281_167, 1000), ("ImageNet-21k", 14_197_122, 21_841)):
        pixels = side * side * 3
        hours = {
            "decode once": images / (decode_rate * cores * machines),
            f"record logits of {variants} variants": images * variants / (teacher_rate * machines),
            "record Grad-CAM maps": images / (teacher_rate * machines),
            f"train {epochs} epochs with them": images * epochs / (student_rate * machines),
            f"train {epochs} epochs, teacher live": images * epochs * (1 / student_rate + 1 / teacher_rate) / machines,
        }
        print(f"{name}: {images:,} images, {classes:,} classes, {machines} machines")
        for what, seconds in hours.items():
            print(f"  {what:<34} {seconds / 3600:>10,.1f} h")
        print(f"  cache of {side} x {side} pixels           {images * pixels / 1e9:>10,.0f} GB")
        print(f"  logits, {variants} variants                {images * variants * logits_bytes / 1e9:>10,.1f} GB")
        print(f"  maps                               {images * map_bytes / 1e9:>10,.2f} GB")
    used = {
        "a shared folder, by pixels": student_rate * machines * side * side * 3 / shared,
        "each machine's own disk, by pixels": student_rate * side * side * 3 / local,
        "a shared folder, by answers (a block of 4 KiB a record)": student_rate * machines * 2 * 4096 / shared,
        "the network, by gradients": 2 * 4 * student_parameters * (student_rate / batch) / network,
    }
    print("share of what there is that training with stored answers uses, the fullest first:")
    for what, share in sorted(used.items(), key=lambda item: -item[1]):
        print(f"  {what:<58} {share:>7.1%}")


def make_images(folder: Path, images: int, files: int) -> None:
    """Parquet files in the hub's schema: JPEG of smooth noise, coloured by class."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    kind = pa.schema([("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    for part, count in [("train", images // files)] * files + [("test", 1000)]:
        labels = chance.integers(0, 10, count)
        rows = []
        for label in labels:
            small = chance.integers(0, 200, (4, 4, 3), dtype=np.uint8)
            small[..., label % 3] //= 1 + int(label) // 3
            stream = io.BytesIO()
            Image.fromarray(small).resize((32, 32)).save(stream, "JPEG", quality=75)
            rows.append({"img": {"bytes": stream.getvalue(), "path": None}, "label": int(label)})
        number = len(list(folder.glob(f"{part}-*")))
        pq.write_table(pa.Table.from_pylist(rows, kind), folder / f"{part}-{number:05d}.parquet")


def anonymous(process: int) -> int:
    """MiB of anonymous memory, which no file stands behind, of a process and its children; what they share counts once."""
    total = 0
    for one in [psutil.Process(process), *psutil.Process(process).children(recursive=True)]:
        try:
            found = re.search(r"Pss_Anon:\s+(\d+)", Path(f"/proc/{one.pid}/smaps_rollup").read_text())
            total += int(found[1]) if found else 0
        except OSError:
            continue
    return total // 1024


if __name__ == "__main__":
    app.cli()
