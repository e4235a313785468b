"""``python -m benchmarks NAME ...``: run the named questions, or all of them."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import benchmarks
from benchmarks import harness


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
    """Run, print, and write the JSON report."""
    known = questions()
    listed = "\n".join(f"  {name:<8} {(module.__doc__ or '').splitlines()[0]}" for name, module in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure shmcow against what it is built on, in one run.",
        epilog=f"names:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*known, "all"], help="a question, or all")
    parser.add_argument("--quick", action="store_true", help="only show that it runs; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, all rounds included, to FILE")
    given = parser.parse_args(arguments)
    names = list(known) if "all" in given.names else list(dict.fromkeys(given.names))
    plan = harness.Plan(quick=given.quick)
    about = harness.describe_run(plan)
    print(harness.run_text(about), flush=True)
    results = {}
    for name in names:
        result = known[name].run(plan)
        results[name] = result.as_json()
        print(f"\n{harness.result_text(result, given.quick)}", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({**about, "results": results}, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
