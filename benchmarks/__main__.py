"""``python -m benchmarks NAME ...``: run the named questions, or all of them; draw; write the tables of the page."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import benchmarks
from benchmarks import harness, peers, plots, summary

TOOLS = {"plots": plots.main, "readme": summary.main}


def questions() -> dict[str, ModuleType]:
    """Return every module of this package that is a question, by name."""
    found = {}
    for info in pkgutil.iter_modules(benchmarks.__path__):
        if info.name not in ("__main__", "harness"):
            module = importlib.import_module(f"benchmarks.{info.name}")
            if hasattr(module, "run"):
                found[info.name] = module
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write the JSON report, and draw."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in TOOLS:
        return TOOLS[arguments[0]](arguments[1:])
    known = questions()
    given = _parse(arguments, known)
    if given.plots is not None and (reason := plots.missing()):
        print(f"--plots: {reason}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that stores and servers are tidied up
    names = list(known) if "all" in given.names else list(dict.fromkeys(given.names))
    plan = harness.Plan(quick=given.quick)
    about = {**harness.describe_run(plan), "peers": peers.versions()}
    print(harness.run_text(about), flush=True)
    report: dict[str, Any] = {**about, "results": {} if given.json is None else kept_results(given.json, about)}
    failed = []
    for name in names:
        try:
            result = known[name].run(plan)
        except Exception:  # one that fails does not take the others with it
            traceback.print_exc()
            failed.append(name)
            continue
        report["results"][name] = result.as_json()
        report["results"] = {name: report["results"][name] for name in known if name in report["results"]}
        print(f"\n{harness.result_text(result, given.quick)}", flush=True)
        if given.json is not None:
            given.json.write_text(report_text(report))
    if given.plots is not None:
        for path in plots.draw(report, given.plots):
            print(path)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parse(arguments: list[str], known: Mapping[str, ModuleType]) -> argparse.Namespace:
    listed = "\n".join(f"  {name:<12} {(module.__doc__ or '').splitlines()[0]}" for name, module in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        usage="python -m benchmarks NAME... [--quick] [--json FILE] [--plots DIR]\n"
        "       python -m benchmarks plots JSON DIR\n"
        "       python -m benchmarks readme JSON FILE",
        description="Measure shmcow against what it is built on, and what could be used instead, in one run.",
        epilog=f"names:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*known, "all"], help="a question, or all")
    parser.add_argument("--quick", action="store_true", help="only show that it runs; the figures mean nothing")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write everything, all rounds included, to FILE; other questions' results stay",
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw pictures (SVG) into DIR")
    return parser.parse_args(arguments)


def kept_results(file: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a report has of the same machine and software already; each result says when it was measured."""
    if not file.exists():
        return {}
    report = json.loads(file.read_text())
    same = all(report.get(key) == about[key] for key in ("format", "quick", "versions", "peers"))
    if not same or report["machine"]["cpu"] != about["machine"]["cpu"]:
        return {}
    results: dict[str, Any] = report["results"]
    return results


def report_text(report: Mapping[str, Any]) -> str:
    """Write a report as JSON, with each case, ratio and list on one line."""
    dumped = json.dumps(report, indent=1, ensure_ascii=False)
    for innermost in (r"\[\n\s+([^][{}]*?)\n\s+\]", r"\{\n\s+([^{}]*?)\n\s+\}"):
        dumped = re.sub(innermost, lambda found: found[0][0] + re.sub(r"\n\s+", " ", found[1]) + found[0][-1], dumped)
    return dumped + "\n"


if __name__ == "__main__":
    sys.exit(main())
