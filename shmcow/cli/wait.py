"""``shmcow wait``: until a version is published, or until no reader is behind it."""

from __future__ import annotations

import click

from shmcow import gate
from shmcow.cli import params

__all__ = ["command"]


@click.command("wait")
@click.argument("name", type=params.STORE)
@click.option("--version", type=params.VERSION, metavar="N", help="Until this version, or a later one, is current.")
@click.option("--readers-at", type=params.VERSION, metavar="N", help="Until no process is behind this version.")
@click.option("--seen", is_flag=True, help="An idle process counts, too: it must have read the version.")
@click.option("--min-readers", type=click.IntRange(min=1), metavar="K", help="So many processes must have read it.")
@click.option("--timeout", type=params.SECONDS, metavar="SECONDS", help="Give up then, with exit code 7.")
@click.option("--create-wait", is_flag=True, help="Wait for a store that does not exist yet, too.")
def command(
    name: str,
    version: int | None,
    readers_at: int | None,
    seen: bool,
    min_readers: int | None,
    timeout: float | None,
    create_wait: bool,
) -> None:
    """Wait until a version of store NAME is published, or until no reader is behind it: a gate for deployments.

    With --readers-at no process may hold an older version; one that holds nothing is not behind, for its next read
    returns the current version anyway. With --seen every process that has read the store must have read that version;
    --min-readers says how many there must be. Who is behind is told when the time is up.

    \b
    Examples:
      shmcow wait app-config --version 1 --create-wait --timeout 60
      shmcow wait app-config --readers-at 42 --timeout 30
      shmcow wait app-config --readers-at 42 --seen --min-readers 8 --timeout 30 || shmcow readers app-config
    """
    if version is not None and readers_at is not None:
        raise click.UsageError("give only one of --version and --readers-at")
    if version is None and readers_at is None:
        raise click.UsageError("say what to wait for: --version N, or --readers-at N")
    if readers_at is not None:
        gate.wait_readers(name, readers_at, timeout, seen=seen, min_readers=min_readers or 0, may_appear=create_wait)
        return
    if seen or min_readers is not None:
        raise click.UsageError("--seen and --min-readers go with --readers-at")
    assert version is not None
    gate.wait_version(name, version, timeout, may_appear=create_wait)
