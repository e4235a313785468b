"""What the documentation shows, runs, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmcow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(shmcow.__path__, "shmcow.")
    if not module.name.startswith(("shmcow.cli", "shmcow.__main__", "shmcow._core"))
)


def blocks(language: str, text: str = README) -> list[str]:
    """Return the code blocks of a page in one language; without a page, the README's."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_readme_example_prints_what_the_readme_shows() -> None:
    """The README's Python runs as a program and prints the block below it."""
    example, expected = blocks("python")[0], blocks("text")[0]
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stderr == ""
    assert done.stdout == expected


def test_reference_data_runs(name: str) -> None:
    """The parts in the page on tables are published, read together, and shared."""
    (example,) = [block for block in blocks("python", (DOCS / "tables.md").read_text()) if "PARTS = " in block]
    *lines, last = example.replace('"reference"', repr(name)).rstrip().splitlines()
    assert last == f"destroy({name!r})"
    space: dict[str, Any] = {}
    exec("\n".join(lines), space)
    now = space["now"]
    assert (now.config.timeout, now.geo["1.1.1.7"], now.groups.get("bob", 0)) == (2.0, "AU", 0)
    first, second = reversed(shmcow.describe(name).generations)
    assert second.segments[1:] == first.segments[1:]


def test_readme_gunicorn_app_answers(name: str) -> None:
    """The README's WSGI application answers a request out of the current version."""

    class Config(msgspec.Struct, frozen=True):
        timeout: float = 2.5

    (app,) = [block for block in blocks("python") if "def app(" in block]
    space: dict[str, Any] = {"Reader": shmcow.Reader, "Config": Config}
    exec(app.replace("app-config", name), space)
    began = []
    with shmcow.Writer(name, type=Config, initial=Config()):
        assert space["app"]({}, lambda status, headers: began.append((status, headers))) == [b"2.5\n"]
    assert began == [("200 OK", [("Content-Type", "text/plain")])]


def test_readme_names_the_two_commands_on_its_first_screen() -> None:
    """A newcomer finds both commands within the first 25 lines, and CI calls the second as it stands."""
    first_screen = "\n".join(README.splitlines()[:25])
    assert "shmcow demo" in first_screen
    assert ".venv/bin/python -m pytest" in first_screen
    assert '.venv/bin/python -m pytest" README.md' in (ROOT / ".ci" / "run").read_text()


def test_readme_shell_session_prints_what_the_readme_shows(name: str) -> None:
    """The commands of the README's shell session answer as shown, on a store like the demo's at its 41st version."""
    (session,) = blocks("console")
    from shmcow.cli.demo.children import first_value

    with shmcow.Writer(name, initial=first_value()) as writer:
        for clock in range(2, 42):
            writer.patch(clock=clock)
    shown = re.findall(r"\$ shmcow (.*)\n(.*)\n", session)
    assert len(shown) == session.count("$ ")
    for command, answer in shown:
        words = [name if word == "demo" else word for word in shlex.split(command)]
        done = subprocess.run([sys.executable, "-m", "shmcow", *words], capture_output=True, text=True, timeout=60)
        assert (done.stdout + done.stderr).strip() == answer
    shmcow.destroy(name)


def test_readme_links_lead_somewhere() -> None:
    """Every relative link in the README is a file of the project, or a heading there."""
    for target in re.findall(r"\]\(([^):]+)\)", README):
        file, _, anchor = target.partition("#")
        assert (ROOT / file).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings], target


def test_readme_names_only_what_exists() -> None:
    """Every name that the README takes from the package is in it."""
    for names in re.findall(r"from shmcow import ([\w, ]+)", README):
        for imported in names.split(","):
            assert hasattr(shmcow, imported.strip())
    for error in re.findall(r"`(\w+Error)`", README):
        assert hasattr(shmcow, error), error


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str) -> None:
    """The examples in a module's docstrings print what they say."""
    try:
        imported = importlib.import_module(module)
    except ImportError as exc:
        if not module.startswith("shmcow.contrib.") or "pip install" not in str(exc):
            raise
        pytest.skip(str(exc))  # a framework that is not installed, with the line for pip
    results = doctest.testmod(imported)
    assert results.failed == 0


def test_requests_have_one_version(name: str) -> None:
    """The stream in the page on servers has one version to its end, while another is published."""
    (example,) = [block for block in blocks("python", (DOCS / "servers.md").read_text()) if "def stream(" in block]
    definitions, server, _ = example.replace('"app-config"', repr(name)).partition("\nwith Writer(")
    assert server
    space: dict[str, Any] = {}
    exec(definitions, space)
    with shmcow.Writer(name, initial="old") as writer:
        response = space["application"]({}, lambda *_: None)
        pieces = []
        for piece in response:
            pieces.append(piece)
            writer.publish("new")
        response.close()
        assert pieces == [b"version 1\n"] * 3
        writer.destroy()
