"""The bar of a training: what it says, in narrow and in wide terminals."""

import io
import re

import pytest
import torch
from rich.console import Console

from distilens.core import Batch
from distilens.training.log import Log


def lines_of(width: int) -> list[str]:
    """What a terminal of some width shows of a training of two epochs, without its control codes."""
    stream = io.StringIO()
    console = Console(force_terminal=True, width=width, file=stream, legacy_windows=False)
    log = Log(stage="teacher", console=console)
    log.start(epochs=2, steps=2, images=32, at=0, epoch=0)
    with log:
        for epoch in range(2):
            for _ in range(2):
                batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1).long(), torch.arange(1), epoch=epoch)
                log.step(batch, {"ce": torch.tensor(0.84321), "kd": torch.tensor(0.5)}, 0.1, every=1)
                log.work.bar.refresh()
            log.epoch(epoch, {"accuracy": 0.854, "loss": 1.0, "n": 5})
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_bar_stays_on_one_line(width):
    lines = lines_of(width)
    assert all(line.startswith("teacher") and len(line) <= width for line in lines)
    assert any("epoch 1/2 · ce 0.843 kd 0.5" in line for line in lines)
    assert "epoch 2/2 · 85.4% val · ce 0.8" in lines[-1]
    assert re.search(r"took \d:\d\d$", lines[-1])
    assert ("images/s" in lines[-1]) == (width >= 100)
