"""Put small faults into files of distilens, one at a time, and count those that the file's own test notices.

    python benchmarks/mutants.py [core.py losses/answers.py ...] [--faults 12] [--seed 0]

The faults are seeded and spread over a file's functions: an operator swapped, a comparison turned, a number, a truth value or a
sign changed. Docstrings, annotations, error messages and `__repr__` stay as they are. A copy of `src` takes the faults; the
checkout is not touched. The mirrored test runs with `pytest -x` in a fork of this process, which has imported the libraries
already. A fault is noticed if the test fails or takes more than 120 seconds. Prints a table, and each fault that was not noticed.
"""

import argparse
import ast
import contextlib
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = (
    "core.py", "losses/answers.py", "training/balance.py", "training/checkpoints.py", "teachers/needs.py", "data/geometry.py",
    "data/pipeline.py", "explain/path.py", "measure/transfer/distance_correlation.py", "foundation/notation.py",
)  # fmt: skip
SECONDS = 120
OTHER = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.FloorDiv], ast.Pow: [ast.Mult], ast.BitAnd: [ast.BitOr], ast.BitOr: [ast.BitAnd], ast.And: [ast.Or],
    ast.Or: [ast.And], ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt], ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}  # fmt: skip


def places(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.expr]]:
    """The expressions of all functions that can take a fault, with the function's name."""
    if isinstance(node, ast.Raise | ast.JoinedStr) or getattr(node, "name", "") in ("__repr__", "__str__"):
        return
    number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    if function and (number or isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp)):
        yield function, node
    if isinstance(node, ast.FunctionDef):
        function = f"{node.name}:{node.lineno}"
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from places(child, function)


def faulty(node: ast.expr, chance: random.Random) -> str:
    """The expression with a fault, in parentheses."""
    made = copy.deepcopy(node)
    if isinstance(made, ast.Constant):
        value = made.value
        made.value = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 2 or 1.0
    elif isinstance(made, ast.UnaryOp):
        made = made.operand
    elif isinstance(made, ast.Compare):
        made.ops[0] = chance.choice(OTHER[type(made.ops[0])])()
    elif isinstance(made, ast.BinOp | ast.BoolOp):
        made.op = chance.choice(OTHER.get(type(made.op), [ast.Add]))()
    return f"({ast.unparse(made)})"


def faults(source: str, count: int, seed: int) -> Iterator[tuple[int, str]]:
    """The number of the line and the whole text with a fault: one in each function, then a second one, and so on."""
    chance = random.Random(seed)
    found: dict[str, list[ast.expr]] = {}
    for function, node in places(ast.parse(source)):
        found.setdefault(function, []).append(node)
    for nodes in found.values():
        chance.shuffle(nodes)
    rounds = [(turn, chance.random(), node) for nodes in found.values() for turn, node in enumerate(nodes)]
    data = source.encode()
    starts = [0, *(number + 1 for number, byte in enumerate(data) if byte == ord("\n"))]
    for _, _, node in sorted(rounds, key=lambda each: each[:2])[:count]:
        first, last = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        yield node.lineno, (data[:first] + faulty(node, chance).encode() + data[last:]).decode()


def passes(test: Path, source: Path, names: Path) -> bool:
    """Whether a test passes with the sources of a folder, in a fork. Writes the names of the modules that it imported."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(1, 2)
            sys.path.insert(0, str(source))
            os.environ["PYTHONPATH"] = str(source)
            import pytest

            options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={ROOT}"]
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that were imported before
            code = pytest.main([*options, str(test)])
            known = list(sys.modules.items())
            names.write_text("\n".join(name for name, module in known if "site-packages" in str(module)))
        finally:  # whatever happens, a fork does not go on as its parent
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=CORE)
    parser.add_argument("--faults", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    print("| file | faults | noticed |\n|---|---|---|", flush=True)
    unnoticed = []
    with tempfile.TemporaryDirectory() as folder:
        source, names = Path(folder) / "src", Path(folder) / "names"
        shutil.copytree(ROOT / "src", source)
        for name in given.files:
            path, test = source / "distilens" / name, (ROOT / "tests" / name).with_name(f"test_{Path(name).name}")
            healthy = path.read_text()
            ready = test.exists() and passes(test, source, names)
            for library in names.read_text().split() if ready else ():
                with contextlib.suppress(Exception):
                    __import__(library)
            if not ready or not passes(test, source, names):
                print(f"| {name} | – | {test} is not there, or fails without a fault |", flush=True)
                continue
            results = []
            for line, text in faults(healthy, given.faults, given.seed):
                path.write_text(text)
                results.append(not passes(test, source, names))
                if not results[-1]:
                    before, after = (all_of.splitlines()[line - 1].strip() for all_of in (healthy, text))
                    unnoticed.append(f"{name}:{line}\n    {before}\n    {after}")
            path.write_text(healthy)
            print(f"| {name} | {len(results)} | {sum(results)} |", flush=True)
    print("\nNot noticed:", *unnoticed or ["nothing"], sep="\n")


if __name__ == "__main__":
    main()
