"""The parts of `benchmarks/gpu.py`, a file each: `rows(bench)` gives names and what measures them, in order of worth."""
