"""Draw the pictures from a JSON report: ``python -m benchmarks plots JSON DIR``. Nothing is measured here.

SVG with a transparent background; ink and colours are of middle lightness, so that they can be read on white and on
black. Text stays text, so files are small, and the same report gives the same bytes.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

INK = "#7d8590"
OURS = "#e8590c"
OTHERS = ("#1c7ed6", "#2f9e44", "#ae3ec9", "#c99a00", "#0c9ca6", "#e64980", "#8a6d3b", "#7d8590")
STYLES = ("-", "--", ":", "-.")
SETTINGS: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shmcow",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "grid.color": INK,
    "grid.alpha": 0.25,
}
PERCENTILES = ("p50", "p99", "p99.9")


def missing() -> str:
    """Say what is not installed, and how to install it; "" if all is there."""
    found = importlib.util.find_spec("matplotlib")
    return "" if found else "matplotlib is not installed (pip install 'shmcow[bench]')"


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the report has figures for, into files of that folder. -> the files"""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(dict(SETTINGS)):
        for name, (question, title, how) in PICTURES.items():
            result = report["results"].get(question)
            if result is None or title not in result["grids"]:
                continue
            figure, axes = plt.subplots(figsize=(7.6, 4.2))
            how(axes, result, title)
            axes.set_title(title, fontsize=11)
            path = folder / f"{name}.svg"
            figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
            plt.close(figure)
            drawn.append(path)
    return drawn


def main(arguments: Sequence[str]) -> int:
    """Draw from a file."""
    if len(arguments) != 2:
        print("usage: python -m benchmarks plots JSON DIR")
        return 2
    if reason := missing():
        print(reason)
        return 1
    for path in draw(json.loads(Path(arguments[0]).read_text()), Path(arguments[1])):
        print(path)
    return 0


def _figures(result: Mapping[str, Any]) -> Callable[[str], float]:
    known = {**result["times_ns"], **result["amounts"]}
    return lambda case: float(known[case]["median"])


def _percentiles(axes: Any, result: Mapping[str, Any], title: str) -> None:
    """One row for each peer: a line from p50 to p99.9, with a mark at each percentile."""
    grid, figure = result["grids"][title], _figures(result)
    columns = [grid["columns"].index(name) for name in PERCENTILES]
    rows = list(grid["rows"].items())[::-1]
    for colour, mine in ((OTHERS[0], False), (OURS, True)):
        at = [k for k, (name, _) in enumerate(rows) if (name == "shmcow") == mine]
        marks = [[figure(rows[k][1][column]) / 1e3 for k in at] for column in columns]
        axes.hlines(at, marks[0], marks[-1], color=colour, linewidth=1.2, alpha=0.6)
        for mark, x in zip("osD", marks, strict=True):
            axes.plot(x, at, mark, color=colour, markersize=5)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_xlabel("one read, µs (log); ● p50, ■ p99, ◆ p99.9; the clock's own cost included")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x")


def _lines(xlabel: str, ylabel: str, scale: float) -> Callable[[Any, Mapping[str, Any], str], None]:
    def how(axes: Any, result: Mapping[str, Any], title: str) -> None:
        grid, figure = result["grids"][title], _figures(result)
        others = 0
        for name, cases in grid["rows"].items():
            points = [(x, figure(case) / scale) for x, case in zip(grid["x"], cases, strict=False) if case]
            ours = name.startswith("shmcow")
            colour = OURS if ours else OTHERS[others % len(OTHERS)]
            style = "-" if ours else STYLES[others // 2 % len(STYLES)]
            others += not ours
            width = 2.6 if ours else 1.4
            axes.plot(
                *zip(*points, strict=True), style, color=colour, linewidth=width, marker="o", markersize=3.5, label=name
            )
        axes.set_xscale("log", base=2 if max(grid["x"]) <= 64 else 10)
        axes.set_xticks(grid["x"], grid["columns"])
        axes.minorticks_off()
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(axis="y")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)

    return how


# file name -> (question, title of the grid, how)
PICTURES: Mapping[str, tuple[str, str, Callable[[Any, Mapping[str, Any], str], None]]] = {
    "read": ("read", "read 640 B", _percentiles),
    "storm": ("storm", "read, a writer at full speed", _percentiles),
    "scaling": (
        "scaling",
        "CPU time of a read, 100 publishes/s",
        _lines("reader processes (log)", "CPU time of one read, µs (log)", 1e3),
    ),
    "publish": ("publish", "publish", _lines("bytes published (log)", "one publish, ms (log)", 1e6)),
    "memory": (
        "memory",
        "memory of all workers together, one table",
        _lines("workers (log)", "memory of all together, MB (log)", 1e6),
    ),
}
