"""The benchmarks run and report; what they measure is for people, so no time is looked at here."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks import lookups, plots, summary
from benchmarks.__main__ import kept_results, questions
from benchmarks.children import FailedOrderError, NoAnswerError, child
from benchmarks.harness import Middle as Of
from benchmarks.harness import Plan, Ratio, Result
from benchmarks.peers import ALL, Peer, Shmcow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "benchmarks" / "README.md"
KEPT = ROOT / "benchmarks" / "results" / "report.json"

ROWS = [
    "get() / empty C call, net",
    "get() / empty C call, gross",
    "r.get() / r.empty(), gross",
    "get() / dict[key], net",
    "msgspec decoding / get(), net",
    "publish 1 kB / floor",
    "publish 1 kB of bytes / floor",
    "publish 1 kB / floor by posix_ipc",
    "publish 1 MB / floor",
    "first get() / read by hand",
    "first get() elsewhere / read by hand",
    "flip to blocked reader / pipe ping",
    "publish to wait() holding it / publish",
    "publish to wait_async() / publish",
    "publish, 8 idle readers / none",
    "publish, 64 idle readers / none",
    "publish, a stopped reader / none",
]
BOUNDED = {
    "get() / empty C call, net": (1.3, 1.1),
    "get() / empty C call, gross": (1.3, 1.1),
    "r.get() / r.empty(), gross": (1.3, 1.1),
    "publish 1 kB / floor": (5, 2.5),
    "publish 1 MB / floor": (1.2, 1.05),
    "flip to blocked reader / pipe ping": (2.5, 1.5),
    "publish, 8 idle readers / none": (1.5, 1.1),
    "publish, 64 idle readers / none": (1.5, 1.1),
    "publish, a stopped reader / none": (1.5, 1.1),
}
# question -> a table of it, and rows that need nothing but Python
TABLES = {
    "first_read": ("first read after a publish", ["shmcow, msgpack, typed", "shmcow, Raw (no decode)"]),
    "lookups": ("lookup by text", ["shmcow Table", "dict in the process", "SQLite, mapped"]),
    "memory": (
        "memory of all workers together, one table",
        ["shmcow Table", "a dict in each worker", "dict, fork and copy-on-write"],
    ),
    "propagation": ("publish to value in hand", ["shmcow wait()", "shmcow wait_async()", "floor: a pipe's byte"]),
    "publish": ("publish", ["shmcow", "floor: write() and unlink", "SharedMemory, create and copy"]),
    "read": ("read 640 B", ["shmcow", "empty C call", "dict", "SharedMemory + Lock + decode", "SQLite (WAL)"]),
    "recovery": ("after SIGKILL of a writer", ["shmcow", "file, os.stat and re-read"]),
    "scaling": (
        "CPU time of a read, nobody writes",
        ["shmcow", "empty C call", "rwlock (pthread), decoded once a version"],
    ),
    "storm": ("read, a writer at full speed", ["shmcow", "empty C call", "file, os.stat and re-read"]),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks as a person does."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Run all of it once: what was printed, and the report."""
    file = tmp_path_factory.mktemp("benchmarks") / "report.json"
    done = run("all", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, json.loads(file.read_text())


# ---- runs ----


def test_quick_run_prints_each_row_and_writes_every_round(quick: tuple[str, dict[str, Any]]) -> None:
    """A quick run of all prints each ratio and each time, says that it means nothing, and writes all rounds as JSON."""
    printed, report = quick
    assert "the figures mean nothing" in printed
    assert report["format"] == 1
    assert report["quick"] is True
    assert report["date"].endswith("+00:00")
    assert {"cpu", "cores", "kernel", "memory", "load_before"} <= report["machine"].keys()
    assert {"python", "shmcow", "msgspec", "posix_ipc"} == report["versions"].keys()
    core = report["results"]["core"]
    assert [row["name"] for row in core["ratios"]] == ROWS
    for row in core["ratios"]:
        assert f"\n{row['name']} " in printed
        assert row["low"] <= row["median"] <= row["high"]
        assert (row["must"], row["aim"]) == BOUNDED.get(row["name"], (None, None))
        assert row["verdict"] in (("aim met", "must met", "MISSED") if row["must"] else ("",))
    for case, times in core["times_ns"].items():
        assert f"\n{case} " in printed
        assert len(times["rounds"]) == 3
        assert all(figure > 0 for figure in times["rounds"])
        assert min(times["rounds"]) <= times["median"] <= max(times["rounds"])


def test_all_runs_every_question(quick: tuple[str, dict[str, Any]]) -> None:
    """Every module that is a question is in the report."""
    _, report = quick
    assert report["results"].keys() == questions().keys()
    assert report["results"].keys() >= TABLES.keys() | {"core", "tables", "server"}


@pytest.mark.parametrize("question", TABLES)
def test_question_has_figures_for_what_needs_nothing_installed(
    question: str, quick: tuple[str, dict[str, Any]]
) -> None:
    """Each row that needs Python alone has a figure in its table, and shmcow one in every column."""
    result = quick[1]["results"][question]
    title, rows = TABLES[question]
    grid = result["grids"][title]
    figures = {**result["times_ns"], **result["amounts"]}
    assert grid["columns"]
    for row in rows:
        cases = [case for case in grid["rows"][row] if case is not None]
        assert cases, row
        assert all(figures[case]["rounds"] for case in cases)
    assert None not in grid["rows"][rows[0]]
    assert len(grid["rows"][rows[0]]) == len(grid["columns"])
    assert result["warm_up"]


@pytest.mark.parametrize("question", ["read", "storm"])
def test_peer_is_measured_or_skipped_with_what_to_install(question: str, quick: tuple[str, dict[str, Any]]) -> None:
    """Each peer has its row, or a line that says why not and how to install it; never both, never neither."""
    result = quick[1]["results"][question]
    rows = {row for grid in result["grids"].values() for row in grid["rows"]}
    for kind in ALL:
        lines = [note for note in result["notes"] if note.startswith(f"{kind.title}: skipped, ")]
        assert len(lines) == (kind.title not in rows), kind.title
        assert all(line.endswith(kind.missing()) for line in lines)


def test_server_is_measured_or_skipped_with_what_to_install(quick: tuple[str, dict[str, Any]]) -> None:
    """Without wrk the server's question says how to get it; with wrk it counts requests."""
    result = quick[1]["results"]["server"]
    if shutil.which("wrk"):
        assert result["grids"]["requests in a second"]["rows"].keys() >= {"shmcow: config and IPTable"}
    else:
        assert any("wrk is not installed (apt-get install wrk)" in note for note in result["notes"])


def test_missing_module_and_missing_program_say_how_to_install_them() -> None:
    """A peer whose module or program is not there names it, and the line that installs it."""

    class NoModule(Peer):
        module, package = "no_such_module", "no-such-package"

    class NoTool(Peer):
        module, tool = "json", ("no-such-program", "no-such-deb")

    assert NoModule.missing() == "no_such_module is not installed (pip install no-such-package)"
    assert NoTool.missing() == "no-such-program is not installed (apt-get install no-such-deb)"
    assert Shmcow.missing() == ""
    assert lookups.Private().missing() == ""


def test_unknown_question_is_refused_with_the_known_ones() -> None:
    """A name that is no question ends with status 2 and the list of names."""
    done = run("no-such-question")
    assert done.returncode == 2
    assert "core" in done.stderr
    assert done.stdout == ""


# ---- what they are made of ----


def test_child_that_raises_dies_or_is_silent_is_told_apart() -> None:
    """An order that raises brings its traceback; a dead process and a silent one are errors of their own."""
    import os
    import time

    def orders() -> Mapping[str, Any]:
        return {"raise": lambda: 1 // 0, "die": lambda: os._exit(3), "sleep": time.sleep, "add": lambda a, b: a + b}

    with child(orders) as working:
        assert working.ask("add", 2, 3) == 5
        with pytest.raises(FailedOrderError, match="ZeroDivisionError"):
            working.ask("raise")
        with pytest.raises(NoAnswerError):
            working.ask("sleep", 30, seconds=0.05)
    with child(orders) as working, pytest.raises(FailedOrderError, match="died"):
        working.ask("die")


def test_lower_bound_is_met_from_above() -> None:
    """A ratio that says how many times something else costs meets its aim when it is large."""
    assert Ratio("x", Of(20, 19, 21), aim=15, at_least=True).verdict == "aim met"
    assert Ratio("x", Of(14, 13, 15), aim=15, at_least=True).verdict == "MISSED"
    assert Ratio("x", Of(1.2, 1, 2), must=1.3, aim=1.1).verdict == "must met"
    assert Ratio("x", Of(1.2, 1, 2), aim=1.1).verdict == "MISSED"
    assert Ratio("x", Of(1.2, 1, 2)).verdict == ""


# ---- pictures and the page ----


def small_report() -> dict[str, Any]:
    """Make a report with one figure in each picture's table."""
    results = {}
    for question, title, how in plots.PICTURES.values():
        result = Result(title=question, warm_up="none", notes=["a note"])
        columns = plots.PERCENTILES if how is plots.PICTURES["read"][2] else ("1", "64")
        for row, factor in (("shmcow", 1.0), ("LMDB", 0.5)):
            for k, column in enumerate(columns):
                result.put(
                    title, row, column, [factor * (k + 1) * 100.0], unit="bytes" if question == "memory" else "ns"
                )
        result.grids[title].x = [1.0, 64.0]
        result.add("LMDB / shmcow, 64", [0.5], at_least=True)
        result.add("shmcow / floor, 64", [1.01], aim=1.05)
        results[question] = result.as_json()
    about = {"command": "python -m benchmarks all", "date": "2026-01-01T00:00:00+00:00", "quick": False, "peers": {}}
    machine = {"cpu": "a cpu", "cores": 2, "virtual": False, "memory": "8 GB", "kernel": "6.1", "load_before": 0.0}
    return {**about, "machine": machine, "versions": {"python": "CPython 3.11"}, "results": results}


def test_plots_are_drawn_from_a_report_alone(tmp_path: Path) -> None:
    """Each picture is an SVG with units at its axes, names as text, no background; the same report, the same bytes."""
    if reason := plots.missing():
        pytest.skip(reason)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(small_report()))
    done = run("plots", str(file), str(tmp_path / "once"))
    assert (done.returncode, done.stderr) == (0, "")
    again = plots.draw(json.loads(file.read_text()), tmp_path / "again")
    assert [path.stem for path in again] == list(plots.PICTURES)
    units = {
        "read": "µs (log)",
        "storm": "µs (log)",
        "scaling": "µs (log)",
        "publish": "ms (log)",
        "memory": "MB (log)",
    }
    for path in again:
        drawn = path.read_text()
        assert drawn.startswith("<?xml")
        assert ">shmcow<" in drawn
        assert ">LMDB<" in drawn
        assert units[path.stem] in drawn
        assert plots.OURS in drawn
        assert "fill: #ffffff" not in drawn
        assert len(drawn) < 60_000
        assert (tmp_path / "once" / path.name).read_text() == drawn


def test_report_keeps_other_questions_of_the_same_machine_only(tmp_path: Path) -> None:
    """Questions may be measured one by one into one file; what another machine or release gave does not stay."""
    file, report = tmp_path / "report.json", {**small_report(), "format": 1}
    assert kept_results(file, report) == {}
    file.write_text(json.dumps(report))
    assert kept_results(file, report) == report["results"]
    for key, value in (("versions", {}), ("peers", {"LMDB": "9"}), ("quick", True), ("machine", {"cpu": "another"})):
        assert kept_results(file, {**report, key: value}) == {}


def test_summary_puts_losses_first_and_follows_the_figures() -> None:
    """What somebody else does better stands before all tables, and another figure makes another page."""
    report = small_report()
    page = summary.put_into(f"before {summary.BEGIN} old {summary.END} after", report)
    assert page.startswith("before ")
    assert page.endswith(" after")
    assert " old " not in page
    losses = page[page.index("### Where shmcow loses") : page.index("### read")]
    assert "- publish: LMDB / shmcow: 0.5 (64)" in losses
    assert "floor" not in losses
    assert summary.put_into(page, report) == page
    other = copy.deepcopy(report)
    next(iter(other["results"]["read"]["times_ns"].values()))["median"] = 123_000.0
    assert summary.put_into(page, other) != page


def test_page_says_what_the_kept_report_says() -> None:
    """The tables of benchmarks/README.md are those of the report that is kept, of a full run, with its pictures."""
    report = json.loads(KEPT.read_text())
    page = PAGE.read_text()
    assert report["quick"] is False
    assert report["results"].keys() == questions().keys()
    assert summary.put_into(page, report) == page
    for name in plots.PICTURES:
        assert f"(results/{name}.svg)" in page
        assert (KEPT.parent / f"{name}.svg").exists()


def test_plan_picks_by_quick() -> None:
    """A quick plan takes the small number."""
    assert (Plan(quick=True).pick(10, 1), Plan().pick(10, 1)) == (1, 10)
