"""The command `distilens`."""

from distilens.cli.commands import main as main
