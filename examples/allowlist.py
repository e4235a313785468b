"""A trusted-IP allowlist in CIDR notation: every worker asks it for each connection, and it changes while they run.

Problem: who may enter is checked on the hot path, in every worker; a partner's network has to be added, or cut off,
at once and everywhere; and a broken upload must neither lock everybody out nor let everybody in.
Run it: python examples/allowlist.py
It prints: what worker processes say about some addresses while networks are added, cut off and removed, and how an
empty list and a wrong network are refused.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable

import shmcow
from shmcow import IPTable, IPTableView, Reader, ValidationError, Writer, validators

STORE = f"example-allowlist-{os.getpid()}"
CODEC = IPTable(bool)
trusted = Reader(STORE, codec=CODEC)


def may_enter(address: str) -> bool:
    """Tell whether an address is trusted. False in a row cuts a part out of a larger network; no address: no entry."""
    try:
        return trusted.get().get(address, False)
    except ValueError:
        return False


def without(table: IPTableView[bool], network: str) -> Iterable[tuple[str, bool]]:
    """Return the rows without one of them; KeyError, and nothing is published, if it is not there."""
    rows = table.to_dict()
    del rows[network]
    return rows.items()


def main() -> None:
    """Ask workers about addresses, change the list, and ask again."""
    checks = [validators.min_count(2)]
    with Writer(STORE, codec=CODEC, validators=checks) as writer, multiprocessing.get_context("fork").Pool(2) as pool:

        def ask(*addresses: str) -> None:
            for address, entered in zip(addresses, pool.map(may_enter, addresses), strict=True):
                print(f"version {writer.version}: {address} {'enters' if entered else 'stays out'}")

        writer.publish([("10.0.0.0/8", True), ("203.0.113.7", True), ("2001:db8::/32", True)])
        ask("10.1.2.3", "::ffff:10.1.2.3", "198.51.100.9", "2001:db8::1", "no address")
        # A partner comes; a part of our own network is cut off: the most specific row answers.
        writer.update(lambda old: [*old, ("198.51.100.0/24", True), ("10.1.0.0/16", False)])
        ask("10.1.2.3", "10.2.2.3", "198.51.100.9")
        writer.update(lambda old: without(old, "203.0.113.7/32"))
        ask("203.0.113.7", "10.2.2.3")
        for bad in ([], [("10.0.0.0/8", True), ("10.0.0.0/99", True)]):
            try:
                writer.publish(bad)
            except ValidationError as exc:
                print(f"refused: {exc}")
        assert writer.version == 3
        ask("10.2.2.3")
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
