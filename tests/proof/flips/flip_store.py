"""A small store whose files are damaged in place, and put right again."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Any

from flip_fields import Region, header_regions, segment_regions

import shmcow
from shmcow import Writer, _core

SHM = Path("/dev/shm")
WORDS = 512
# Of one length, so that one payload in the place of another would show as a wrong value and not as a wrong length.
VALUES: dict[int, Any] = {n: {"version": n, "text": f"value number {n}"} for n in (1, 2, 3)}
NEW = {"version": 4, "text": "published on top"}
CURRENT, OLDER = 3, 1
FEED_SHOWN = 0  # the slot, after two turns


class File:
    """One file as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole = path.read_bytes()
        self.mode = path.stat().st_mode & 0o7777
        self.fd = -1
        self.open()

    def open(self) -> None:
        path = self.path
        path.chmod(0o600)
        self.fd = os.open(path, os.O_RDWR)
        path.chmod(self.mode)
        st = os.fstat(self.fd)
        self.identity = st.st_dev, st.st_ino

    def named(self) -> bool:
        try:
            st = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return (st.st_dev, st.st_ino) == self.identity

    def restore(self) -> None:
        if not self.named():
            os.close(self.fd)
            self.path.unlink(missing_ok=True)
            self.path.touch()
            self.open()
        if os.fstat(self.fd).st_size != len(self.whole):
            os.ftruncate(self.fd, len(self.whole))
        os.pwrite(self.fd, self.whole, 0)


class Store:
    """Three versions, each of one segment; every byte known by its field."""

    def __init__(self, name: str) -> None:
        self.name = name
        with Writer(name) as w:
            for version in VALUES:
                w.publish(VALUES[version], message="why", author="who", source="where")
        self.feed(name)
        self.report = shmcow.describe(name)
        header = SHM / f"shmcow.{name}"
        self.prefix = f"{header.name}.{self.report.epoch}."
        self.files = {"header": File(header)}
        for generation in self.report.generations:
            file = File(SHM / f"{self.prefix}{generation.segments[0]}")
            self.files["segment" if generation.version == CURRENT else f"segment {generation.version}"] = file
        self.empty = [self.prefix + "lock", self.prefix + "holds"]
        self.kept = {file.path.name for file in self.files.values()} | set(self.empty)
        image = self.files["header"].whole
        words = struct.unpack_from(f"<{_core.GENERATIONS}Q", image, WORDS)
        self.versions = {i: word >> 16 for i, word in enumerate(words) if word & 0xFFFF}
        payload = next(g.size_bytes for g in self.report.generations if g.version == CURRENT)
        self.regions = header_regions() + segment_regions(payload)

    def feed(self, name: str) -> None:
        """Fill both slots of the feed's state; the second one is shown."""
        feed = _core.FeedCore(_core.Store(str(SHM / f"shmcow.{name}")))
        assert feed.take()
        for count in (1, 2):
            feed.show((1, 2, 3, 4, 5), (count, 1, 1, 0), b"a file", b"an error")
        feed.release()

    def version_at(self, region: Region) -> int:
        """Return the version whose word, entry or segment a region is of; 0: none, it is FREE."""
        if region.file == "segment":
            return CURRENT
        return self.versions.get(region.index, 0) if region.kind in ("word", "entry") else 0

    def claimed_at(self, region: Region) -> int:
        """Return the version that a damaged word claims."""
        if region.kind != "word":
            return 0
        word: int = struct.unpack("<Q", os.pread(self.files["header"].fd, 8, region.start))[0]
        return word >> 16

    def damage(self, file: str, offset: int, wrong: bytes) -> None:
        """Change bytes by XOR."""
        whole = self.files[file].whole
        data = bytes(a ^ b for a, b in zip(whole[offset : offset + len(wrong)], wrong, strict=False))
        os.pwrite(self.files[file].fd, data, offset)

    def mend(self, file: str, offset: int, length: int) -> None:
        """Undo ``damage`` when nobody wrote since."""
        os.pwrite(self.files[file].fd, self.files[file].whole[offset : offset + length], offset)

    def cut(self, file: str, length: int) -> None:
        os.ftruncate(self.files[file].fd, length)

    def restore(self) -> None:
        """Put everything right after a writer's turn: new files, lost ones, all bytes."""
        for entry in os.listdir(SHM):
            if entry.startswith(self.prefix[: self.prefix.index(".", 7) + 1]) and entry not in self.kept:
                (SHM / entry).unlink(missing_ok=True)
        for entry in self.empty:
            (SHM / entry).touch()
        for file in self.files.values():
            file.restore()

    def remove(self) -> None:
        """Take it all away."""
        for entry in os.listdir(SHM):
            if entry == f"shmcow.{self.name}" or entry.startswith(f"shmcow.{self.name}."):
                with contextlib.suppress(FileNotFoundError):
                    (SHM / entry).unlink()
