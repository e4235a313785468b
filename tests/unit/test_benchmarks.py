"""The benchmarks run and report; what they measure is for people, so no time is looked at here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

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


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks as a person does."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_quick_run_prints_each_row_and_writes_every_round(tmp_path: Path) -> None:
    """A quick run of all prints each ratio and each time, says that it means nothing, and writes all rounds as JSON."""
    file = tmp_path / "report.json"
    done = run("all", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "the figures mean nothing" in done.stdout
    report = json.loads(file.read_text())
    assert report["format"] == 1
    assert report["quick"] is True
    assert report["date"].endswith("+00:00")
    assert {"cpu", "cores", "kernel", "memory", "load_before"} <= report["machine"].keys()
    assert {"python", "shmcow", "msgspec", "posix_ipc"} == report["versions"].keys()
    core = report["results"]["core"]
    assert [row["name"] for row in core["ratios"]] == ROWS
    for row in core["ratios"]:
        assert f"\n{row['name']} " in done.stdout
        assert row["low"] <= row["median"] <= row["high"]
        assert (row["must"], row["aim"]) == BOUNDED.get(row["name"], (None, None))
        assert row["verdict"] in (("aim met", "must met", "MISSED") if row["must"] else ("",))
    for case, times in core["times_ns"].items():
        assert f"\n{case} " in done.stdout
        assert len(times["rounds"]) == 3
        assert all(figure > 0 for figure in times["rounds"])
        assert min(times["rounds"]) <= times["median"] <= max(times["rounds"])


def test_unknown_question_is_refused_with_the_known_ones() -> None:
    """A name that is no question ends with status 2 and the list of names."""
    done = run("no-such-question")
    assert done.returncode == 2
    assert "core" in done.stderr
    assert done.stdout == ""
