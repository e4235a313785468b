"""The pages in docs/ are true: what they show is done as it is written, and what they name exists."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "concurrency"))

import docs_pages
import users
from docs_pages import DOCS, KINDS, PAGES, ROOM, ROOT, Step, blocks, prose, steps
from processes import SHM, Child, Link

import shmcow
from shmcow import Reader, Snapshot, Writer, _core, codecs, feed, machine, validators
from shmcow.cli import exits, output
from shmcow.cli.app import app
from shmcow.contrib import prometheus, request, wsgi

# Pages name what is public in these modules without the module, and methods of these classes without a variable.
MODULES = (codecs, feed, prometheus, request, validators, wsgi)
NAMES = SimpleNamespace(**{name: getattr(module, name) for module in MODULES for name in module.__all__})
VIEWS = (codecs.IPTable, codecs.IPTableView, codecs.TableView)
UNITS = sorted((DOCS / "systemd").glob("*.service"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


# ---- what pages show, runs ----


def own_shm() -> None:
    """Have a /dev/shm of one's own, of the size that Docker gives."""
    users.unshare(users.NEW_MOUNTS)
    users.private_mounts()
    users.mount("tmpfs", str(SHM), f"size={ROOM},mode=1777")


def try_out(link: Link, page: Path, directory: Path) -> None:
    own_shm()
    link.send(docs_pages.run(page, directory))
    link.send(os.listdir(SHM))


@pytest.mark.parametrize("page", [page for page in PAGES if steps(page)], ids=lambda page: page.stem)
def test_page_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    """Programs and commands of a page, run one after the other as they stand there, print what stands there."""
    users.require(own_shm, "mount")
    child = Child(try_out, page, tmp_path)
    wrong, left = child.recv(), child.recv()
    child.done()
    assert not wrong, "\n".join(wrong)
    assert left == [], "the page leaves a store behind"


