"""``shmcow watch``: each new version, as it is published."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import click
import msgspec

from shmcow import Reader, Snapshot, inspect
from shmcow.cli import params
from shmcow.cli.exits import PathNotFoundError
from shmcow.cli.get import find
from shmcow.cli.ls import owner
from shmcow.cli.output import SCHEMA, form_options, is_terminal, masked, plain, tsv_line
from shmcow.cli.paths import parse_path
from shmcow.cli.text import printable, shortened
from shmcow.cli.values import one_line, redact_option, view_digest, without_views
from shmcow.differ import changes
from shmcow.errors import ShmcowError, StoreNotFoundError
from shmcow.events import Events

__all__ = ["command"]

_EVER: Final = 10.0 * 365 * 86400  # seconds: to wait for a store that does not exist yet


@click.command("watch")
@click.argument("name", type=params.STORE)
@click.argument("path", type=params.PATH, required=False)
@click.option("--exec", "program", metavar="CMD", help="Run a shell command for each, with the value on its input.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many.")
@click.option("--timeout", type=params.SECONDS, metavar="SECONDS", help="End then, with exit code 7.")
@click.option("--skip-current", is_flag=True, help="Begin with the next version, not with the current one.")
@click.option("--create-wait", is_flag=True, help="Wait for a store that does not exist yet, too.")
@redact_option
@form_options
def command(
    name: str,
    path: str | None,
    program: str | None,
    count: int | None,
    timeout: float | None,
    skip_current: bool,
    create_wait: bool,
    redact: str,
    form: str | None,
    as_json: bool,
) -> None:
    """Print each new version of store NAME, the current one first; with PATH only those in which that part changed.

    One line each: version, when it was published, by whom, message, and the value (or the part) as JSON, shortened on a
    terminal. As JSON it is one object a line. Whoever is slow misses versions in between, never the newest. A store
    that is destroyed is waited for, and that is said on stderr.

    It ends when whoever reads its output has gone, as in a pipe to head, also while nothing is published.

    With --exec nothing is printed but what the command prints. It gets the value as `shmcow get` prints it, masked as
    there, and bytes as they are; SHMCOW_NAME and SHMCOW_VERSION are in its environment. What is published while it runs
    waits for its end. A command that fails is told on stderr: it does not end the watch, nor change its exit code.

    \b
    Examples:
      shmcow watch app-config
      shmcow watch app-config hosts.0 --skip-current --count 1
      shmcow watch app-config --exec 'jq .timeout'
      shmcow watch flags --json | while read -r line; do echo "$line"; done
    """
    skipped = _current(name, create_wait) if skip_current else 0
    form = "json" if as_json else form or ("table" if is_terminal() else "tsv")
    part = _Part(path)
    done = 0
    logging.getLogger("shmcow").addHandler(logging.NullHandler())  # what it would say is said here
    with Reader(name, on_bad="raise", freeze=False, attach_timeout=_EVER if create_wait else 0.0) as reader:
        events = Events(reader, timeout)
        lost = _when_output_is_lost(reader.close) if program is None else threading.Event()
        for event in events:
            if lost.is_set():
                break
            if event.anew:
                _say(f"store {name} was created again: its versions start anew")
            if event.snapshot is None:
                _say(f"{event.problem}{': waiting for a new one' if event.kind == 'destroyed' else ''}")
                continue
            found = part.look(event.snapshot)
            current, skipped = skipped, 0
            if found is None or (event.snapshot.version == current and not event.anew):
                continue
            if program is not None:
                _run(program, event.snapshot, found, redact, as_json)
                if done == 0 and _json(found.value) != _json(masked(found.steps, found.value, redact)):
                    _say("the command gets masked values: --redact '' hands on what there is")
            else:
                _print(event.snapshot, found, form, redact)
            done += 1
            if done == count:
                return
    if lost.is_set():
        raise BrokenPipeError


def _when_output_is_lost(end: Callable[[], object]) -> threading.Event:
    """Call ``end`` from a thread, after the event is set, when nobody can read our output any more.

    Whoever writes finds out by writing; this one may have nothing to write for hours.
    """
    lost = threading.Event()

    def look(fd: int) -> None:
        poller = select.poll()
        poller.register(fd, 0)  # errors and hang-ups only
        while not any(happened & (select.POLLERR | select.POLLHUP) for _, happened in poller.poll()):
            pass
        lost.set()
        end()

    with contextlib.suppress(OSError, ValueError):  # it is closed, or no descriptor at all
        fd = sys.stdout.fileno()
        if stat.S_ISFIFO(os.fstat(fd).st_mode) or stat.S_ISSOCK(os.fstat(fd).st_mode):
            threading.Thread(target=look, args=(fd,), name="shmcow-output", daemon=True).start()
    return lost


def _current(name: str, may_appear: bool) -> int:
    try:
        return inspect.describe(name).version
    except StoreNotFoundError:
        if may_appear:
            return 0
        raise


def _say(text: str) -> None:
    click.echo(f"shmcow: {printable(text)}", err=True)


class _Found(NamedTuple):
    """What is watched, in one version."""

    steps: tuple[str, ...]
    value: Any
    missing: bool


class _Part:
    """What is watched: the part that a path names, and what it was in the version before."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._before: tuple[Any, ...] = ()

    def look(self, snapshot: Snapshot[Any]) -> _Found | None:
        """Return the part in a version; None: it is as before, or cannot be decoded."""
        if self._path is None:
            return _Found((), snapshot.value, False)
        steps: tuple[str, ...] = ()
        try:
            value = find(snapshot.value, self._path)
            steps = parse_path(self._path)
            digest = view_digest(value)
            now: tuple[Any, ...] = (value,) if digest is None else (digest, "of a view, which would hold its version")
        except PathNotFoundError as exc:
            value, now = None, (None, "missing")
            if now != self._before:
                _say(f"version {snapshot.version}: {exc}")
        except ShmcowError as exc:
            _say(str(exc))
            return None
        before, self._before = self._before, now
        if len(before) == len(now) and next(changes(before, now), None) is None:
            return None
        return _Found(steps, value, now == (None, "missing"))


