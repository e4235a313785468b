"""Contents out of bytes: documents (JSON, TOML, YAML, MessagePack), tables (CSV), MMDB and raw bytes.

The parsers are those of ``shmcow publish``: ``shmcow.documents``.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from contextlib import ExitStack
from typing import Any, Final

from shmcow import documents, publishing
from shmcow.codecs import Codec
from shmcow.documents import Rows
from shmcow.errors import ValidationError
from shmcow.feed.origin import Content, SourceError

__all__ = ["document", "tag_of"]

_GZIP: Final = b"\x1f\x8b"
_CHUNK: Final = 1 << 20


def tag_of(data: bytes | bytearray | memoryview) -> str:
    """Return a hash of some bytes (BLAKE2b, 128 bits), to be used as a content's tag.

    Concurrency: pure.
    """
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def document(
    data: bytes | bytearray,
    form: str,
    *,
    where: str,
    tag: str | None = None,
    rows: Rows | None = None,
    force: bool = False,
    max_bytes: int | None = None,
) -> Content:
    """Make a content of a document's bytes.

    Args:
        data: all of it; not changed afterwards.
        form: one of ``documents.FORMATS``.
        where: what messages call it, such as the file's name.
        tag: None: a hash of the bytes.
        rows: for "csv": how it becomes a table.
        force: as for ``publishing.codec_for``.
        max_bytes: a CSV that is packed (.gz) may have so many when it is unpacked; None: no limit.

    Concurrency: pure; what is wrong in it is told when the content is made into a value.
    """

    def make(name: str, type_: Any, stack: ExitStack) -> tuple[Codec[Any], Any]:
        if not data and form not in ("raw", "msgpack"):
            raise ValidationError(f"{where} is empty: is it being written?")
        if form == "csv":
            if max_bytes is not None:
                _check_unpacked(data, where, max_bytes)
            file = stack.enter_context(_file_of(bytes(data)))
            return publishing.table_of(name, file, rows or Rows(), type_, where=where)
        codec = publishing.codec_for(name, type_, form, force=force)
        if form in ("raw", "mmdb"):
            return codec, memoryview(data).toreadonly()
        typed = codec if codec.name in ("msgpack", "json") else None
        return codec, documents.parse(data, form, where=where, codec=typed)

    return Content(tag_of(data) if tag is None else tag, make)


def _file_of(data: bytes) -> io.BufferedReader:
    """Return a file of one's own with these bytes: nobody can cut it while its rows are read."""
    file = io.FileIO(os.memfd_create("shmcow-feed", os.MFD_CLOEXEC), "r+")
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    file.seek(0)
    return io.BufferedReader(file)


def _check_unpacked(data: bytes | bytearray, where: str, most: int) -> None:
    """Refuse what is small and becomes huge. What else is wrong with it, whoever unpacks it says."""
    total, rest = 0, bytes(data) if data[:2] == _GZIP else b""
    member = zlib.decompressobj(31)
    while rest:
        try:
            total += len(member.decompress(rest, _CHUNK))
        except zlib.error:
            return
        if total > most:
            raise SourceError(f"{where} has more than {most:,} bytes when it is unpacked (max_bytes allows more)")
        rest = member.unused_data if member.eof else member.unconsumed_tail
        if member.eof:
            member = zlib.decompressobj(31)
