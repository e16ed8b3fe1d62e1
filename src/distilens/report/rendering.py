"""From a template and plain data to a page, and from a file of a run folder to plain data."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distilens.colours import ANCHORS
from distilens.report.confusion import shades
from distilens.report.paths import without_places
from distilens.report.shared import shared_pictures

SCALE = [f"#{anchor}" for anchor in ANCHORS]  # of the maps' colours, weak first


def rendered(template: str, **content: Any) -> str:
    """A template of this folder with plain data.

    Every text in the data is escaped, and shown without where on the machine files are; pictures are embedded once.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=fit_to_show,
    )
    environment.globals["shared"] = shared_pictures(content)
    return environment.get_template(template).render(scale=SCALE, shades=shades(), **content)


def fit_to_show(value: Any) -> Any:
    """A text of the data without absolute paths; what is markup or a picture already, as it is."""
    return without_places(value) if type(value) is str and not value.startswith("data:") else value


def read_json(path: Path) -> tuple[dict | None, str | None]:
    """The object in a JSON file, or nothing and, where there is a file that cannot be read, the reason."""
    if not path.is_file():
        return None, None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return None, f"{path.name} cannot be read: {error}"
    return (content, None) if isinstance(content, dict) else (None, f"{path.name} does not hold an object")


def missing(problem: str | None, command: str) -> dict[str, str | None]:
    """What a section says when its file is not there: the command that makes it."""
    return {"problem": problem, "command": command}