def test_wrong_page_is_told(tmp_path: Path) -> None:
    """The comparison above can fail: for another text, for a missing one, for one too many."""
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nprint(1)\n```\n```text\n2\n```\n\n<!-- file: a/b.txt -->\n```json\n[3]\n```\n"
        "```console\n$ cat a/b.txt\n[3]\n$ echo \\\n  1\n$ true\nnothing\n$ echo abc def\nabc ...\n```\n"
    )
    (tmp_path / "place").mkdir()
    wrong = docs_pages.run(page, tmp_path / "place")
    assert [told.split(":", 2)[1] for told in wrong] == ["2", "15", "17"]


@each_page
def test_blocks_are_of_kinds_that_are_checked(page: Path) -> None:
    """Every block says what it is, and no expected output stands for anything whatever."""
    for block in blocks(page):
        assert block.kind in KINDS, f"{page.name}:{block.line}: {block.kind!r}"
    for step in steps(page):
        if isinstance(step, Step):
            assert step.expected.strip() != "...", f"{page.name}:{step.line}"


# ---- what pages name, exists ----


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links are files of the project, and their anchors headings there."""
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.is_relative_to(ROOT), target
        assert found.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)), target


def test_index_lists_every_page() -> None:
    """docs/README.md leads to each page, and the README to it."""
    listed = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (DOCS / "README.md").read_text()))
    assert listed == {page.name for page in PAGES} - {"README.md"}
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths of the project in the text are there."""
    for path in re.findall(r"\b(?:tests|csrc|examples|benchmarks)/[\w/.-]*\w", prose(page)):
        assert (ROOT / path).exists(), path


def simple_commands(line: str) -> list[list[str]]:
    """Return the words of each command in a line for the shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|;&(){}") or word == "exec":
            found.append([])
        else:
            found[-1].append(word)
    return found


def shell_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each shmcow command in a page, whether it is run here or not."""
    lines = [line for block in blocks(page) if block.kind in ("sh", "ini") for line in block.text.splitlines()]
    lines += [step.command for step in steps(page) if isinstance(step, Step) and not step.is_python]
    lines += re.findall(r"`(shmcow [^`]*)`", prose(page))
    for line in lines:
        for words in simple_commands(re.sub(r"^Exec\w+=", "", line)):
            if words and Path(words[0]).name == "shmcow" and len(words) > 1:
                yield words[1:]
    for block in blocks(page):
        if block.kind == "yaml":
            for found in re.findall(r"command: \[shmcow, ([^]]*)\]", block.text):
                yield [word.strip(' "') for word in found.split(",")]


def check_command(words: list[str]) -> None:
    """Fail unless a command and its options exist."""
    context = click.Context(app)
    command = app.get_command(context, words[0])
    assert command is not None, f"there is no command: shmcow {words[0]}"
    options = {option for parameter in command.get_params(context) for option in parameter.opts}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"shmcow {words[0]} has no {word}"


@each_page
def test_commands_exist(page: Path) -> None:
    """Every shmcow command in a page exists, with its options, also where it is not run."""
    for words in shell_commands(page):
        check_command(words)


def test_commands_are_found() -> None:
    """The search above finds commands in text, blocks, units and manifests, and refuses what does not exist."""
    assert ["wait", "app-config", "--version", "1", "--create-wait", "--timeout", "1"] in list(
        shell_commands(DOCS / "containers.md")
    )
    assert sum(words[0] == "follow" for page in PAGES for words in shell_commands(page)) >= 4
    for words in (["wiat"], ["wait", "x", "--versoin", "1"]):
        with pytest.raises(AssertionError):
            check_command(words)


def resolve(dotted: str) -> None:
    """Fail unless a dotted name leads to something in the package."""
    found: Any = shmcow
    for part in dotted.split(".")[1:]:
        if not hasattr(found, part):
            found = importlib.import_module(f"{found.__name__}.{part}")
        else:
            found = getattr(found, part)


def check_code(code: str) -> None:
    """Fail unless the names of ours in a piece of code exist, and take these arguments."""
    for error in re.findall(r"\b\w+Error\b", code):
        assert hasattr(shmcow, error), error
    for dotted in re.findall(r"\bshmcow(?:\.[A-Za-z_]\w*)+", code):
        if "shm/" not in code:
            resolve(dotted)
    for variable, name in re.findall(r"\b(w|writer|reader|snapshot|snap)\.(\w+)", code):
        owner = {"w": Writer, "writer": Writer, "reader": Reader}.get(variable, Snapshot)
        assert name in dir(owner), f"{owner.__name__} has no {name}"
    for name, arguments in re.findall(r"\b([A-Za-z_]\w*)\(([^()]*)\)", code):
        check_call(name, set(re.findall(r"(\w+)=", arguments)))


def check_call(name: str, keywords: set[str]) -> None:
    """Fail unless something of ours has this name and takes these arguments."""
    owners = [shmcow, NAMES, Reader, Writer, Snapshot, *VIEWS]
    called = next((found for owner in owners if callable(found := getattr(owner, name, None))), None)
    assert called is not None, f"there is no {name}()"
    if keywords:
        parameters = inspect.signature(called).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            assert keywords <= set(parameters), f"{name}() takes no {keywords - set(parameters)}"


@each_page
def test_names_exist(page: Path) -> None:
    """Errors, methods, functions and arguments that the text of a page takes from the package are in it."""
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        if not code.startswith(("shmcow ", "os.", "setpriv ", "/", "--")):
            check_code(code)


@pytest.mark.parametrize(
    "code", ["GoneError", "w.drip(2)", "reader.wiat()", "Writer(retian=1)", "shmcow.inspekt", "Tabel(key=str)"]
)
def test_names_that_do_not_exist_are_told(code: str) -> None:
    """The search above can fail."""
    with pytest.raises((AssertionError, ImportError)):
        check_code(code)


# ---- figures that come from the code ----


def test_figures_are_those_of_the_code(name: str) -> None:
    """What a page says in numbers about the package is what the package says."""
    with Writer(name) as writer:
        report = shmcow.describe(name)
        retain, mode = report.retain, report.mode
        writer.destroy()
    words = output.REDACT.removeprefix("(?i)").replace("passw", "password").replace("_?", "_").split("|")
    (calls,) = re.findall(r"one `get\(\)` in (\d+)", (ROOT / "csrc" / "PROTOCOL.md").read_text())
    (fewer,) = re.findall(r"some ([\d,]+) calls", (DOCS / "systemd.md").read_text())
    assert abs(int(fewer.replace(",", "")) - int(calls)) < 100
    assert abs(_core.HEADER_BYTES - 100_000) < 5_000
    assert machine._DOCKER_DEFAULT == ROOM == 64 << 20
    for page, phrase in (
        ("README.md", f"{ROOM >> 20} MiB"),
        ("concepts.md", f"one of the {_core.GENERATIONS} places"),
        ("concepts.md", f"(1 to {_core.MAX_SEGMENTS})"),
        ("concepts.md", f"{retain}, unless the writer says otherwise"),
        ("memory.md", f"a footer of {_core.FOOTER_BYTES} bytes, in whole pages of 4 KiB"),
        ("memory.md", f"({retain} by default)"),
        ("containers.md", f"`retain={retain}`"),
        ("secrets.md", f"the {retain} newest before the current one"),
        ("secrets.md", f"({', '.join(words)})"),
        ("when-not.md", f"at most {_core.MAX_SEGMENTS} parts"),
        ("users.md", f"`0o{mode:o}`, the default"),
        ("upgrading.md", f"exit code {exits.UNUSABLE}"),
        ("systemd.md", "a reader needs one descriptor for each store, however many versions it holds; a writer two"),
    ):
        assert phrase in " ".join((DOCS / page).read_text().split()), f"{page}: {phrase}"


def test_refusal_of_another_release_is_quoted_as_it_is(name: str) -> None:
    """The text that the page on upgrading shows is what a store with another ABI number makes of it."""
    page = (DOCS / "upgrading.md").read_text()
    quoted = " ".join(re.findall(r"^> (.*)$", page, re.MULTILINE))
    with Writer(name, initial=1) as writer:
        header = SHM / f"shmcow.{name}"
        header.chmod(0o600)
        with header.open("r+b") as file:
            file.seek(12)  # the ABI number
            file.write((_core.ABI - 1).to_bytes(4, sys.byteorder))
        with pytest.raises(shmcow.IncompatibleStoreError) as caught:
            _core.Store(str(header))
        with header.open("r+b") as file:
            file.seek(12)
            file.write(_core.ABI.to_bytes(4, sys.byteorder))
        writer.destroy()

    def without_numbers(text: str) -> str:
        return re.sub(r"ABI \d+, found \d+", "ABI N, found N", text)

    assert without_numbers(quoted) == without_numbers(str(caught.value)).replace(name, "app-config")


def test_concepts_clear_up_at_least_eight_misconceptions() -> None:
    """Each is a sentence in quotation marks, with what is true behind it."""
    section = (DOCS / "concepts.md").read_text().split("## What people get wrong at first")[1].split("\n## ")[0]
    assert len(re.findall(r'^\*\*"[^"]+"\*\* \w', section, re.MULTILINE)) >= 8


def test_alerts_ask_for_metrics_that_there_are(name: str) -> None:
    """Each metric in the rules of the page on observing is one that the collector gives of a store."""
    (block,) = [block for block in blocks(DOCS / "observing.md") if block.kind == "yaml"]
    (group,) = yaml.safe_load(block.text)["groups"]
    rules = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    assert len(rules) == 6
    given = {family.name for family in prometheus.StoreCollector(name).collect()}
    for rule, expression in rules.items():
        asked = re.findall(r"\bshmcow_\w+", expression)
        assert asked, rule
        assert {metric.removesuffix("_total") for metric in asked} <= given, rule


# ---- units and manifests ----


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_unit_is_one_that_systemd_accepts(unit: Path, tmp_path: Path) -> None:
    """``systemd-analyze verify`` has nothing to say, and the commands in the unit exist."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (Debian: apt-get install systemd)")
    for other in UNITS:  # they name one another
        text = re.sub(r"/opt/app/bin/\w+", "/bin/true", other.read_text())
        (tmp_path / other.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / unit.name)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for command in re.findall(r"^Exec\w+=\S*/shmcow (.*)$", unit.read_text(), re.MULTILINE):
        check_command(shlex.split(command))


def test_unit_in_the_page_is_the_file() -> None:
    """What the page on systemd shows is what lies beside it."""
    (shown,) = [block for block in blocks(DOCS / "systemd.md") if block.kind == "ini"]
    assert shown.text == (DOCS / "systemd" / "app-config.service").read_text()


def test_manifest_mounts_one_memory_volume_everywhere() -> None:
    """The pod of the page on containers has one volume of memory over /dev/shm in each container."""
    (block,) = [block for block in blocks(DOCS / "containers.md") if block.kind == "yaml"]
    pod = yaml.safe_load(block.text)["spec"]
    (volume,) = [volume for volume in pod["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory"]
    assert volume["emptyDir"]["sizeLimit"]
    mounts = [
        mount
        for container in [*pod["initContainers"], *pod["containers"]]
        for mount in container["volumeMounts"]
        if mount["mountPath"] == str(SHM)
    ]
    assert [mount["name"] for mount in mounts] == [volume["name"]] * 2
    assert [mount.get("readOnly", False) for mount in mounts] == [False, True]
