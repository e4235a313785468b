"""What changed from one version to another: added, removed and changed parts, with their paths."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from shmcow import _core, codecs
from shmcow.codecs import IPTableView, StoredPart, TableView
from shmcow.codecs.arrays import stored_arrays
from shmcow.codecs.iptable import range_text
from shmcow.decoding import check_payload, stored_parts
from shmcow.errors import CodecMismatchError, CorruptSegmentError, DecodeError, VersionGoneError
from shmcow.segments import check_name
from shmcow.store import attach, hold_at

__all__ = ["Change", "Difference", "Sealed", "changes", "diff", "path_text"]

_TRIES: Final = 100  # to hold a previous version, where one is published and reclaimed after the other

Path: TypeAlias = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Sealed:
    """Something that is compared as a whole: bytes, a file, an array, or a part of another kind than before.

    Attributes:
        what: it is, such as "raw" or "table".
        size_bytes: of it.
        digest: BLAKE2b of its bytes, 16 of them, hexadecimal.
        rows: of a table; else None.
    """

    what: str
    size_bytes: int
    digest: str
    rows: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        kind: "added", "removed" or "changed".
        path: keys and indexes from the top; of a bundle the first is the part's name. An index is that in the new
            version, or in the old one of what was removed. The last one of a row of a table is its key, or its network.
        old: plain data, or Sealed; None if it was added.
        new: the same; None if it was removed.
        row: whether it is a row of a table.
    """

    kind: Literal["added", "removed", "changed"]
    path: Path
    old: Any
    new: Any
    row: bool = False

    @property
    def where(self) -> str:
        """The path as ``shmcow get`` takes it; "" for the whole value."""
        return path_text(self.path, row=self.row)


def path_text(path: Path, *, row: bool = False) -> str:
    """Write a path: its steps joined by dots, or as a JSON pointer (RFC 6901) where that would be ambiguous.

    Args:
        path: keys and indexes.
        row: whether the last one is the key of a table's row, which may have dots in it.

    Concurrency: pure.
    """
    steps = [step.decode(errors="backslashreplace") if isinstance(step, bytes) else str(step) for step in path]
    text = ".".join(steps)
    plain = steps[:-1] if row else steps
    if not any("." in step for step in plain) and all(text.split(".")) and not text.startswith("/"):
        return text
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


# ---- two versions of a store ----


class Difference:
    """What changed between two versions of a store. Iterating yields each Change, as it is found.

    Attributes:
        name: of the store.
        old_version, new_version: what is compared.
        problems: parts that cannot be decoded, and why; their bytes were compared. Complete after iterating.

    Both versions are held as long as this object lives.

    Concurrency: any thread; several iterators are independent.
    """

    def __init__(self, old: _core.Hold, new: _core.Hold) -> None:
        self.name = new.store.name
        self.old_version = old.version
        self.new_version = new.version
        self.problems: list[str] = []
        self._old = old
        self._new = new

    def __iter__(self) -> Iterator[Change]:
        self.problems.clear()
        if _segments(self._old) == _segments(self._new):
            return
        old, new = _parts(self._old), _parts(self._new)
        for name, part in old.items():
            if name in new:
                yield from self._changes_of(name, part, new[name])
            else:
                yield Change("removed", (name,), _shown(self._content(self._old, part), part), None)
        for name, part in new.items():
            if name not in old:
                yield Change("added", (name,), None, _shown(self._content(self._new, part), part))

    def __repr__(self) -> str:
        return f"<Difference of store {self.name}, version {self.old_version} to {self.new_version}>"

    def _changes_of(self, name: str, old: _Part, new: _Part) -> Iterator[Change]:
        """Yield what changed in one part."""
        if old.segment == new.segment or (
            old.stored.codec == new.stored.codec and _core.same(old.stored.view, new.stored.view)
        ):
            return
        at: Path = (name,) if name else ()
        before, after = self._content(self._old, old), self._content(self._new, new)
        if isinstance(before, TableView) and isinstance(after, TableView):
            yield from _rows(at, before, after)
        elif isinstance(before, IPTableView) and isinstance(after, IPTableView):
            yield from _networks(at, before, after)
        elif isinstance(before, _Arrays) and isinstance(after, _Arrays):
            yield from _arrays(at, before.listed, after.listed)
        else:
            yield from changes(_shown(before, old), _shown(after, new), at)

    def _content(self, hold: _core.Hold, part: _Part) -> Any:
        """Decode a part: plain data, a view of a table, _Arrays, or Sealed for what is bytes to us."""
        stored = part.stored
        where = f"version {hold.version} of store {self.name}" + (f", part {stored.name!r}" if stored.name else "")
        if stored.codec not in ("msgpack", "json", "table", "iptable", "arrays"):
            return _sealed(stored.codec, stored.view)
        try:
            check_payload(stored.view, part.listed, False, where)
            if stored.codec == "arrays":
                return _Arrays(stored_arrays(stored.view))
            return codecs.for_name(stored.codec).decode_parts([stored])
        except (DecodeError, CodecMismatchError, CorruptSegmentError) as exc:
            self.problems.append(str(exc) if isinstance(exc, CorruptSegmentError) else f"{where}: {exc}")
            return _sealed(stored.codec, stored.view)


