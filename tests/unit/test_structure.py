"""The shape of the project: who imports whom, what is public, what has words, and comments that cannot rot."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import shmcow

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "shmcow"
CSRC = ROOT / "csrc"

# A module may import what has a smaller number. Equal numbers: siblings, which never import each other, but for a
# package's own parts and those named in SIBLINGS.
ROOMS = {
    "errors": 0,
    "words": 0,
    "_core": 1,
    "schema": 1,
    "validators": 1,
    "fdinfo": 2,
    "segments": 2,
    "frozen": 2,
    "draft": 3,
    "store": 3,
    "codecs": 3,
    "holders": 4,
    "feeding": 4,
    "decoding": 4,
    "waiting": 4,
    "aio": 5,
    "arguments": 5,
    "machine": 5,
    "snapshot": 5,
    "documents": 5,
    "encoded": 5,
    "agreement": 6,
    "garbage": 6,
    "dropping": 6,
    "sharing": 6,
    "watching": 6,
    "diagnosis": 7,
    "differ": 7,
    "rates": 7,
    "reports": 7,
    "events": 7,
    "committing": 7,
    "following": 7,
    "readership": 7,
    "gate": 8,
    "inspect": 8,
    "reader": 8,
    "writer": 8,
    "publishing": 9,
    "files": 10,
}
# The C helper takes its exceptions from errors; its stub names what it calls back.
LAST = 11


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = path
    return found


def room(module: str) -> int:
    return ROOMS.get(module.split(".")[0], LAST)


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it, but for type checking only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }
    known = modules()
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix("shmcow.")
                found.add(f"shmcow.{inner}" if inner in known or inner == "_core" else base)
    return found


@pytest.mark.parametrize("module", [name for name in modules() if name])
def test_imports_run_one_way(module: str) -> None:
    """errors <- _core <- segments <- store <- snapshot <- writer | reader | inspect <- the rest."""
    mine = room(module)
    for imported in imports(modules()[module]):
        if imported == "shmcow":
            assert mine == LAST, f"{module} imports the package that imports it"
        if not imported.startswith("shmcow."):
            continue
        other = imported.removeprefix("shmcow.")
        if other.split(".")[0] == module.split(".")[0]:
            continue
        assert room(other) < mine or mine == LAST, f"{module} imports {other}"


def test_writer_and_reader_never_import_each_other() -> None:
    """Either half works without the other."""
    assert "shmcow.reader" not in imports(PACKAGE / "writer.py")
    assert "shmcow.writer" not in imports(PACKAGE / "reader.py")
    assert "shmcow.inspect" not in imports(PACKAGE / "writer.py") | imports(PACKAGE / "reader.py")


def test_only_segments_uses_posix_ipc() -> None:
    """Names of shared memory are made and unlinked in one place."""
    users = [name for name, path in modules().items() if "posix_ipc" in imports(path)]
    assert users == ["segments"]


def test_only_the_command_line_imports_its_libraries() -> None:
    """click and rich are the business of shmcow.cli."""
    for name, path in modules().items():
        if not name.startswith("cli"):
            assert not imports(path) & {"click", "rich"}, name


# What a module of shmcow.contrib may import beside shmcow, the standard library and what shmcow itself needs.
FRAMEWORKS = {
    "django": {"asgiref", "django"},
    "fastapi": {"fastapi"},
    "flask": {"flask"},
    "prometheus": {"prometheus_client"},
    "pytest_plugin": {"pytest"},
}
CONTRIB = [name for name in modules() if name.split(".")[0] == "contrib"]


@pytest.mark.parametrize("module", CONTRIB)
def test_contrib_imports_its_framework_only(module: str) -> None:
    """Who uses one recipe needs no other framework."""
    third = {name.split(".")[0] for name in imports(modules()[module])} - sys.stdlib_module_names - {"shmcow"}
    assert third <= {"typing_extensions", "msgspec"} | FRAMEWORKS.get(module.rpartition(".")[2], set())


def test_nothing_needs_contrib() -> None:
    """The recipes are leaves: shmcow is the same without them."""
    for name, path in modules().items():
        if name not in CONTRIB:
            assert not {found for found in imports(path) if found.startswith("shmcow.contrib")}, name


@pytest.mark.parametrize("module", CONTRIB)
def test_contrib_has_words(module: str) -> None:
    """As everything public; read from the text, since the frameworks may not be installed."""
    tree = ast.parse(modules()[module].read_text())
    silent = [
        inner.name
        for node in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
        for inner in node.body
        if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not inner.name.startswith("_")
        and not getattr(node, "name", "").startswith("_")
        and not any("overload" in ast.dump(decorator) for decorator in inner.decorator_list)
        and not ast.get_docstring(inner)
    ]
    assert ast.get_docstring(tree)
    assert silent == []


def test_import_does_nothing_but_import() -> None:
    """No descriptor, no thread, no process, no object in shared memory, no heavy library, no handler for signals."""
    code = """
