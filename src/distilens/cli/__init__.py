"""The command `distilens`."""

import sys


def main() -> None:
    """The command `distilens`. `predict` starts without the parser of the other commands, which takes longer than an answer."""
    if sys.argv[1:2] == ["predict"]:
        from distilens.deploy.predict import main as predict

        sys.exit(predict(sys.argv[2:], "distilens predict"))
    from distilens.cli.commands import main as begin

    begin()
