"""The register of commands, and what several of them do with their words."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tyro

app = tyro.extras.SubcommandApp()
COMMANDS: dict[str, Callable[..., Callable[[], None]]] = {}
"""The commands by name. Only the given command is parsed, which takes half the time of parsing all."""


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command: tyro parses the words, and `main` calls it afterwards."""

    def registered(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def later(*arguments: object, **options: object) -> Callable[[], None]:
            return functools.partial(function, *arguments, **options)

        app.command(name=name)(later)
        COMMANDS[name] = later
        return function

    return registered


def join_words(groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """The words of an option that may be given several times."""
    return [word for group in groups for word in group]


def changes_of(set_: tuple[tuple[str, ...], ...], seed: int | None = None) -> list[str]:
    """The changes of a recipe."""
    return [*join_words(set_), *([] if seed is None else [f"seed={seed}"])]
