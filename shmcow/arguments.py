"""Arguments of a Writer: each is what it should be, or an error says what was expected and what was found."""

from __future__ import annotations

from typing import Any

from shmcow import _core
from shmcow.codecs import Bundle, Codec
from shmcow.frozen import check_frozen


def given_codec(type: Any, codec: Codec[Any] | None, frozen: bool) -> Codec[Any] | None:  # noqa: A002
    """Return the codec that was given, checked; None where `type` or the store decides."""
    if type is not None and codec is not None:
        raise ValueError("give type= or codec=, not both: a codec has its type")
    if codec is not None:
        if not isinstance(codec, Codec):
            raise TypeError(f"codec= is a codec object such as MsgPack(Config), found {codec!r}")
        if isinstance(codec, Bundle) and not codec.codecs:
            raise ValueError("a writer's Bundle names its parts, as in Bundle(config=MsgPack(Config), blob=Raw())")
        if frozen:
            codec.check_frozen()
    elif type is not None and frozen:
        check_frozen(type)
    return codec


def check_mode(mode: int) -> int:
    """Return permission bits with which only the owner writes."""
    if not isinstance(mode, int) or mode & ~0o666 or mode & 0o600 != 0o600 or mode & 0o022:
        shown = oct(mode) if isinstance(mode, int) else repr(mode)
        raise ValueError(
            f"mode is 0o600, 0o640, 0o604 or 0o644, found {shown}: only the owner writes, and nothing is executable"
        )
    return mode


def check_group(group: int | str | None) -> int:
    """Return a gid, -1 for no change."""
    if group is None:
        return -1
    if isinstance(group, str):
        import grp

        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            raise ValueError(f"there is no group {group!r} on this machine") from None
    if not isinstance(group, int) or isinstance(group, bool) or not 0 <= group < 0xFFFFFFFF:  # the last is "no change"
        raise ValueError(f"group is a gid or a group's name, found {group!r}")
    return group


def check_count(what: str, n: int | None) -> int | None:
    """Return a whole number, or None for "leave it as it is"."""
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 1 << 63):
        raise ValueError(f"{what} is a whole number, 0 or more, or None to leave it as it is, found {n!r}")
    return n


def check_version(what: str, version: int, least: int) -> None:
    """Refuse what is no version."""
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"{what} is a version, an int, found {version!r}")
    if not least <= version <= _core.VERSION_MAX:
        raise ValueError(f"{what} is a version, {least} to {_core.VERSION_MAX}, found {version}")
