"""The processor's instructions and its energy counters, read from files as the kernel writes them."""

from pathlib import Path

import pytest

from distilens.deploy.processor import EnergyMeter, read_processor

X86 = "processor\t: 0\nmodel name\t: Xeon 1\nflags\t\t: fpu avx2 avx512_vnni amx_int8\n\nprocessor\t: 1\nmodel name\t: Xeon 2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("text", "int8"),
    [(X86, ("avx512_vnni", "amx_int8")), (ARM, ("asimddp",)), (X86.replace("avx512_vnni amx_int8", ""), ())],
)
def test_the_instructions_for_int8_are_found_and_the_remark_follows_them(tmp_path, text, int8):
    (tmp_path / "cpuinfo").write_text(text)
    found = read_processor(tmp_path / "cpuinfo")
    assert found.int8 == int8
    assert ("should be faster" in found.remark) == bool(int8)
    assert all(name in found.remark for name in int8)


def test_the_first_cores_name_counts(tmp_path):
    (tmp_path / "cpuinfo").write_text(X86)
    assert read_processor(tmp_path / "cpuinfo").name == "Xeon 1"
    assert read_processor(tmp_path / "missing").int8 == ()


def make_counter(folder: Path, energy: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(str(energy))
    (folder / "max_energy_range_uj").write_text("10000000")


def test_energy_is_summed_over_packages_and_survives_the_end_of_a_counter(tmp_path):
    one, two = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:1"
    make_counter(one, 1_000_000), make_counter(two, 9_000_000)
    make_counter(tmp_path / "intel-rapl:0:0", 5)  # a part of the first package: it counts there already
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    make_counter(one, 3_000_000), make_counter(two, 1_000_000), make_counter(tmp_path / "intel-rapl:0:0", 900_000)
    assert meter.readable
    assert meter.joules_since(before) == 2.0 + 2.0


def test_without_counters_nothing_is_readable(tmp_path):
    assert not EnergyMeter(tmp_path / "nowhere").readable