def _print(snapshot: Snapshot[Any], found: _Found, form: str, redact: str) -> None:
    value = masked(found.steps, without_views(found.value), redact)
    who = snapshot.author or owner(snapshot.publisher.uid)
    if form in ("json", "jsonl"):
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "name": snapshot.store,
            "epoch": snapshot.epoch,
            "version": snapshot.version,
            "published_at": snapshot.published_at,
            "pid": snapshot.publisher.pid,
            "uid": snapshot.publisher.uid,
            "author": snapshot.author,
            "message": snapshot.message,
            "source": snapshot.source,
            "rollback_of": snapshot.rollback_of,
            "missing": found.missing,
        }
        click.echo(one_line(record if found.missing else {**record, "value": value}))
        return
    text = "" if found.missing else one_line(value)
    when = snapshot.published_at
    if form == "tsv":
        click.echo(tsv_line(str(snapshot.version), when.isoformat(), who, snapshot.message, text))
        return
    words = [f"{snapshot.version:>4}", f"{when.astimezone():%H:%M:%S}", shortened(who, 20)]
    words += [shortened(snapshot.message, 40)] if snapshot.message else []
    words += ["(missing)" if found.missing else text]
    click.echo(shortened("  ".join(words), shutil.get_terminal_size().columns))


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=plain)


def _run(program: str, snapshot: Snapshot[Any], found: _Found, redact: str, as_json: bool) -> None:
    value = masked(found.steps, found.value, redact)
    if found.missing:
        data = b""
    elif isinstance(value, bytes | memoryview):
        data = bytes(value)
    elif isinstance(value, str) and not as_json:
        data = value.encode(errors="surrogatepass") + b"\n"
    else:
        data = _json(value) + b"\n"
    environment = {"SHMCOW_NAME": snapshot.store, "SHMCOW_VERSION": str(snapshot.version)}
    early: list[int] = []  # Ctrl-C while the command starts: noted, so that it is not left behind
    before = signal.signal(signal.SIGINT, lambda number, _: early.append(number))
    try:
        with subprocess.Popen(program, shell=True, stdin=subprocess.PIPE, env=os.environ | environment) as process:
            try:
                signal.signal(signal.SIGINT, before)
                if early:
                    raise KeyboardInterrupt
                process.communicate(data)
            except KeyboardInterrupt:
                process.terminate()
                raise
    finally:
        signal.signal(signal.SIGINT, before)
    if process.returncode:
        how = f"with {process.returncode}" if process.returncode > 0 else f"by signal {-process.returncode}"
        _say(f"the command for version {snapshot.version} ended {how}")
