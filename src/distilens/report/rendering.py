"""Render a template with plain data as a page, and read a file of a run folder as plain data."""

import json
from pathlib import Path
from typing import Any

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

from distilens.report.colours import ANCHORS
from distilens.report.confusion import shades
from distilens.report.paths import without_places
from distilens.report.shared import shared_pictures

SCALE = [f"#{anchor}" for anchor in ANCHORS]  # the colours of maps, weakest first


class Compiled(BytecodeCache):
    """A cache of compiled templates for this process, because compiling takes longer than rendering."""

    def __init__(self) -> None:
        self.known: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self.known:
            bucket.bytecode_from_string(self.known[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self.known[bucket.key] = bucket.bytecode_to_string()


COMPILED = Compiled()


def render(template: str, **content: Any) -> str:
    """A template of this folder, rendered with plain data.

    Every text is escaped, and absolute paths are shortened to their last part. Each picture is embedded once.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=fit_to_show,
        bytecode_cache=COMPILED,
    )
    environment.globals["shared"] = shared_pictures(content)
    return environment.get_template(template).render(scale=SCALE, shades=shades(), **content)


def fit_to_show(value: Any) -> Any:
    """A text without absolute paths; markup and pictures stay as they are."""
    return without_places(value) if type(value) is str and not value.startswith("data:") else value


def read_json(path: Path) -> tuple[dict | None, str | None]:
    """The object in a JSON file, or None; if the file cannot be read, also the reason."""
    if not path.is_file():
        return None, None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return None, f"{path.name} cannot be read: {error}"
    return (content, None) if isinstance(content, dict) else (None, f"{path.name} does not hold an object")


def missing(problem: str | None, command: str) -> dict[str, str | None]:
    """The content of a section whose file is missing: the command that makes the file."""
    return {"problem": problem, "command": command}
