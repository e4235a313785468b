"""A version that is held all the while can be held again, however often a writer judges it meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from processes import Child, Link, value_of, versions_of

from shmcow import Reader, VersionGoneError, Writer, _core, segments

PUBLISHES = 3000


def _hold_again_and_again(link: Link, name: str, version: int) -> None:
    """Hold the version through the whole protocol each time: nothing else in this process holds it."""
    attached = _core.Store(segments.header_path(name))
    link.send("ready")
    holds = gone = 0
    while not link.poll():
        holds += 1
        try:
            attached.hold(version)
        except VersionGoneError:
            gone += 1
    link.send((holds, gone))


def test_held_version_is_never_said_to_be_gone(name: str, spawn: Callable[..., Child]) -> None:
    """Each publish judges the held version; a reader that copies its entry just then gets it all the same."""
    with Writer(name, initial=value_of(1), retain=0) as writer, Reader(name).snapshot() as kept:
        child = spawn(_hold_again_and_again, name, kept.version)
        assert child.recv() == "ready"
        for n in range(2, PUBLISHES):
            writer.publish(value_of(n))
        holds, gone = child.ask("enough")
        child.done()
        assert holds > 100
        assert gone == 0, f"{gone} of {holds} times"
        assert kept.version in versions_of(name)
