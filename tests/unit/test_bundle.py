"""Bundles: several parts, one version, and the segments that versions share."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import (
    JSON,
    Bundle,
    BundleView,
    CodecMismatchError,
    CorruptSegmentError,
    DecodeError,
    MsgPack,
    NotPublishedError,
    Raw,
    Reader,
    StoreDestroyedError,
    StoredPart,
    Table,
    ValidationError,
    VersionConflictError,
    Writer,
)
from shmcow.validators import max_size, min_count


class Config(msgspec.Struct, frozen=True):
    timeout: float
    hosts: list[str] = []


class Mutable(msgspec.Struct):
    a: int = 0


class Wider(msgspec.Struct, frozen=True):
    timeout: float | str
    hosts: list[str] = []


class Bigger(msgspec.Struct, frozen=True):
    timeout: float
    retries: int


CODEC = Bundle(config=MsgPack(Config), blob=Raw())
FIRST = {"config": Config(1.0, ["a"]), "blob": b"x" * 5000}


def segments(name: str) -> dict[int, tuple[int, ...]]:
    return {generation.version: generation.segments for generation in shmcow.describe(name).generations}


@pytest.fixture
def writer(name: str) -> Iterator[Writer[BundleView]]:
    with Writer(name, codec=CODEC, initial=FIRST) as made:
        yield made


@pytest.mark.usefixtures("writer")
def test_parts_are_read_as_published(name: str) -> None:
    """Each part is its codec's value, decoded once for all threads."""
    view = Reader(name, codec=CODEC).get()
    assert view.config == Config(1.0, ["a"])
    assert view.config is view.config
    assert bytes(view.blob) == FIRST["blob"]
    assert list(view) == ["config", "blob"]
    assert len(view) == 2
    assert "blob" in view
    assert "zoo" not in view
    assert {"config", "blob"} <= set(dir(view))
    with pytest.raises(TypeError, match="immutable"):
        view.config.hosts.append("b")
    with pytest.raises(AttributeError, match="no part 'zoo': it has config, blob"):
        view.zoo  # noqa: B018


def test_unchanged_parts_share_their_segments(name: str, writer: Writer[BundleView]) -> None:
    """publish_parts, a publish of equal bytes, update and rollback make segments for what changed only."""
    assert writer.publish_parts(config=Config(2.0)) == 2
    assert writer.publish({"config": Config(3.0), "blob": bytearray(b"x" * 5000)}) == 3
    assert writer.update(lambda old: old._replace(config=Config(4.0))) == 4
    assert writer.patch(blob=b"y") == 5
    assert writer.rollback(2) == 6
    listed = segments(name)
    configs, blobs = zip(*(listed[version] for version in sorted(listed)), strict=True)
    assert len(set(blobs[:3])) == 1
    assert blobs[3] != blobs[2]
    assert listed[6] == listed[2]
    assert len(set(configs[:3])) == 3
    assert configs[3] == configs[2]
    assert writer.snapshot().value.config == Config(2.0)
    assert writer.snapshot().size_bytes == 5000 + writer.snapshot().part("config").nbytes


def test_what_is_shared_is_stored_and_counted_once(name: str) -> None:
    """Shared segments count once for max_total_bytes, and stay while any version lists them."""
    size = 1 << 20
    writer = Writer(name, codec=CODEC, retain=3, max_total_bytes=int(1.5 * size))
    writer.publish({"config": Config(0.0), "blob": b"x" * size})
    for n in range(1, 20):
        writer.publish_parts(config=Config(float(n)))
    report = shmcow.describe(name)
    assert size < report.total_bytes < 1.1 * size
    assert [generation.version for generation in report.generations] == [20, 19, 18, 17]
    assert bytes(Reader(name, codec=CODEC).at(17).value.blob[:3]) == b"xxx"


def test_an_old_view_keeps_parts_that_belong_together(name: str, writer: Writer[BundleView]) -> None:
    """A view that was taken before is one version, also of parts that are decoded only now."""
    reader = Reader(name, codec=CODEC)
    old = reader.get()
    for n in range(70):  # more than the table holds
        writer.publish({"config": Config(2.0 + n), "blob": b"%d" % n})
    assert old.config == Config(1.0, ["a"])
    assert bytes(old.blob) == FIRST["blob"]
    assert bytes(reader.get().blob) == b"69"


