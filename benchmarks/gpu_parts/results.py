"""`gpu.json`: what was measured, row by row, on one card. Imports nothing but the standard library."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Results:
    """The file, read anew for each change and replaced in one step, so that it is whole whenever a process ends.

    A row that was begun and not ended holds `cut`, one whose measurement raised an error holds `failed`; the same command
    measures both again.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"device": None, "parts": {}}
        return json.loads(self.path.read_text(encoding="utf-8"))

    def write(self, content: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def of_device(self, device: str) -> None:
        """Note the device, or refuse to mix rows of two."""
        content = self.read()
        if content["device"] not in (None, device):
            raise SystemExit(f"{self.path} holds rows of {content['device']}, and this is {device}: give another --out")
        self.write({**content, "device": device})

    def rows(self, part: str) -> dict[str, Row]:
        return self.read()["parts"].get(part, {}).get("rows", {})

    def open_rows(self, part: str) -> list[str]:
        """The rows that a process left unfinished."""
        return [key for key, row in self.rows(part).items() if "cut" in row]

    def is_done(self, part: str, key: str) -> bool:
        row = self.rows(part).get(key, {"cut": ""})
        return not {"cut", "failed"} & row.keys()

    def put(self, part: str, key: str, row: Row) -> None:
        content = self.read()
        content["parts"].setdefault(part, {}).setdefault("rows", {})[key] = row
        self.write(content)

    def end_part(self, part: str, ended: str, seconds: float) -> None:
        content = self.read()
        content["parts"].setdefault(part, {"rows": {}}).update(ended=ended, seconds=round(seconds, 1))
        self.write(content)
