"""Instructions of the hot paths, counted by callgrind, as multiples of an empty call in the same run.

    python tests/proof/instructions/count.py             print them beside the baseline
    python tests/proof/instructions/count.py --write     make them the baseline

An instruction count does not know what else the machine does, so that it can be compared with a committed figure,
which a time cannot. It knows nothing of caches, of the kernel or of waiting either: it guards, it does not measure.
Only user space is counted: what a publish asks of the kernel stands in no figure here.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BASELINE = HERE / "baseline.json"
EMPTY = "empty call"
TOLERANCE = 0.02  # a count repeats to the last digit; what may change is how a compiler lays a function out
MARK = re.compile(r"^desc: Trigger: Client Request: (.+)\|(\d+)$", re.MULTILINE)
TOTALS = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


def missing() -> str | None:
    """Say what has to be installed, if anything."""
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/callgrind.h").exists():
        return "needs valgrind with its headers (Debian: apt-get install valgrind)"
    if shutil.which("gcc") is None:
        return "needs a C compiler (Debian: apt-get install gcc libc6-dev)"
    return None


def machine() -> str:
    """Name what the counts depend on and the package does not: the interpreter's build and the instruction set."""
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    folds = " pclmulqdq " in Path("/proc/cpuinfo").read_text()  # checksums take another way
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}, "
        f"{'optimized' if optimized else 'plain'}, {platform.machine()}{' with pclmulqdq' if folds else ''}"
    )


def count(package: Path = ROOT) -> dict[str, float]:
    """Run the program once under callgrind.

    Args:
        package: The folder that has the package ``shmcow``.

    Returns:
        Instructions of one operation, by path.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "marks.so"
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", HERE / "marks.c", "-o", library], check=True)
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--dump-instr=no", f"--callgrind-out-file={folder}/out"),
                *(sys.executable, "-S", "-X", "frozen_modules=on", HERE / "program.py", library),
            ],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join([str(package), *(path for path in sys.path if "site-packages" in path)]),
                "PYTHONHASHSEED": "0",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the program under callgrind ended with {done.returncode}:\n{done.stderr}")
        found = {}
        for file in sorted(Path(folder).glob("out*"), key=lambda file: int(file.suffix[1:] or 0)):
            text = file.read_text()
            if mark := MARK.search(text):
                totals = TOTALS.search(text)
                assert totals is not None, f"callgrind's {file.name} has no totals"
                found[mark[1]] = int(totals[1]) / int(mark[2])
        return found


def relative(counts: dict[str, float]) -> dict[str, float]:
    """Return each path as a multiple of the empty call."""
    return {path: round(figure / counts[EMPTY], 3) for path, figure in counts.items() if path != EMPTY}


def changed(now: dict[str, float], before: dict[str, float]) -> list[str]:
    """Say which paths are not what they were: dearer, cheaper (the baseline is due), gone or new."""
    return [
        f"{path}: {now.get(path, 'not counted')} empty calls, baseline {before.get(path, 'has none')}"
        for path in sorted({*now, *before})
        if path not in now or path not in before or abs(now[path] / before[path] - 1) > TOLERANCE
    ]


def main() -> int:
    """Print the counts; write the baseline if asked."""
    if why := missing():
        print(why, file=sys.stderr)
        return 2
    counts = count()
    now = relative(counts)
    before = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"machine": "none", "relative": {}}
    print(f"{EMPTY}: {counts[EMPTY]:.0f} instructions, its loop included ({machine()}; baseline: {before['machine']})")
    for path, figure in now.items():
        print(f"{path:<18} {figure:8.2f} empty calls, baseline {before['relative'].get(path, float('nan')):8.2f}")
    if "--write" in sys.argv[1:]:
        BASELINE.write_text(json.dumps({"machine": machine(), "relative": now}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
