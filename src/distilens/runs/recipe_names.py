"""Find a recipe: your own file, or one that comes with distilens."""

from __future__ import annotations

from pathlib import Path

from distilens.foundation.errors import UserError, nearest


def find_recipe(name: str | Path) -> Path:
    """A recipe file by path, or one that comes with distilens by name.

    Raises:
        UserError: it is neither; the message gives the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {recipe.stem: recipe for recipe in (*shipped_recipes(), *shipped_studies())}
    if str(name) in known:
        return known[str(name)]
    if path.suffix == ".toml" and path.stem in known and len(path.parts) == 1:
        raise UserError(f"no file {name}; the shipped recipe is called {path.stem}")
    what = f"no file {name}" if path.suffix == ".toml" else f"no recipe at {name}"
    raise UserError(f"{what}.{nearest(path.stem, list(known))} Shipped with distilens: {', '.join(known)}")


def shipped_recipes() -> list[Path]:
    """The recipes that come with distilens: in the wheel, or beside the source tree."""
    return files_in("*.toml")


def shipped_studies() -> list[Path]:
    """The recipes of studies that come with distilens, which `distilens seeds` runs."""
    return files_in("studies/*.toml")


def files_in(pattern: str) -> list[Path]:
    here = Path(__file__).parents[1]
    places = [here / "recipes", here.parents[1] / "recipes"]
    return sorted(path for place in places if place.is_dir() for path in place.glob(pattern))
