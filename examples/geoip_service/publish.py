"""Publish the geo-IP table; every worker looks up in the new one from its next request on.

Run, before gunicorn and while it runs:

    python publish.py                                  a few built-in rows
    python publish.py --csv ranges.csv.gz              first address, last address, country, as geo-IP files have them
    python publish.py --csv a.csv.gz --csv b.csv.gz --times 10 --every 1
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

from table import CODEC, STORE, Place

from shmcow import IPTable, Writer

BUILT_IN = [("1.1.1.0/24", "AU"), ("8.8.8.0/24", "US"), ("2001:db8::/32", "ZZ"), ("192.0.2.1", "ZZ")]


def rows(paths: list[str], edition: int) -> Iterable[tuple[Any, ...]]:
    """Return the rows of files, or what is built in; they are never all in memory."""
    if paths:
        return IPTable.rows_from_csv(paths, value=lambda fields: Place(fields[2], edition))
    return [(network, Place(country, edition)) for network, country in BUILT_IN]


def main() -> None:
    """Publish as often as the command line says, and print each version once workers see it."""
    parser = argparse.ArgumentParser(description="Publish a new edition of the geo-IP table.")
    parser.add_argument("--csv", action="append", default=[], metavar="FILE", help="rows: first,last,country")
    parser.add_argument("--times", type=int, default=1, help="how many editions (default 1)")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="pause between two (default 1)")
    given = parser.parse_args()
    with Writer(STORE, codec=CODEC, retain=1) as writer:
        for k in range(given.times):
            if k:
                time.sleep(given.every)
            edition = writer.version + 1  # this process is the only one that publishes
            version = writer.publish(rows(given.csv, edition), message=f"edition {edition}", expected=edition - 1)
            print(f"version {version}", flush=True)


if __name__ == "__main__":
    main()
