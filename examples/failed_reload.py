"""A reload that fails: the last good version stays in service, the failure is counted, and it recovers by itself.

Problem: somebody saves a half-finished or wrong file at night. No worker may notice; whoever is on call must.
Run it: python examples/failed_reload.py          (pip install 'shmcow[feed]')
It prints: for a file that is cut off, one of the wrong type, and one that is gone: the error as the feed's state has
it, and what workers have meanwhile; then what they have when the file is good again, the counts, and the log.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import shmcow
from shmcow import Reader
from shmcow.feed import Event, File, follow

STORE = f"example-failed-{os.getpid()}"
Limits = dict[str, int]


def feed(path: Path, link: Connection) -> None:
    """Follow the file until SIGTERM; what happens is logged, and told to on_event."""
    logging.basicConfig(filename=path.with_name("feed.log"), format="%(levelname)s %(message)s")
    follow(File(path, debounce=0.01), STORE, type=Limits, on_event=link.send)


def until(kind: str, link: Connection, known: str = "") -> Event:
    """Wait until the follower tells of something; it asks again and again, and fails with the same error each time."""
    while True:
        event: Event = link.recv()
        if event.kind == kind and (not known or event.error != known):
            return event


def save(path: Path, text: str) -> None:
    """Replace the file as a whole."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def main() -> None:
    """Break the file in three ways, and mend it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    limits = Reader(STORE, type=Limits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "limits.json"
        save(path, '{"ann": 10}')
        follower = context.Process(target=feed, args=(path, theirs), daemon=True)
        follower.start()
        theirs.close()  # so that the follower's death ends recv()
        event = until("published", ours)

        breakages = {
            "cut off": lambda: save(path, '{"ann": 20,\n "bo'),
            "wrong type": lambda: save(path, '{"ann": "many"}'),
            "gone": path.unlink,
        }
        for what, damage in breakages.items():
            damage()
            event = until("failed", ours, known=event.error)
            state = shmcow.describe(STORE).feed
            assert state is not None
            assert state.failures_in_a_row > 0
            print(f"{what}: {state.last_error.replace(folder, '')}")
            print(f"  workers have {limits.get()} of version {limits.version}")

        save(path, '{"ann": 30}')
        event = until("published", ours)
        print(f"good again: workers have {limits.get()} of version {event.version}")
        assert limits.get() == {"ann": 30}
        follower.terminate()
        follower.join()

        state = shmcow.describe(STORE).feed
        assert state is not None
        assert state.failures >= 3  # it asks again and again, and may have met the same damage more than once
        print(f"failures counted: 3 or more; in a row now: {state.failures_in_a_row}")
        errors = [line for line in path.with_name("feed.log").read_text().splitlines() if line.startswith("ERROR")]
        print(f"errors in the log: {len(errors)}")
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