import json, os, signal, sys, threading
def state():
    return {
        "fds": sorted(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": open(f"/proc/self/task/{os.getpid()}/children").read(),
        "shm": sorted(name for name in os.listdir("/dev/shm") if name.startswith("shmcow.t-%d-" % os.getpid())),
        "signals": [repr(signal.getsignal(n)) for n in range(1, 32)],
        "hooks": [repr(sys.excepthook), repr(threading.excepthook)],
    }
before = state()
import shmcow
after = state()
heavy = [name for name in ("psutil", "click", "rich", "asyncio", "multiprocessing", "numpy") if name in sys.modules]
print(json.dumps([before, after, heavy]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    before, after, heavy = json.loads(run.stdout)
    assert before == after
    assert heavy == []
    assert run.stderr == ""


# What takes long to import, and what workers have no use for. (logging, ipaddress and dataclasses are needed.)
_NOT_FOR_WORKERS = {
    "asyncio", "click", "csv", "difflib", "fractions", "grp", "gzip", "maxminddb", "multiprocessing", "numpy",
    "pathlib", "pickle", "psutil", "pwd", "random", "rich", "secrets", "sqlite3", "subprocess", "tomllib", "urllib",
    "yaml", "shmcow.aio", "shmcow.cli", "shmcow.differ", "shmcow.documents", "shmcow.dropping", "shmcow.events",
    "shmcow.diagnosis", "shmcow.files", "shmcow.garbage", "shmcow.inspect", "shmcow.machine",
    "hashlib", "shmcow.publishing", "shmcow.rates", "shmcow.readership", "shmcow.reports",
}  # fmt: skip


@pytest.mark.parametrize(
    ("program", "more"),
    [
        ("import shmcow", []),
        ("import shmcow; shmcow.Reader(sys.argv[1], type=dict[str, int]).get()", []),
        ("from shmcow.cli import app; app.run(['get', sys.argv[1], 'n'])", ["click", "rich", "shmcow.cli"]),
    ],
    ids=["import", "typed value", "get"],
)
def test_what_is_not_needed_is_not_imported(name: str, program: str, more: list[str]) -> None:
    """`import shmcow` is all that a worker pays for, the first value included, and `shmcow get` starts as fast."""
    code = f"import sys; {program}; print(*sys.modules, sep='\\n')"
    with shmcow.Writer(name, initial={"n": 1}):
        run = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "shmcow.reader" in run.stdout
    code = f"import sys, msgspec, posix_ipc, typing_extensions{', click' * bool(more)}; print(*sys.modules, sep='\\n')"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not (set(run.stdout.split()) - set(bare.stdout.split())) & (_NOT_FOR_WORKERS - set(more))


def test_what_tools_ask_for_is_there_without_a_second_import() -> None:
    """`shmcow.inspect` and `shmcow.describe` are imported when they are used."""
    code = "import shmcow; shmcow.inspect.diff; shmcow.describe; from shmcow import list_stores; shmcow.nothing"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "module 'shmcow' has no attribute 'nothing'" in run.stderr.splitlines()[-1]


# ---- the public face ----

PUBLIC = [
    "JSON",
    "MMDB",
    "Arrays",
    "Bundle",
    "BundleView",
    "ClosedError",
    "Codec",
    "CodecMismatchError",
    "CorruptSegmentError",
    "DecodeError",
    "FollowerBusyError",
    "FrozenDict",
    "FrozenList",
    "IPTable",
    "IPTableView",
    "IncompatibleStoreError",
    "MMDBView",
    "MsgPack",
    "NotOwnerError",
    "NotPublishedError",
    "OutOfSharedMemoryError",
    "Part",
    "Publisher",
    "Raw",
    "Reader",
    "ShmcowError",
    "Snapshot",
    "StoreDestroyedError",
    "StoreNotFoundError",
    "StoredPart",
    "Table",
    "TableView",
    "ValidationError",
    "VersionConflictError",
    "VersionGoneError",
    "WaitTimeoutError",
    "Writer",
    "WriterBusyError",
    "describe",
    "destroy",
    "errors",
    "list_stores",
    "validators",
    "wait_readers",
]


def order(name: str) -> tuple[int, str]:
    """Constants first, then classes, then the rest: the order that ruff keeps."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_public_names_are_pinned() -> None:
    """A name that appears or goes is a decision: it changes this list and the change log."""
    assert shmcow.__all__ == sorted(PUBLIC, key=order)
    for name in shmcow.__all__:
        assert hasattr(shmcow, name)


def all_modules() -> list[str]:
    found = ["shmcow"]
    for item in pkgutil.walk_packages(shmcow.__path__, "shmcow."):
        if not item.name.startswith(("shmcow.cli", "shmcow.contrib")) and not item.name.endswith("__main__"):
            found.append(item.name)
    return found


@pytest.mark.parametrize("module", all_modules())
def test_all_is_sorted_and_true(module: str) -> None:
    """Where a module says `__all__`, the names are sorted and exist."""
    imported = importlib.import_module(module)
    names = getattr(imported, "__all__", [])
    assert list(names) == sorted(names, key=order)
    for name in names:
        assert hasattr(imported, name), name


def test_errors_are_exported_and_drawn() -> None:
    """Every error is public, and in the tree of its module's docstring."""
    for name in shmcow.errors.__all__:
        assert name in shmcow.__all__
        assert name in (shmcow.errors.__doc__ or "")
        error = getattr(shmcow.errors, name)
        assert issubclass(error, shmcow.ShmcowError)
        builtins = [base for base in error.__mro__ if base.__module__ == "builtins"]
        assert name == "ShmcowError" or builtins[0] is not Exception, f"{name} is no builtin's child"


def public_things() -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for module_name in all_modules():
        module = importlib.import_module(module_name)
        found.append((module_name, module))
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module_name:
                continue
            if not (inspect.isclass(thing) or inspect.isroutine(thing)):
                continue
            found.append((f"{module_name}.{name}", thing))
            if inspect.isclass(thing):
                for field, member in vars(thing).items():
                    if not field.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                        found.append((f"{module_name}.{name}.{field}", member))
    return found


def test_everything_public_has_words() -> None:
    """Each public module, class, function, method and property has a docstring, in the C module too."""
    silent = [
        name
        for name, thing in public_things()
        if not (inspect.getdoc(thing) or "").strip() and not getattr(thing, "__name__", "").startswith("_")
    ]
    assert silent == []


@pytest.mark.parametrize("thing", [shmcow.Writer, shmcow.Reader], ids=["Writer", "Reader"])
def test_arguments_are_documented(thing: type) -> None:
    """Each argument of the two main classes is in their docstring."""
    words = thing.__doc__ or ""
    for name in inspect.signature(thing.__init__).parameters:  # type: ignore[misc]
        assert name == "self" or re.search(rf"^\s+{name}(, \w+)*:", words, re.MULTILINE), name


# ---- the C sources ----


def c_files() -> list[Path]:
    return sorted([*CSRC.glob("*.h"), *CSRC.glob("*.c")])


def sync_names() -> Counter[str]:
    """How often each `SYNC name` stands in the sources."""
    return Counter(name for path in c_files() for name in re.findall(r"(?<!`)\bSYNC (\w+)", path.read_text()))


def test_every_synchronization_has_its_partner() -> None:
    """A SYNC name that stands in one place only has lost its other side."""
    found = sync_names()
    assert found
    assert [name for name, count in found.items() if count < 2] == []


def test_every_synchronization_is_in_the_protocol() -> None:
    """The table of PROTOCOL.md and the comments name the same pairs."""
    protocol = CSRC / "PROTOCOL.md"
    if not protocol.exists():
        pytest.skip("csrc/PROTOCOL.md is not there: write it")
    words = set(re.findall(r"\w+", protocol.read_text()))
    assert set(sync_names()) <= words


def test_atomics_name_their_order() -> None:
    """In the headers of the algorithm every atomic operation is `_explicit`."""
    for name in ("shmcow_protocol.h", "shmcow_format.h"):
        text = re.sub(r"/\*.*?\*/", "", (CSRC / name).read_text(), flags=re.DOTALL)
        calls = re.findall(r"\batomic_\w+(?=\()", text)
        plain = [call for call in calls if not call.endswith("_explicit") and call != "atomic_thread_fence"]
        assert plain == [], name


def test_algorithm_knows_neither_python_nor_the_system() -> None:
    """The protocol's headers include nothing but the language's own headers and each other."""
    tables = {
        path.name for kind in ("values", "table", "address", "iptable") for path in CSRC.glob(f"shmcow_{kind}*.h")
    }
    assert len(tables) >= 7
    for name in ("shmcow_layout.h", "shmcow_crc.h", "shmcow_format.h", "shmcow_protocol.h", *sorted(tables)):
        included = set(re.findall(r'#include [<"]([^>"]+)[>"]', (CSRC / name).read_text()))
        assert included <= {
            "assert.h", "errno.h", "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h", "stdlib.h", "string.h",
            "shmcow_layout.h", "shmcow_format.h", "shmcow_values.h", "shmcow_table.h", "shmcow_address.h",
            "shmcow_address_fast.h", "shmcow_iptable.h", "shmcow_iptable_compare.h", "shmcow_iptable_find.h",
            "shmcow_iptable_pack.h", "shmcow_crc.h", "emmintrin.h", "immintrin.h",
        }, name  # fmt: skip


def test_c_files_say_what_they_are_for() -> None:
    """Each C file begins with a comment that names its purpose."""
    for path in c_files():
        assert path.read_text().startswith("/* shmcow"), path.name
