"""Feature flags: a typed struct that every process reads, and a listener that acts when a flag changes.

Run: python examples/feature_flags.py
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading

import msgspec

import shmcow
from shmcow import Reader, Snapshot, Writer

STORE = f"example-flags-{os.getpid()}"


class Flags(msgspec.Struct, frozen=True):
    new_checkout: bool = False
    log_level: str = "INFO"


# As in a real service: made at import, which touches nothing. default= lets the service start without the flags.
flags = Reader(STORE, type=Flags, default=Flags())


def handle(request: int) -> str:
    """Answer one request. In it all flags are of one version, even if somebody changes them meanwhile."""
    now = flags.get()
    return f"request {request} by the {'new' if now.new_checkout else 'old'} checkout, logging at {now.log_level}"


def serve(requests: multiprocessing.Queue[int | None], answers: multiprocessing.Queue[str]) -> None:
    """Be one worker."""
    levels = []
    followed = threading.Semaphore(0)

    def follow(old: Snapshot[Flags] | None, new: Snapshot[Flags]) -> None:
        # Called at once with the current flags, then for each change: the logger follows them.
        if old is None or old.value.log_level != new.value.log_level:
            logging.getLogger().setLevel(new.value.log_level)
        levels.append(logging.getLogger().level)
        followed.release()

    with flags.subscribe(follow):
        for request in iter(requests.get, None):
            answers.put(handle(request))
        assert followed.acquire(timeout=60)
        while levels[-1] != logging.DEBUG:  # the listener has a thread of its own: wait for it
            assert followed.acquire(timeout=60)
    answers.put(f"the listener set the log level to {[logging.getLevelName(level) for level in levels]}")


def main() -> None:
    """Start a worker, turn a flag on, and show what the worker did."""
    context = multiprocessing.get_context("fork")
    requests, answers = context.Queue(), context.Queue()
    with Writer(STORE, type=Flags, initial=Flags()) as writer:
        worker = context.Process(target=serve, args=(requests, answers))
        worker.start()
        requests.put(1)
        print(answers.get(timeout=60))
        version = writer.patch(new_checkout=True, log_level="DEBUG")
        for request in (2, None):
            requests.put(request)
            print(answers.get(timeout=60))
        worker.join()
    print(f"the flags are at version {version}")
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
