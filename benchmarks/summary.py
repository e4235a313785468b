"""The tables of benchmarks/README.md, made from a JSON report: ``python -m benchmarks readme JSON FILE``.

Losses first, then the ratios, then the figures behind them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import amount_text, run_text

BEGIN, END = "<!-- made by `python -m benchmarks readme`: begin -->", "<!-- end of what was made -->"


def text(report: Mapping[str, Any]) -> str:
    """Return what stands between the two marks."""
    parts = [
        f"```text\n{report['command']}\n{run_text(report)}\n{_peers(report)}\n```",
        "### Where shmcow loses, or misses its aim",
    ]
    losses = [line for name, result in report["results"].items() for line in _losses(name, result)]
    parts.append("\n".join(losses) or "Nowhere in this run.")
    for name, result in report["results"].items():
        parts.append(f"### {result['title']}")
        when = f"{result['measured']}, load {result['load']}"
        parts.append(f"`python -m benchmarks {name}`; warm-up: {result['warm_up']}. Measured: {when}.")
        if result["ratios"]:
            parts.append(_markdown(_pivot(result["ratios"])))
        figures = {**result["times_ns"], **result["amounts"]}
        parts += [_markdown(_grid(title, grid, figures)) for title, grid in result["grids"].items()]
        parts.append("\n".join(f"- {note}" for note in result["notes"]))
    return "\n\n".join(part for part in parts if part)


def put_into(page: str, report: Mapping[str, Any]) -> str:
    """Return the page with what stands between the marks replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page lacks the two marks")
    return f"{before}{BEGIN}\n\n{text(report)}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Write the tables of a report into a page."""
    if len(arguments) != 2:
        print("usage: python -m benchmarks readme JSON FILE")
        return 2
    page = Path(arguments[1])
    page.write_text(put_into(page.read_text(), json.loads(Path(arguments[0]).read_text())))
    return 0


def _peers(report: Mapping[str, Any]) -> str:
    return "peers: " + ", ".join(f"{name} {version}" for name, version in report.get("peers", {}).items())


def is_loss(ratio: Mapping[str, Any]) -> bool:
    """Tell whether something else was better, or an aim was missed."""
    return ratio["verdict"] == "MISSED" or (ratio["at_least"] and ratio["median"] < 1)


def _losses(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    lost: dict[str, list[str]] = {}
    for ratio in filter(is_loss, result["ratios"]):
        row, column = _split(ratio["name"])
        aim = "" if ratio["aim"] is None else f", aim {'≥' if ratio['at_least'] else '≤'} {ratio['aim']:g}"
        lost.setdefault(row, []).append(
            f"{_number(ratio['median'])} ({column}{aim})" if column else f"{_number(ratio['median'])}{aim}"
        )
    for row, cells in lost.items():
        yield f"- {name}: {row}: {', '.join(cells)}"


def _split(name: str) -> tuple[str, str]:
    """Split ``what / against, case`` at the last comma after the stroke."""
    before, stroke, after = name.rpartition(" / ")
    against, comma, column = after.rpartition(", ")
    return (f"{before}{stroke}{against}", column) if comma else (name, "")


def _pivot(ratios: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    columns = list(dict.fromkeys(_split(ratio["name"])[1] for ratio in ratios))
    rows: dict[str, dict[str, str]] = {}
    for ratio in ratios:
        row, column = _split(ratio["name"])
        rows.setdefault(row, {})[column] = (
            f"{_number(ratio['median'])} ({_number(ratio['low'])} … {_number(ratio['high'])})"
        )
    head = ["ratio: median (quartiles)", *(column or "" for column in columns)]
    return [head, *([row, *(cells.get(column, "") for column in columns)] for row, cells in rows.items())]


def _grid(title: str, grid: Mapping[str, Any], figures: Mapping[str, Any]) -> list[list[str]]:
    rows = [[title, *grid["columns"]]]
    for name, cases in grid["rows"].items():
        cases = [*cases, *[None] * (len(grid["columns"]) - len(cases))]
        cells = [
            grid["missing"] if case is None else amount_text(figures[case]["median"], grid["unit"]) for case in cases
        ]
        rows.append([name, *cells])
    return rows


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
