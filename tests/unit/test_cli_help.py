"""The help of the command line, docs/cli.md and what there is: in step."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from test_cli import environment, run

from shmcow import Writer
from shmcow.cli import exits
from shmcow.cli.app import COMMANDS, GROUPS, app

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
CODES = sorted({code for name, code in vars(exits).items() if name.isupper() and isinstance(code, int) and code < 128})


def command_of(name: str) -> click.Command:
    found: click.Command = importlib.import_module(COMMANDS[name]).command
    return found


def help_of(name: str) -> str:
    command = command_of(name)
    with click.Context(command, info_name=f"shmcow {name}", max_content_width=100) as context:
        return command.get_help(context)


def examples(name: str) -> list[str]:
    """Return the lines of a command's examples."""
    lines = help_of(name).partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    return [line.strip() for line in lines]


def calls_in(line: str) -> list[list[str]]:
    """Return the words of every call of the command in a shell line."""
    parts = [shlex.split(part) for part in re.split(r"\s(?:\|\||&&|\|)\s|;\s(?:do\s)?", line)]
    return [words[1:] for words in parts if words[0] == "shmcow"]


def test_help_is_a_page_that_groups_every_command() -> None:
    """Every command stands in one group, with one line that fits, and the page fits 80 columns."""
    grouped = [name for lines in GROUPS.values() for name in lines]
    assert sorted(grouped) == sorted(COMMANDS)
    page = run("--help").stdout
    assert max(map(len, page.splitlines())) <= 80
    assert "..." not in page.partition("COMMAND [ARGS]...")[2]
    for title, lines in GROUPS.items():
        assert f"\n{title}:\n" in page
        for name, line in lines.items():
            assert re.search(rf"^  {name} +{re.escape(line)}$", page, re.MULTILINE), name


def test_mistyped_command_is_told_the_one_that_was_meant() -> None:
    """Once, whatever the version of click says by itself; nothing is proposed for what is like no command."""
    done = run("wacth", "x")
    assert done.returncode == 2
    assert done.stderr.count("id you mean") == 1
    assert "No such command 'wacth'. Did you mean 'watch'?" in done.stderr
    for unlike in ("xyzzy", "--xyzzy"):
        done = run(unlike)
        assert done.returncode == 2
        assert "id you mean" not in done.stderr


@pytest.mark.parametrize("command", ["stat", "readers", "rm"])
def test_mistyped_store_is_told_the_one_that_was_meant(name: str, command: str) -> None:
    """Beside what is wrong with it; nothing is proposed for what is like no store's name."""
    typed = f"{name[:-2]}{name[-1]}{name[-2]}x"
    with Writer(name, initial=1):
        more = ["--yes"] if command == "rm" else []
        done = run(command, typed, *more)
        assert done.returncode == 3
        assert done.stderr.startswith(f"shmcow: there is no store {typed}")
        assert done.stderr.endswith(f"(did you mean {name}?)\n")
        done = run(command, "Q", *more)
        assert done.returncode == 3
        assert "did you mean" not in done.stderr


def test_help_of_the_whole_imports_no_command() -> None:
    """It is there as fast as anything."""
    code = (
        "import sys; from shmcow.cli import app; app.run(['--help']); "
        "sys.exit([name for name in app.COMMANDS.values() if name in sys.modules] != [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(), check=False)
    assert done.returncode == 0, done


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_examples_that_exist(name: str) -> None:
    """What the examples call are commands, and their options those of the command."""
    lines = examples(name)
    assert lines
    calls = [call for line in lines for call in calls_in(line)]
    assert any(call[:1] == [name] for call in calls), lines
    for call in calls:
        assert call[0] in COMMANDS, call
        known = {text for parameter in command_of(call[0]).params for text in parameter.opts + parameter.secondary_opts}
        given = {word.partition("=")[0] for word in call[1:] if re.match(r"--?[a-z]", word)}
        assert given <= known | {"--debug", "--help"}, call


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    """And every command begins with a sentence."""
    command = command_of(name)
    assert re.match(r"[A-Z][^\n]+\.", (command.help or "").replace("\n", " "))
    for parameter in [*command.params, *app.params]:
        if isinstance(parameter, click.Option):
            assert re.match(r"\S.*\.", parameter.help or ""), parameter.name


def test_exit_codes_are_in_the_help_and_in_the_page() -> None:
    """Each of them, with the same words."""
    assert [0, *CODES] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 70]
    epilog = " ".join((app.epilog or "").split())
    said = dict(re.findall(r"(\d+) ([a-z][^.]*?)(?:, (?=\d)|\.$)", epilog.removeprefix("Exit codes: ")))
    assert sorted(map(int, said)) == [0, *CODES]
    page = " ".join(PAGE.split())
    for code, words in said.items():
        assert f"{code} {words}" in page, f"docs/cli.md does not say that exit code {code} is {words!r}"
    table = (exits.__doc__ or "").partition("meaning")[2]
    assert sorted(int(code) for code in re.findall(r"^(\d+) ", table, re.MULTILINE)) == [0, *CODES]


def test_page_has_every_command_in_its_table() -> None:
    """With options that exist; and no command that does not exist."""
    found: set[str] = set()
    for row in re.findall(r"^\| `shmcow .* \|$", PAGE, re.MULTILINE):
        cell = re.split(r"(?<!\\)\|", row)[1]
        called = set(re.findall(r"`(?:shmcow )?([a-z]+)", cell))
        assert called <= set(COMMANDS), row
        known = {text for name in called for parameter in command_of(name).params for text in parameter.opts}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", row)) <= known | {"--debug"}, row
        found |= called
    assert sorted(found) == sorted(COMMANDS)
