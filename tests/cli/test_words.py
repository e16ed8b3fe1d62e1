"""The words of a command line, in one order; refusals without boxes."""

import pytest

from distilens.cli.words import order_words, plain_text
from distilens.foundation.errors import UserError

COMMANDS = ["run", "demo", "explain", "compare", "list"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("run demo", "run demo"),
        ("run demo train.epochs=3", "run demo --set train.epochs=3"),
        ("run --set train.epochs=3 demo", "run demo --set train.epochs=3"),
        ("run a=1 demo -q b=2 --out here c=3", "run demo -q --out here --set a=1 b=2 c=3"),
        ("run --set=a=1 demo --set b=2", "run demo --set a=1 b=2"),
        ("run --out x=1 demo", "run demo --out x=1"),
        ("run demo --set a=1 wrong", "run demo --set a=1 wrong"),
        ("demo train.epochs=1 --json", "demo --json --set train.epochs=1"),
        ("compare runs/a runs/b samples=5", "compare runs/a runs/b --set samples=5"),
        ("compare --models a=x b=y --set samples=5", "compare --models a=x b=y --set samples=5"),
        ("explain m --explainer ig:steps=2 a=b", "explain m --explainer ig:steps=2 a=b"),
        ("list methods", "list methods"),
    ],
)
def test_changes_are_gathered_wherever_they_stand(given, wanted):
    assert order_words(given.split(), COMMANDS) == wanted.split()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("rnu demo", r"no command rnu; did you mean run\?"),
        ("xyz --help", r"no command xyz\. The commands are: run, demo"),
        ("run one two a=1", "run takes one recipe; given one, two"),
        ("demo other", "demo takes no recipe; given other"),
    ],
)
def test_what_has_no_place_is_said(given, text):
    with pytest.raises(UserError, match=text):
        order_words(given.split(), COMMANDS)


def test_a_box_becomes_a_sentence():
    drawn = """\
╭─ Unrecognized options ─────────────────╮
│ Unrecognized options: --sett, a=1      │
│ ────────────────────────────────────── │
│ Perhaps you meant:                     │
│     --set KEY=VALUE ...                │
│         Change the recipe.             │
│         in distilens run --help        │
│ ────────────────────────────────────── │
│ For full helptext, run x --help        │
╰────────────────────────────────────────╯
"""
    assert plain_text(drawn) == "unrecognized options: --sett, a=1. Perhaps you meant: --set KEY=VALUE"