@pytest.mark.usefixtures("writer")
def test_a_reader_sees_the_parts_that_it_declares(name: str) -> None:
    """Fewer parts are fine, without a codec all of them are plain, and a missing one is named."""
    assert list(Reader(name, codec=Bundle(config=MsgPack(Config))).get()) == ["config"]
    plain = Reader(name).get()
    assert plain.config == {"timeout": 1.0, "hosts": ["a"]}
    assert plain == Reader(name, codec=Bundle()).get()
    with pytest.raises(CodecMismatchError, match="no part 'konfig' in it, only 'config', 'blob'"):
        Reader(name, codec=Bundle(konfig=MsgPack())).get()
    with pytest.raises(CodecMismatchError, match=r"part 'config' was .* codec 'msgpack', expected 'json'"):
        Reader(name, codec=Bundle(config=JSON())).get()
    with pytest.raises(CodecMismatchError, match="'bundle', expected 'msgpack'"):
        Reader(name, codec=MsgPack(Config)).get()


def test_a_part_that_does_not_decode_is_bad_news_like_any_other(name: str, writer: Writer[BundleView]) -> None:
    """Where the schema is another one, parts are decoded at once: a worker goes on with the last good value."""
    reader = Reader(name, codec=CODEC)
    old = reader.get()
    wider = Bundle(config=MsgPack(Wider), blob=Raw())
    with Writer(name, codec=wider) as newer:
        newer.publish_parts(config=Wider("soon"))
        assert reader.get() is old
        assert "part 'config'" in str(reader.problem)
        newer.publish_parts(config=Wider(3.0))
        assert reader.get().config == Config(3.0)
        assert reader.problem is None
    with pytest.raises(DecodeError, match=r"part 'config': .*retries"):
        Reader(name, codec=Bundle(config=MsgPack(Bigger), blob=Raw())).get()
    writer.close()


def test_views_are_immutable_and_compare(name: str, writer: Writer[BundleView]) -> None:
    """Setting and deleting are refused; equality is by parts; copies are plain; pickling is told where to go."""
    reader = Reader(name, codec=CODEC)
    view = reader.get()
    for change in (lambda: setattr(view, "config", 1), lambda: delattr(view, "config")):
        with pytest.raises(TypeError, match=r"publish_parts\(config="):
            change()
    other = writer.snapshot().value
    assert other == view
    assert view != 3
    writer.publish_parts(config=Config(5.0))
    assert reader.get() != view
    assert "1.0" not in repr(view)
    plain = reader.snapshot().copy()
    assert plain["config"] == Config(5.0)
    assert type(copy.deepcopy(view)) is dict
    assert copy.copy(view) is view
    with pytest.raises(TypeError, match="send its Snapshot"):
        pickle.dumps(view)


@pytest.mark.usefixtures("writer")
def test_a_snapshot_of_a_bundle_is_sent_and_received(name: str) -> None:
    """A pickled Snapshot arrives with the same parts."""
    snapshot = Reader(name, codec=CODEC).snapshot()
    again = pickle.loads(pickle.dumps(snapshot))
    assert again.value.config == Config(1.0, ["a"])
    with pytest.raises(TypeError, match=r"several parts \(config, blob\)"):
        snapshot.data  # noqa: B018
    assert bytes(snapshot.part("blob")) == FIRST["blob"]
    with pytest.raises(KeyError, match="no part 'zoo'"):
        snapshot.part("zoo")


BAD: list[tuple[Any, str]] = [
    ({"config": Config(1.0)}, "part 'blob' is missing"),
    ({**FIRST, "zoo": 1}, "no part 'zoo': the parts are config, blob"),
    ({"config": 3, "blob": b""}, "part 'config'"),
    ({"config": Config(1.0), "blob": 3}, "part 'blob'.*bytes-like"),
    ([1, 2], "from a mapping of part names to values, found list"),
    (None, "from a mapping"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_bad_values_are_refused(writer: Writer[BundleView], value: Any, message: str) -> None:
    """Nothing is published, and the message names the part."""
    with pytest.raises(ValidationError, match=message):
        writer.publish(value)
    assert writer.version == 1


BAD_PARTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, ValidationError, "at least one part"),
    ({"zoo": 1}, ValidationError, "no part 'zoo'"),
    ({"config": 3}, ValidationError, "part 'config'"),
    ({"config": Config(1.0), "expected": 9}, VersionConflictError, "9"),
]


@pytest.mark.parametrize(("parts", "error", "message"), BAD_PARTS)
def test_bad_parts_are_refused(
    writer: Writer[BundleView], parts: dict[str, Any], error: type[Exception], message: str
) -> None:
    """publish_parts, too, leaves the current version in place."""
    with pytest.raises(error, match=message):
        writer.publish_parts(**parts)
    assert writer.version == 1


