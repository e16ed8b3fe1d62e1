"""The command line. Torch is imported inside the functions that the commands call, so `--help` is fast."""

from __future__ import annotations

import os
import sys

import tyro

from distilens.cli import run_commands  # noqa: F401  # each module registers its commands, in the order of the overview

# isort: split
from distilens.cli import deploy_commands, study_commands  # noqa: F401
from distilens.cli.registry import COMMANDS, app
from distilens.cli.words import START, order_words, overview, parse_plainly
from distilens.foundation.errors import UserError


def begin(words: list[str]) -> None:
    """Execute a command line.

    Raises:
        UserError: a mistake in it.
    """
    if not words:
        print(START, end="")
        return
    if words[0] in ("--version", "-V"):
        from distilens import __version__

        print(f"distilens {__version__}")
        return
    if words[0] in ("--help", "-h"):
        print(overview(COMMANDS))
        return
    if words[0].startswith("-"):
        parse_plainly(lambda: app.cli(prog="distilens", args=words), "")
        return
    command, *rest = order_words(words, list(COMMANDS))
    parse_plainly(lambda: tyro.cli(COMMANDS[command], prog=f"distilens {command}", args=rest), command)()


def main() -> None:
    """The command `distilens`: exits with 2 on a user's mistake, with 130 on Ctrl-C."""
    # threads that spin while waiting slow down a second run: each gets 0.12 of its speed instead of 0.54 on two cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        begin(sys.argv[1:])
    except UserError as error:
        print(f"distilens: {error}", file=sys.stderr)
        sys.exit(getattr(error, "code", 2))
    except KeyboardInterrupt as stop:
        print(f"distilens: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))
    except BrokenPipeError:
        sys.exit(141)


if __name__ == "__main__":
    main()