def diff(name: str, old: int | None = None, new: int | None = None) -> Difference:
    """Compare two versions of a store.

    Values are compared as they are stored, whatever class they are decoded to: dicts by key, lists with what was
    inserted and removed found, tables row by row, the parts of bundles one by one. Bytes, MaxMind DB files and numpy
    arrays are equal or not, and so is what a codec of your own made. Versions and parts that share their segments are
    equal without a look into them.

    Args:
        name: of the store.
        old: a version; None: the newest one before ``new`` that can still be opened.
        new: a version; None: the current one.

    Returns:
        The Difference, which holds both versions.

    Raises:
        StoreNotFoundError, StoreDestroyedError: there is no such store.
        NotPublishedError: it has no version yet.
        VersionGoneError: one of the versions cannot be opened any more.
        CorruptSegmentError, IncompatibleStoreError: the store cannot be read.
        NotOwnerError: its permissions do not let this process read it.

    Concurrency: any thread; reads only. While it lives, this process is a holder of both versions.

    Example:
        >>> import shmcow
        >>> with shmcow.Writer("doc-diff", initial={"hosts": ["a", "b"], "timeout": 1}) as w:
        ...     version = w.publish({"hosts": ["new", "a", "b"], "timeout": 2})
        ...     for change in shmcow.inspect.diff("doc-diff"):
        ...         print(change.kind, change.where, change.old, change.new)
        ...     w.destroy()
        added hosts.0 None new
        changed timeout 1 2
    """
    store = attach(check_name(name))
    after = store.hold() if new is None else hold_at(store, new)
    if old is not None:
        return Difference(hold_at(store, old), after)
    for _ in range(_TRIES):
        before = _previous(store, after.version)
        if before is not None:
            return Difference(before, after)
        if new is not None or store.version == after.version:
            break
        after = store.hold()
    raise VersionGoneError(
        f"no version of store {name} before {after.version} can be opened any more: there is nothing to compare it with"
    )


def _previous(store: _core.Store, version: int) -> _core.Hold | None:
    for candidate, _, entry in sorted(store.generations(), key=lambda row: row[0], reverse=True):
        if candidate < version and entry is not None:
            try:
                return store.hold(candidate)
            except VersionGoneError:
                continue
    return None


class _Part(NamedTuple):
    segment: int
    listed: dict[str, Any]
    stored: StoredPart


class _Arrays(NamedTuple):
    listed: Mapping[str, tuple[str, memoryview]]


def _segments(hold: _core.Hold) -> list[tuple[str, int]]:
    return [(part["name"], part["segment"]) for part in hold.entry["parts"]]


def _parts(hold: _core.Hold) -> dict[str, _Part]:
    """Return the parts of a version by name; "" where it is one without a name."""
    entry = hold.entry
    return {
        stored.name: _Part(listed["segment"], listed, stored)
        for stored, listed in zip(stored_parts(hold, entry), entry["parts"], strict=True)
    }


def _sealed(what: str, view: memoryview, rows: int | None = None) -> Sealed:
    return Sealed(what, view.nbytes, hashlib.blake2b(view, digest_size=16).hexdigest(), rows)


