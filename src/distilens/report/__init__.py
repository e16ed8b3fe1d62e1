"""The page of a run: its scores, curves and maps in one HTML file that works offline.

* `write_report`: read a run folder, write `report.html` into it
* `table.rows`: the summary table as text, for the page and the terminal
* `charts.line_chart`: an accessible inline SVG
* `pictures`: images, masks and map overlays as data URIs
"""

from distilens.report.page import write_report

__all__ = ["write_report"]
