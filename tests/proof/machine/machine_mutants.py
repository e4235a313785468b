"""Wrong behaviours of the product, planted in the processes of the state machine: each must be found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmcow import Reader, Snapshot, Writer, draft, frozen, snapshot, store, writer


def expected_is_ignored() -> None:
    was = Writer.publish

    def publish(self: Writer[Any], value: Any, *, expected: int | None = None, **said: str) -> int:  # noqa: ARG001
        return was(self, value, **said)

    Writer.publish = publish  # type: ignore[method-assign]


def hold_does_not_hold() -> None:
    Snapshot.hold = lambda self: self  # type: ignore[method-assign]


def release_lets_go_of_all() -> None:
    Snapshot.release = lambda self: self._holds.clear()  # type: ignore[method-assign]


def pickling_holds_nothing() -> None:
    was = Snapshot.__reduce__

    def reduce(self: Snapshot[Any]) -> Any:
        held = self.held
        sent = was(self)
        if not held:
            self.release()
        return sent

    Snapshot.__reduce__ = reduce  # type: ignore[method-assign]


def received_is_not_held() -> None:
    was = snapshot._twin

    def twin(known: Snapshot[Any], hold: Any) -> Snapshot[Any]:
        new = was(known, hold)
        new._holds = []
        return new

    snapshot._twin = twin


def rollback_goes_back_by_one_only() -> None:
    Writer._before = lambda self, store, current: current - 1  # type: ignore[method-assign]  # noqa: ARG005


def one_version_too_few_is_retained() -> None:
    was = Writer.__init__

    def init(self: Writer[Any], *given: Any, retain: int | None = None, **more: Any) -> None:
        was(self, *given, retain=max(retain - 1, 0) if retain else retain, **more)

    Writer.__init__ = init  # type: ignore[method-assign]


def patch_adds_no_key() -> None:
    was = draft.patched

    def patched(value: Any, changes: dict[str, Any]) -> Any:
        return was(value, {key: new for key, new in changes.items() if key in value})

    draft.patched = patched


def values_are_not_frozen() -> None:
    frozen.freeze = lambda value: value


def a_reader_misses_each_seventh_version() -> None:
    was = Reader._advance

    def advance(self: Reader[Any]) -> None:
        known = self._store
        cached = self._cached()
        if known is not None and cached is not None and cached[0] == known.serial and known.word % 7 == 0:
            self._settle(known, known.word)
        else:
            was(self)

    Reader._advance = advance  # type: ignore[method-assign]


def destroy_leaves_the_lock_file() -> None:
    was = store.segments.unlink
    store.segments.unlink = lambda name: False if name.endswith(".lock") else was(name)


def what_is_half_built_stays() -> None:
    store.Turn._take_long = _take_long_without_recovery(store.Turn._take_long)  # type: ignore[method-assign]


def _take_long_without_recovery(was: Callable[..., None]) -> Callable[..., None]:
    def take_long(self: Any, deadline: float) -> None:
        ending, self._ending = self._ending, True
        try:
            was(self, deadline)
        finally:
            self._ending = ending

    return take_long


def updates_of_a_destroyed_store_go_to_the_next() -> None:
    writer.Turn = lambda keeper, **more: store.Turn(keeper, **{**more, "recreate": True})  # type: ignore


MUTANTS = (
    expected_is_ignored,
    hold_does_not_hold,
    release_lets_go_of_all,
    pickling_holds_nothing,
    received_is_not_held,
    rollback_goes_back_by_one_only,
    one_version_too_few_is_retained,
    patch_adds_no_key,
    values_are_not_frozen,
    a_reader_misses_each_seventh_version,
    destroy_leaves_the_lock_file,
    what_is_half_built_stays,
    updates_of_a_destroyed_store_go_to_the_next,
)