def test_publish_parts_needs_a_bundle_and_a_version(name: str) -> None:
    """What it needs is said."""
    with Writer(name, codec=CODEC) as writer:
        with pytest.raises(NotPublishedError):
            writer.publish_parts(config=Config(1.0))
        writer.destroy()
        with pytest.raises(StoreDestroyedError):
            writer.publish_parts(config=Config(1.0))
    with Writer(name, initial=1) as plain, pytest.raises(TypeError, match="codec=Bundle"):
        plain.publish_parts(config=1)


def test_parts_may_be_called_anything(name: str) -> None:
    """Names that publish_parts has arguments for go into a mapping."""
    writer = Writer(name, codec=Bundle(message=MsgPack(str), self=MsgPack(int)), initial={"message": "a", "self": 1})
    writer.publish_parts({"message": "b"}, message="why")
    snapshot = writer.snapshot()
    assert (snapshot.value.message, snapshot.message) == ("b", "why")


@pytest.mark.parametrize("bad", ["_a", "1a", "a-b", "class", "", "a" * 33, "ä" * 17])
def test_bad_part_names_are_refused(bad: str) -> None:
    """A part's name is an identifier that fits its place."""
    with pytest.raises(ValueError, match="bad part name"):
        Bundle(**{bad: Raw()})


def test_bad_bundles_are_refused(name: str) -> None:
    """Too many parts, no codec, a bundle in a bundle, and a writer's bundle of nothing."""
    assert len(Bundle(**{f"p{k}": Raw() for k in range(16)}).codecs) == 16
    with pytest.raises(ValueError, match="1 to 16 parts, found 17"):
        Bundle(**{f"p{k}": Raw() for k in range(17)})
    with pytest.raises(TypeError, match="part 'a' needs a codec object"):
        Bundle(a=int)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="itself a Bundle"):
        Bundle(a=Bundle(b=Raw()))
    with pytest.raises(ValueError, match="names its parts"):
        Writer(name, codec=Bundle())
    with pytest.raises(ValidationError, match="mutable"):
        Writer(name, codec=Bundle(a=MsgPack(Mutable)))


def test_sixteen_parts_are_one_version(name: str) -> None:
    """The most that a version lists; each can change alone."""
    names = [f"p{k}" for k in range(16)]
    writer = Writer(name, codec=Bundle(**{part: MsgPack(int) for part in names}))
    writer.publish(dict.fromkeys(names, 0))
    for k, part in enumerate(names):
        writer.publish_parts({part: k})
    assert writer.snapshot().value._asdict() == {part: k for k, part in enumerate(names)}
    assert len(set(segments(name)[17]) & set(segments(name)[16])) == 15


def test_a_schema_of_parts_may_grow_and_not_shrink(name: str, writer: Writer[BundleView]) -> None:
    """A new part is welcome once it is given; dropping one, or changing its codec, is refused."""
    grown = Bundle(config=MsgPack(Config), blob=Raw(), extra=MsgPack(int))
    more = Writer(name, codec=grown)
    with pytest.raises(ValidationError, match="part 'extra' was never published"):
        more.publish_parts(config=Config(2.0))
    assert more.publish_parts(config=Config(2.0), extra=7) == 2
    assert Reader(name, codec=CODEC).get().config == Config(2.0)
    assert Reader(name, codec=grown).get().extra == 7
    with pytest.raises(CodecMismatchError, match=r"part 'extra' .* would be dropped.*publish_parts"):
        writer.publish(FIRST)
    assert writer.publish_parts(config=Config(3.0)) == 3
    assert Reader(name, codec=grown).get().extra == 7
    with pytest.raises(CodecMismatchError, match="part 'blob' was published with the codec 'raw'"):
        Writer(name, codec=Bundle(config=MsgPack(Config), blob=MsgPack(), extra=MsgPack(int))).publish_parts(extra=1)
    untyped = Bundle(config=MsgPack(), blob=Raw(), extra=MsgPack(int))
    with pytest.raises(CodecMismatchError, match="part 'config' was published with a type"):
        Writer(name, codec=untyped).publish_parts(config={"timeout": "soon"})
    assert shmcow.describe(name).version == 3


def test_a_writer_without_a_codec_goes_on_with_the_parts_there_are(name: str, writer: Writer[BundleView]) -> None:
    """As a tool does: typed parts are refused to it, untyped ones are not."""
    writer.close()
    with Writer(name) as tool, pytest.raises(CodecMismatchError, match="published as Bundle"):
        tool.publish_parts(config={"timeout": 1.0})
    shmcow.destroy(name)
    with Writer(name, codec=Bundle(a=MsgPack(), b=Raw()), initial={"a": 1, "b": b"2"}), Writer(name) as tool:
        assert tool.publish_parts(a=2) == 2
        assert tool.snapshot().value.a == 2