def _shown(content: Any, part: _Part) -> Any:
    """Return what a Change shows of a part: plain data as it is, the rest as a whole."""
    if isinstance(content, TableView | IPTableView):
        return _sealed(part.stored.codec, part.stored.view, len(content))
    return _sealed(part.stored.codec, part.stored.view) if isinstance(content, _Arrays) else content


# ---- tables and arrays ----


def _rows(at: Path, old: TableView[Any, Any], new: TableView[Any, Any]) -> Iterator[Change]:
    """Look each row up in the other table, in the order of the rows."""
    missing: Any = object()
    same_keys = old._kind == new._kind
    for key, before in old.items():
        after = new.get(key, missing) if same_keys else missing
        if after is missing:
            yield Change("removed", (*at, key), before, None, row=True)
        elif not _same(before, after):
            yield Change("changed", (*at, key), before, after, row=True)
    for key, after in new.items():
        if not same_keys or key not in old:
            yield Change("added", (*at, key), None, after, row=True)


_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def _place(row: tuple[_Address, _Address, Any] | None) -> tuple[int, int, int]:
    """Where a row stands among all: by first address, and what contains others before them."""
    if row is None:
        return (7, 0, 0)
    first, last, _ = row
    return (first.version, int(first), -int(last))


def _networks(at: Path, old: IPTableView[Any], new: IPTableView[Any]) -> Iterator[Change]:
    """Go through both tables side by side: both are sorted."""
    olds, news = iter(old), iter(new)
    before, after = next(olds, None), next(news, None)
    while before is not None or after is not None:
        here, there = _place(before), _place(after)
        if before is not None and here <= there:
            path = (*at, range_text(before[0], before[1]))
            if here < there:
                yield Change("removed", path, before[2], None, row=True)
            elif after is not None:
                if not _same(before[2], after[2]):
                    yield Change("changed", path, before[2], after[2], row=True)
                after = next(news, None)
            before = next(olds, None)
        elif after is not None:
            yield Change("added", (*at, range_text(after[0], after[1])), None, after[2], row=True)
            after = next(news, None)


def _arrays(
    at: Path, old: Mapping[str, tuple[str, memoryview]], new: Mapping[str, tuple[str, memoryview]]
) -> Iterator[Change]:
    for name, (what, view) in old.items():
        if name not in new:
            yield Change("removed", (*at, name), _sealed(what, view), None)
        elif what != new[name][0] or not _core.same(view, new[name][1]):
            yield Change("changed", (*at, name), _sealed(what, view), _sealed(*new[name]))
    for name, (what, view) in new.items():
        if name not in old:
            yield Change("added", (*at, name), None, _sealed(what, view))


# ---- plain data ----


def changes(old: Any, new: Any, at: Path = ()) -> Iterator[Change]:
    """Yield what changed between two values.

    Args:
        old, new: made of dicts, lists and scalars. 1, 1.0 and True differ from each other; the order of a dict's keys
            is not looked at.
        at: where they are: what each path begins with.

    Raises:
        DecodeError: they are nested too deeply to be compared.

    Concurrency: pure; nobody may change the values meanwhile.
    """
    # Iterators, for a value may be nested deeper than Python calls.
    todo: list[Iterator[Change | _Pair]] = [iter([_Pair(at, old, new)])]
    try:
        while todo:
            found = next(todo[-1], None)
            if found is None:
                todo.pop()
            elif isinstance(found, Change):
                yield found
            elif isinstance(found.old, Mapping) and isinstance(found.new, Mapping):
                todo.append(_in_dicts(*found))
            elif isinstance(found.old, list | tuple) and isinstance(found.new, list | tuple):
                todo.append(_in_lists(*found))
            elif not _same(found.old, found.new):
                yield Change("changed", found.path, found.old, found.new)
    except RecursionError as exc:
        raise DecodeError("the values are nested too deeply to be compared") from exc


class _Pair(NamedTuple):
    """Two values at the same place, to be compared."""

    path: Path
    old: Any
    new: Any


