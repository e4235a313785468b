"""``shmcow completion``: the scripts, and what a shell with one of them is offered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import environment, refused, run

import shmcow
from shmcow import Bundle, MsgPack, Raw, Writer
from shmcow.cli import completing
from shmcow.cli.app import COMMANDS

Ask = Callable[..., list[str]]


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment in which `shmcow` is a program."""
    path = tmp_path / "shmcow"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m shmcow "$@"\n')
    path.chmod(0o755)
    return environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.fixture
def bash(program: dict[str, str], tmp_path: Path) -> Ask:
    """Type words into a bash that has the script; what it offers for the last one."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash (Debian: apt-get install bash)")
    script = tmp_path / "completion.bash"
    script.write_text(run("completion", "bash").stdout)

    def ask(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in ("shmcow", *words))
        lines = (
            f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; "
            '_shmcow_completion shmcow; for word in "${COMPREPLY[@]}"; do echo "$word"; done'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", lines], capture_output=True, text=True, env=program, timeout=60, check=True
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    return ask


def test_bash_completes_commands_stores_versions_and_paths(bash: Ask, name: str) -> None:
    """What it offers is what there is, and asking for it makes nothing."""
    with Writer(name, initial={"hosts": ["a", "b"], "db": {"pool": 1, "port": 2}, "a b": 1, "\x1b[2J": 1}) as writer:
        writer.publish(writer.snapshot().copy())
        before = shmcow.describe(name), sorted(os.listdir("/dev/shm"))
        assert set(bash("")) == set(COMMANDS)
        assert bash("get", name[:-1]) == [name]
        assert bash("get", name, "") == ["hosts", "db"]
        assert bash("set", name, "db.p") == ["db.pool", "db.port"]
        assert bash("drop", name, "") == ["1"]
        assert bash("rollback", name, "--to", "") == ["1"]
        assert bash("get", name, "--at", "") == ["2", "1"]
        assert bash("rm", name, "--d") == ["--dry-run", "--debug"]
        now = shmcow.describe(name), sorted(os.listdir("/dev/shm"))
        assert now[0] == before[0]
        assert [entry for entry in now[1] if name in entry] == [entry for entry in before[1] if name in entry]


def test_bash_takes_the_script_as_the_help_says(program: dict[str, str], name: str, tmp_path: Path) -> None:
    """The line of the help works, `eval`, without an error, and completes `shmcow`."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash (Debian: apt-get install bash)")
    lines = 'set -u; eval "$(shmcow completion bash)"; complete -p shmcow'
    done = subprocess.run(
        ["bash", "--norc", "-c", lines], capture_output=True, text=True, env=program, cwd=tmp_path, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "complete -o nosort -F _shmcow_completion shmcow\n"
    assert not [entry for entry in os.listdir("/dev/shm") if name in entry]


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("zsh", ["#compdef shmcow", "compdef _shmcow_completion shmcow"]),
        ("fish", ["complete --no-files --command shmcow"]),
    ],
)
def test_other_shells_get_their_script(program: dict[str, str], shell: str, words: list[str]) -> None:
    """It has the shell's own words; where the shell is installed, it reads it without an error."""
    script = run("completion", shell)
    assert (script.returncode, script.stderr) == (0, "")
    assert all(word in script.stdout for word in words)
    assert "_SHMCOW_COMPLETE=" in script.stdout
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=script.stdout, capture_output=True, text=True, env=program)
        assert (done.returncode, done.stderr) == (0, "")
    assert "bash" in refused(2, "completion", "tcsh")


def test_what_cannot_be_read_completes_to_nothing(name: str) -> None:
    """Damaged stores, huge values, tables, and no name yet: no offer, and no error on the line."""
    header = Path(f"/dev/shm/shmcow.{name}")
    header.write_bytes(b"x" * 100)
    assert completing.paths(name, "") == completing.versions(name, "", older=False) == []
    assert name in [item.value for item in completing.stores(name)]
    header.unlink()
    assert completing.paths(None, "") == completing.versions(None, "", older=True) == []
    codec = Bundle(config=MsgPack(), blob=Raw())
    with Writer(name, codec=codec, initial={"config": {"a": [1]}, "blob": b""}) as writer:
        assert [item.value for item in completing.paths(name, "")] == ["config", "blob"]
        assert [item.value for item in completing.paths(name, "config.a.")] == ["config.a.0"]
        for typed in ("blob.", "zoo.", "config.zoo.", "/config/", "a..b"):
            assert completing.paths(name, typed) == []
        writer.publish_parts(blob=b"x" * (5 << 20))
        assert completing.paths(name, "") == []
        writer.destroy()
    with Writer(name):
        assert completing.paths(name, "") == []
