"""Command-line words: reorder them before tyro reads them, and turn its refusals into plain sentences."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from distilens.foundation.errors import UserError

START = """\
distilens trains small image models under the guidance of large ones.

  distilens demo                               a first student in a minute or two, from generated images
  distilens run RECIPE                         a recipe: a TOML file, or a name from distilens list recipes
  distilens explain MODEL --data folder:DIR    heat maps of any model, and how far to trust them
  distilens list methods                       what is available: methods, models, data, explainers, recipes, ...

All commands: distilens --help. One of them: distilens run --help.
"""
ABOUT = "Train small image models under the guidance of large ones."
HINT = "distilens COMMAND --help explains a command. distilens --version prints the version."
CHANGE = re.compile(r"[A-Za-z_][\w.-]*=")
"""How `key=value` begins."""
CHANGED = (
    "run",
    "demo",
    "record",
    "codebook",
    "validate",
    "recommend",
    "compare",
    "ablate",
    "compress",
    "sweep",
    "seeds",
)
"""The commands that have `--set`."""
OF_RECIPE = {name: name != "demo" for name in CHANGED if name not in ("compare", "seeds")}
"""Commands about a recipe: whether they take its name."""
SEVERAL = (
    "--set",
    "--models",
    "--explainer",
    "--format",
    "--threads",
    "--batch",
    "--runtimes",
    "--factors",
    "--space",
    "--objectives",
)
"""Options that take all words up to the next option."""
ONE = ("--out", "--device", "--seed", "--variants", "--part", "--verify", "--step", "--data", "--images", "--of")
ONE_OF_STUDIES = (
    "--seeds",
    "--first",
    "--jobs",
    "--until",
    "--most",
    "--family",
    "--latency",
    "--size",
    "--trials",
    "--timeout",
    "--sampler",
    "--storage",
)
"""Options that take one word: of runs and models, and of studies."""


def overview(commands: Mapping[str, Callable[..., Any]]) -> str:
    """All commands with the first line of their descriptions. tyro's help also parses their options, which takes long."""
    width = shutil.get_terminal_size().columns
    lines = [
        textwrap.fill(
            (function.__doc__ or "").partition("\n")[0],
            width,
            initial_indent=f"  {name:<12}",
            subsequent_indent=" " * 14,
        )
        for name, function in commands.items()
    ]
    return "\n".join(["usage: distilens COMMAND ...", "", ABOUT, "", *lines, "", HINT])


def order_words(words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """`run --set a=1 demo b=2` as `run demo --set a=1 b=2`: every word of the form `key=value` is a change, in any position.

    Raises:
        UserError: the command does not exist, or there are too many recipes.
    """
    command, rest = words[0], list(words[1:])
    if not command.startswith("-") and command not in commands:
        near = get_close_matches(command, commands, n=1, cutoff=0.5)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"no command {command}{meant} The commands are: {', '.join(commands)}")
    if command not in CHANGED:
        return list(words)
    named, options, changes, wrong = sort_words(rest)
    if command in OF_RECIPE:
        if OF_RECIPE[command] and not named:  # a word behind --set that is not a change
            named, wrong = wrong[:1], wrong[1:]
        check_recipes(command, named)
    return [command, *named, *options, *(["--set", *changes, *wrong] if changes or wrong else [])]


def sort_words(words: list[str]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Positional words, options with their values, changes, and words behind `--set` that are not changes."""
    named, options, changes, wrong = [], [], [], []
    option = ""
    while words:
        word = words.pop(0)
        if word.startswith("--set="):
            changes.append(word.removeprefix("--set="))
        elif word.startswith("-"):
            option = word
            options += [word] * (word != "--set")
            options += [words.pop(0)] if word in (*ONE, *ONE_OF_STUDIES) and words else []
        elif option in SEVERAL[1:]:
            options.append(word)
        elif CHANGE.match(word):
            changes.append(word)
        else:
            (wrong if option == "--set" else named).append(word)
    return named, options, changes, wrong


def check_recipes(command: str, named: list[str]) -> None:
    if OF_RECIPE[command] and len(named) > 1:
        raise UserError(
            f"{command} takes one recipe; given {', '.join(named)}. Write changes as key=value, such as train.epochs=3"
        )
    if not OF_RECIPE[command] and named:
        raise UserError(
            f"{command} takes no recipe; given {', '.join(named)}. Other recipes: distilens run {named[0]}. "
            "Write changes as key=value, such as train.epochs=3"
        )


def parse_plainly(read: Callable[[], Any], command: str) -> Any:
    """The result of tyro's parsing; its refusal, which it prints in a box, becomes a sentence.

    Raises:
        UserError: tyro refuses the words of the command.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return read()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(
            f"{plain_text(box.getvalue())}. See: {' '.join(f'distilens {command}'.split())} --help"
        ) from None


def plain_text(box: str) -> str:
    """The text of a box without its title and help: one sentence per paragraph, without details."""
    paragraphs = [""]
    for line in box.splitlines():
        text = line.strip("│ ")
        if text.startswith(("For full helptext", "Argument helptext")):
            break
        if "──" in text:
            paragraphs.append("")
        elif not line.startswith("│" + " " * 9):
            paragraphs[-1] += f" {text}"
    sentences = [text.strip(" .") for text in paragraphs if text.strip(" .")]
    message = ". ".join(sentences) or "these words cannot be read"
    return f"{message[0].lower()}{message[1:]}"