def _in_dicts(path: Path, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Iterator[Change | _Pair]:
    kinds, others = _kinds(old), _kinds(new)
    for key, value in old.items():
        if _has(new, others, key):
            yield _Pair((*path, key), value, new[key])
        else:
            yield Change("removed", (*path, key), value, None)
    for key, value in new.items():
        if not _has(old, kinds, key):
            yield Change("added", (*path, key), None, value)


def _kinds(value: Mapping[Any, Any]) -> dict[Any, type]:
    return {key: type(key) for key in value if type(key) is not str}


def _has(value: Mapping[Any, Any], kinds: dict[Any, type], key: Any) -> bool:
    """Tell whether a dict has this very key: 1, 1.0 and True are not the same."""
    return key in value and (type(key) is str or kinds[key] is type(key))


def _in_lists(path: Path, old: Sequence[Any], new: Sequence[Any]) -> Iterator[Change | _Pair]:
    for k, j in _aligned([_key(item) for item in old], [_key(item) for item in new]):
        if k is not None and j is not None:
            yield _Pair((*path, j), old[k], new[j])
        elif k is not None:
            yield Change("removed", (*path, k), old[k], None)
        elif j is not None:
            yield Change("added", (*path, j), None, new[j])


def _aligned(old: list[Any], new: list[Any]) -> Iterator[tuple[int | None, int | None]]:
    """Pair the items of two lists that are not equal; None: it has no counterpart.

    What both lists begin and end with is equal. Of the rest, items that occur once in either list are the points at
    which it is cut up ("patience diff"), as many of them as come in the same order.
    """
    todo = [(0, len(old), 0, len(new))]
    while todo:
        k, end, j, stop = todo.pop()
        while k < end and j < stop and old[k] == new[j]:
            k, j = k + 1, j + 1
        while k < end and j < stop and old[end - 1] == new[stop - 1]:
            end, stop = end - 1, stop - 1
        cuts = _cuts(old, new, k, end, j, stop) if k < end and j < stop else []
        if cuts:
            pieces = []
            for at, to in cuts:
                pieces.append((k, at, j, to))
                k, j = at + 1, to + 1
            todo += reversed([*pieces, (k, end, j, stop)])
            continue
        paired = min(end - k, stop - j)
        yield from zip(range(k, k + paired), range(j, j + paired), strict=True)
        yield from ((at, None) for at in range(k + paired, end))
        yield from ((None, to) for to in range(j + paired, stop))


def _cuts(old: list[Any], new: list[Any], k: int, end: int, j: int, stop: int) -> list[tuple[int, int]]:
    """The longest row of pairs of equal items that occur once in either piece, both indexes growing."""
    once, there = _once(old, k, end), _once(new, j, stop)
    ends: list[int] = []  # for each length of a row: the smallest index in `new` that one ends with
    tails: list[tuple[int, int]] = []  # and the pair that this is
    before: dict[int, tuple[int, int] | None] = {}
    for item, index in once.items():
        to = there.get(item)
        if to is None:
            continue
        length = bisect.bisect_left(ends, to)
        before[index] = tails[length - 1] if length else None
        ends[length : length + 1] = [to]
        tails[length : length + 1] = [(index, to)]
    row: list[tuple[int, int]] = []
    pair = tails[-1] if tails else None
    while pair is not None:
        row.append(pair)
        pair = before[pair[0]]
    return row[::-1]


def _once(items: list[Any], start: int, end: int) -> dict[Any, int]:
    """The items that occur once in a piece of a list -> where, in their order."""
    found: dict[Any, int] = {}
    again = set()
    for index in range(start, end):
        if items[index] in found:
            again.add(items[index])
        found[items[index]] = index
    for item in again:
        del found[item]
    return found


_encode: Final = msgspec.msgpack.Encoder(order="deterministic").encode


def _key(value: Any) -> str | bytes:
    """Something that is equal for equal values only."""
    if type(value) is str:
        return value
    try:
        return _encode(value)
    except (TypeError, OverflowError, ValueError):  # keys that are no texts, numbers that MessagePack has not
        return _written(value).encode(errors="surrogatepass")


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        items = sorted(f"{_written(key)}:{_written(item)}" for key, item in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_written(item) for item in value) + "]"
    return f"{type(value).__name__} {value!r}"


def _same(old: Any, new: Any) -> bool:
    if old is new or type(old) is not type(new):
        return old is new
    return bool(old == new) if isinstance(old, str | int | bytes | Sealed) else _key(old) == _key(new)
