"""A directory as a source: each file is a key."""

from __future__ import annotations

import hashlib
import math
import os
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from shmcow import documents
from shmcow.codecs import JSON, Codec, MsgPack
from shmcow.feed.content import document
from shmcow.feed.origin import Content, SourceError
from shmcow.feed.paths import Signature, open_regular, read_all, signature
from shmcow.feed.wake import Wake
from shmcow.feed.watched import DEBOUNCE, EVERY, MAX_BYTES, Watched
from shmcow.publishing import codec_for

__all__ = ["Directory"]

_MOST_FILES: Final = 10_000
_ATTEMPTS: Final = 5  # at a directory that changes while it is read
_DATA: Final = "..data"  # in a Kubernetes volume: a symlink to what all names lead into, replaced as a whole
_DOCUMENTS: Final = ("json", "toml", "yaml")


class Directory(Watched):
    """A directory that a store is fed from: a dict of its files, such as the mount of a Kubernetes ConfigMap.

    A key is a file's name, its value the file's text (UTF-8), as it is. Names that begin with a dot and subdirectories
    are left out; an empty directory is refused. All values are of one state of the directory: where Kubernetes swaps
    ``..data``, or a deployment a symlink on the path, those before or those after; where single files change, it is
    read again until it rests.

    Args:
        path: of the directory.
        parse: JSON, TOML and YAML files become their values, under their names without the suffix.
        every, debounce: as for ``File``.
        max_bytes: all files together may have so many.

    Raises:
        ImportError: watchfiles is not installed: ``pip install 'shmcow[feed]'``.
        ValueError: a number is out of range.

    Concurrency: one follower's thread.

    Source: https://kubernetes.io/docs/concepts/configuration/configmap/ (mounted ConfigMaps), and the volume's
    ``..data`` link as kubelet's AtomicWriter makes it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        parse: bool = False,
        every: float = EVERY,
        debounce: float = DEBOUNCE,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(path, every, debounce, max_bytes, inside=True)
        self._parse = parse

    def fetch(self, known: str | None, wake: Wake) -> Content | None:
        """Read all files. See ``Origin.fetch``."""
        self._watcher.arm()
        found = None
        for _ in range(_ATTEMPTS):
            found = self._read()
            if found is not None or wake.stopping:
                break
        if found is None:
            raise SourceError(f"{self._where} is being changed")
        if not found[1]:
            raise SourceError(f"{self._where} is empty: is it mounted yet?")
        tag, values = found
        return None if tag == known else Content(tag, lambda name, type_, stack: self._made(values, name, type_, stack))

    def _made(self, values: dict[str, Any], name: str, type_: Any, stack: ExitStack) -> tuple[Codec[Any], Any]:
        codec = codec_for(name, type_)
        if not isinstance(codec, MsgPack | JSON) or codec.type is Any:
            return codec, values  # as they are: JSON has no dates, no bytes, no infinity
        where = _not_finite(values)
        if where is not None:
            raise SourceError(f"{self._where}: {where} is inf or nan, which do not go with a type and parse")
        return document(msgspec.json.encode(values), "json", where=self._where).make(name, type_, stack)

    def _read(self) -> tuple[str, dict[str, Any]] | None:
        """Return a tag of what is there, and the values; None: it changed meanwhile."""
        fd = _open_directory(self._path)
        digest = hashlib.blake2b(digest_size=16)
        try:
            before = _listed(fd, self._where)
            values: dict[str, Any] = {}
            left = self._max_bytes
            for name in before:
                data = self._read_file(fd, name, left)
                if data is None:
                    return None
                left -= len(data)
                digest.update(b"%s/%d/%s" % (name.encode(), len(data), data))
                key, value = self._value_of(name, data)
                if key in values:
                    raise SourceError(f"{self._where} has two files for the key {key!r}")
                values[key] = value
            after = _listed(fd, self._where)
        finally:
            os.close(fd)
        return (digest.hexdigest(), values) if before == after else None

    def _read_file(self, directory: int, name: str, most: int) -> bytes | None:
        try:
            fd = open_regular(name, directory)
        except FileNotFoundError:
            return None
        except SourceError as exc:
            raise SourceError(f"{self._where}{exc}") from None
        try:
            return read_all(fd, f"{self._where}{name}", most)[0]
        finally:
            os.close(fd)

    def _value_of(self, name: str, data: bytes) -> tuple[str, Any]:
        where = f"{self._where}{name}"
        form = documents.format_of(name)
        if self._parse and form in _DOCUMENTS:
            return os.path.splitext(name)[0], documents.parse(data, form, where=where)
        try:
            return name, data.decode()
        except UnicodeDecodeError as exc:
            line = data.count(b"\n", 0, exc.start) + 1
            raise SourceError(f"{where}, line {line}: it is no UTF-8: {exc.reason}") from None


def _open_directory(path: str) -> int:
    """Open a directory, or, of a volume of Kubernetes, the state of it that is complete now."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(os.path.join(path, _DATA), flags)
    except FileNotFoundError:
        return os.open(path, flags)


def _listed(fd: int, where: str) -> dict[str, Signature]:
    """Return the files in a directory, by name."""
    found: dict[str, Signature] = {}
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.name.isascii() and not _is_utf8(entry.name):
                raise SourceError(f"{where} has a file whose name is no UTF-8: {entry.name!a}")
            try:
                status = entry.stat()
                if not entry.is_dir():
                    found[entry.name] = signature(status)
            except FileNotFoundError:
                if entry.is_symlink():
                    raise SourceError(f"{where}{entry.name} is a symlink that leads nowhere") from None
                continue  # it went this very moment: the next look tells
            if len(found) > _MOST_FILES:
                raise SourceError(f"{where} has more than {_MOST_FILES:,} files: is it the right directory?")
    return dict(sorted(found.items()))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_finite(value: Any) -> str | None:
    """Return where in a value a number is that JSON does not have, if there is one."""
    todo = [("$", value)]
    while todo:
        where, item = todo.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return where
        if isinstance(item, dict):
            todo += [(f"{where}.{key}", inner) for key, inner in item.items()]
        elif isinstance(item, list):
            todo += [(f"{where}[{n}]", inner) for n, inner in enumerate(item)]
    return None
