"""Feed a store from a source: a file, a directory, a callable on a timer, or an ``Origin`` of your own.

::

    from shmcow.feed import File, follow, poll

    follow(File("/etc/app/config.toml"), "app-config", type=Config)            # until SIGTERM
    follow(poll(ask_the_registry, every=30.0), "backends", type=Backends, save="/var/lib/app/backends.shmcow")

Whatever is wrong with the source, the last good version stays in service, and the feed's state in the store says so:
``Reader.staleness()``, ``shmcow.describe(name).feed``, ``shmcow stat``. Nothing else in shmcow imports this package.
"""

from __future__ import annotations

from shmcow.documents import Rows
from shmcow.feed.content import document
from shmcow.feed.directory import Directory
from shmcow.feed.file import File
from shmcow.feed.follower import Event, follow
from shmcow.feed.origin import UNCHANGED, Content, Origin, SourceError
from shmcow.feed.polling import Poll, poll
from shmcow.feed.wake import Wake

__all__ = [
    "UNCHANGED",
    "Content",
    "Directory",
    "Event",
    "File",
    "Origin",
    "Poll",
    "Rows",
    "SourceError",
    "Wake",
    "document",
    "follow",
    "poll",
]