def test_validators_see_the_whole_bundle(name: str) -> None:
    """Also when one part is published: old and new are bundles, and the size is that of all parts."""
    seen = []

    def grows(old: Any, new: Any) -> None:
        seen.append((old and old.config.timeout, new.config.timeout, len(new.blob)))
        if new.config.timeout < 0:
            raise ValueError("negative")

    writer = Writer(name, codec=CODEC, initial=FIRST, validators=[grows, max_size(6000)])
    writer.publish_parts(config=Config(2.0))
    assert seen == [(None, 1.0, 5000), (1.0, 2.0, 5000)]
    with pytest.raises(ValidationError, match="negative"):
        writer.publish_parts(config=Config(-1.0))
    counting = Writer(name, codec=CODEC, validators=[min_count(1)])
    with counting, pytest.raises(ValidationError, match="a bundle: name the part"):
        counting.publish_parts(config=Config(3.0))
    with pytest.raises(ValidationError, match=r"6,?000"):
        writer.publish_parts(blob=b"x" * 6001)
    assert writer.version == 2


def test_unfrozen_parts_are_possible(name: str) -> None:
    """freeze=False lets a part be a mutable Struct, decoded lazily all the same."""
    codec = Bundle(a=MsgPack(Mutable))
    with Writer(name, codec=codec, initial={"a": Mutable(3)}, freeze=False):
        reader = Reader(name, codec=codec, freeze=False)
        reader.get().a.a = 4
        assert reader.get().a.a == 4
    with pytest.raises(ValidationError, match="mutable"):
        Reader(name, codec=codec)


def test_bundles_compare_pickle_and_have_fingerprints() -> None:
    """Equal by their codecs; the fingerprint depends on names and schemas, not on the order."""
    again = pickle.loads(pickle.dumps(CODEC))
    assert again == CODEC
    assert hash(again) == hash(CODEC)
    assert Bundle(config=MsgPack(Config)) != CODEC
    assert CODEC != 3
    assert CODEC.fingerprint == Bundle(blob=Raw(), config=MsgPack(Config)).fingerprint
    assert CODEC.fingerprint != Bundle(config=MsgPack(Bigger), blob=Raw()).fingerprint
    assert CODEC.type_name == "Bundle(config=test_bundle.Config, blob=raw)"
    assert repr(Bundle(a=Raw())) == "Bundle(a=Raw())"


def test_a_part_whose_segment_was_removed_is_not_listed_again(name: str, writer: Writer[BundleView]) -> None:
    """Nothing bad is published: the error says which part, and publishing all parts mends the store."""
    (segment,) = [
        entry for entry in os.listdir("/dev/shm") if entry.startswith(f"shmcow.{name}.") and entry[-2:] == ".2"
    ]
    os.unlink(f"/dev/shm/{segment}")
    with pytest.raises(CorruptSegmentError, match="part 'blob' of version 1"):
        writer.publish_parts(config=Config(2.0))
    assert shmcow.describe(name).version == 1
    assert writer.publish({"config": Config(1.0, ["a"]), "blob": FIRST["blob"]}) == 2
    assert bytes(Reader(name, codec=CODEC).get().blob) == FIRST["blob"]


# ---- parts come and go, and segments are removed from outside ----


def test_validators_see_nothing_old_where_a_part_is_new(name: str) -> None:
    """A version from before a part was added cannot be shown to validators: it does not keep the next one back."""
    seen = []
    grown = Bundle(config=MsgPack(Config), blob=Raw(), extra=MsgPack(int))
    Writer(name, codec=CODEC, initial=FIRST).close()
    with Writer(name, codec=grown, validators=[lambda old, new: seen.append((old, new.extra))]) as writer:
        assert writer.publish_parts(extra=7) == 2
        assert writer.publish_parts(extra=8) == 3
    assert seen[0] == (None, 7)
    assert seen[1][0].extra == 7


def segment_of(name: str, number: int) -> str:
    (found,) = [f for f in os.listdir("/dev/shm") if f.startswith(f"shmcow.{name}.") and f.endswith(f".{number}")]
    return f"/dev/shm/{found}"


