"""The processor of a measurement: its name, its instructions for int8, and its energy counter."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
"""The flags in /proc/cpuinfo of instructions that multiply and add many int8 numbers at once (x86, and ARM's asimddp)."""
POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Processor:
    """The processor.

    Attributes:
        name: its model name.
        cores: the number of cores that this process may use.
        int8: its instructions for int8, by the names of `INT8`.
    """

    name: str
    cores: int
    int8: tuple[str, ...]

    @property
    def remark(self) -> str:
        """One sentence: whether int8 can be expected to be faster than float."""
        if self.int8:
            return (
                f"This processor has instructions for int8 ({', '.join(self.int8)}): INT8 should be faster than float."
            )
        return (
            f"This processor has no instructions for int8 (none of {', '.join(INT8)}): INT8 is not expected to be much faster "
            "than float here. The files are smaller all the same."
        )


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """The processor of this machine.

    Args:
        cpuinfo: the kernel's description. Without it the instructions are unknown and count as missing.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        text = ""
    fields = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]
    first = dict(reversed(fields))
    flags = (first.get("flags") or first.get("Features") or "").split()
    return Processor(
        first.get("model name") or platform.processor() or platform.machine(),
        usable_cores(),
        tuple(name for name in INT8 if name in flags),
    )


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EnergyMeter:
    """The energy counters of the processor packages (RAPL), in joules. They count everything that runs on the machine.

    Args:
        root: the kernel's folder of counters.
    """

    def __init__(self, root: Path = POWERCAP):
        self.domains = []
        for folder in sorted(root.glob("intel-rapl:*")) if root.is_dir() else []:
            if folder.name.count(":") == 1:  # a package, not a part of one
                with contextlib.suppress(OSError, ValueError):
                    read_number(folder / "energy_uj")
                    self.domains.append(folder)

    @property
    def readable(self) -> bool:
        """Whether there is a counter that this user may read."""
        return bool(self.domains)

    def read(self) -> list[int]:
        """The counters, in microjoules."""
        return [read_number(folder / "energy_uj") for folder in self.domains]

    def joules_since(self, before: list[int]) -> float:
        """The energy since an earlier `read`. A counter that has passed its end starts at 0 again."""
        used = 0
        for folder, old, new in zip(self.domains, before, self.read(), strict=True):
            used += new - old if new >= old else new - old + read_number(folder / "max_energy_range_uj")
        return used / 1e6


def read_number(path: Path) -> int:
    """The number in a file."""
    return int(path.read_text())
