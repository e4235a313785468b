"""The geo-IP table that all workers share: what a row says, its store, and the Reader that is made at import."""

from __future__ import annotations

import os

import msgspec

import shmcow

STORE = os.environ.get("GEO_STORE", "geoip-example")


class Place(msgspec.Struct, frozen=True):
    """What is known of an address."""

    country: str
    edition: int  # which edition of the data said so


# Geo-IP files as they come have a few ranges that contradict each other: those are left out, and counted in the log.
CODEC = shmcow.IPTable(Place, overlaps="drop")

# A Reader attaches at its first read, so this module may be imported before the store exists, and before a fork.
geo = shmcow.Reader(STORE, codec=CODEC)