def test_a_segment_that_only_this_process_has_left_is_not_listed_again(name: str, writer: Writer[BundleView]) -> None:
    """Who holds a version still reads what was removed; others would not: rollback says so, and publish mends it."""
    view = writer.snapshot().value
    os.unlink(segment_of(name, segments(name)[1][1]))
    with pytest.raises(CorruptSegmentError, match="removed from outside"):
        writer.rollback(1)
    with pytest.raises(CorruptSegmentError, match="part 'blob' of version 1"):
        writer.publish_parts(config=Config(2.0))
    assert writer.version == 1
    assert writer.publish(FIRST) == 2  # the bytes that are held
    assert all(os.path.exists(segment_of(name, number)) for number in segments(name)[2])
    assert bytes(view.blob) == FIRST["blob"]


def test_what_is_compared_is_not_held_while_it_is_replaced(name: str) -> None:
    """With retain=0 the version before goes with the publish that replaces it, also where a part had as many bytes."""
    with Writer(name, codec=CODEC, initial=FIRST, retain=0, verify=False) as writer:
        size = 3 << 20  # without a checksum: the bytes are compared
        for n in range(2, 5):
            writer.publish_parts(blob=b"%d" % n * size)
            assert list(segments(name)) == [n]
            assert bytes(writer.snapshot().value.blob[:1]) == b"%d" % n


# ---- values ----


def test_replaced_parts_keep_their_names_order_and_identity(name: str) -> None:
    """_replace keeps the order of the parts, takes any name, and equal objects need no comparison."""
    codec = Bundle(self=MsgPack(int), numbers=MsgPack(list[float]), last=MsgPack(int))
    with Writer(name, codec=codec, initial={"self": 1, "numbers": [float("nan")], "last": 3}) as writer:
        view = writer.snapshot().value
        again = view._replace(self=2)
        assert list(again) == list(view) == ["self", "numbers", "last"]
        assert list(again._replace(numbers=[1.0])) == list(view)
        assert view == view  # also a bundle with a NaN, or an array
        assert again != view
        assert view.numbers is view._replace(last=3).numbers  # decoded once: a NaN equals itself only
        assert view._replace(last=3) == view
        assert writer.update(lambda old: old._replace(self=5)) == 2
        assert writer.snapshot().value.self == 5


def test_what_rows_raise_passes_as_it_is(name: str) -> None:
    """Publishing a table as a part raises what its generator raised, as publishing it alone does."""
    codec = Bundle(table=Table(key=str, value=int))

    def rows() -> Iterator[tuple[str, int]]:
        yield "a", 1
        raise OSError("the disk is gone")

    with Writer(name, codec=codec, initial={"table": {}}) as writer:
        for publish in (writer.publish, writer.publish_parts):
            with pytest.raises(OSError, match="the disk is gone"):
                publish({"table": rows()})
        with pytest.raises(ValidationError, match="part 'table': row 2: the key 'a' is repeated"):
            writer.publish_parts(table=[("a", 1), ("a", 2)])
        assert writer.version == 1


def test_a_bundle_of_another_store_that_does_not_fit_is_refused(name: str) -> None:
    """Its parts are taken as they lie, and then they must be readable here: otherwise it is a ValidationError."""
    source = Writer(name + "-from", codec=Bundle(table=Table(key=int, value=int)), initial={"table": {1: 2}})
    with source, Writer(name, codec=Bundle(table=Table(key=str, value=int)), initial={"table": {}}) as writer:
        with pytest.raises(ValidationError, match=r"part 'table': .* type int, expected str"):
            writer.publish(source.snapshot().value)
        source.destroy()


def test_a_part_that_cannot_be_read_cannot_be_published_elsewhere(name: str, writer: Writer[BundleView]) -> None:
    """Where a view's part must be decoded to be encoded anew, what is wrong with it is what is wrong with the value."""
    stored = StoredPart(memoryview(b"\x80"), "config", "msgpack")
    view = Bundle(config=MsgPack(Bigger)).decode_parts([stored])
    with Writer(name + "-json", codec=Bundle(config=JSON())) as other:
        with pytest.raises(ValidationError, match=r"would not be readable: part 'config': .*timeout"):
            other.publish(view)
        other.destroy()
    assert writer.version == 1


def test_parts_without_types_may_be_added(name: str) -> None:
    """A bundle whose parts have no types to compare may get another part, and keeps what it had."""
    with Writer(name, codec=Bundle(a=Raw()), initial={"a": b"1"}):
        pass
    with Writer(name, codec=Bundle(a=Raw(), b=Raw())) as writer:
        assert writer.publish_parts(b=b"2") == 2
    both = Reader(name, codec=Bundle(a=Raw(), b=Raw())).get()
    assert (bytes(both.a), bytes(both.b)) == (b"1", b"2")
