"""Publish the next revision of the configuration; every worker answers with it from its next request on.

Run, while gunicorn runs or before it:

    python publish.py                           once
    python publish.py --times 100 --every 0.1   again and again
"""

from __future__ import annotations

import argparse
import time

from settings import BUILT_IN, STORE, Config, revised

from shmcow import Writer


def publish() -> int:
    """Publish the next revision, and return its version. The first call creates the store, with the built-in values.

    ``update`` runs under the writer lock: of two processes that publish at once, each makes a revision of its own.
    """
    with Writer(STORE, type=Config, initial=BUILT_IN) as writer:
        return writer.update(lambda old: revised(old.revision + 1), message="the next revision")


def main() -> None:
    """Publish as often as the command line says, and print each version once workers see it."""
    parser = argparse.ArgumentParser(description="Publish the next revision of the configuration.")
    parser.add_argument("--times", type=int, default=1, help="how many revisions (default 1)")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="pause between two (default 1)")
    given = parser.parse_args()
    for k in range(given.times):
        if k:
            time.sleep(given.every)
        print(f"version {publish()}", flush=True)


if __name__ == "__main__":
    main()
