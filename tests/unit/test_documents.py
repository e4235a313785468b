"""Values out of files: what each format gives, and what is said of a malformed one."""

from __future__ import annotations

import gzip
import io
import itertools
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shmcow import JSON, IPTable, MsgPack, Table, documents
from shmcow.encoded import prove
from shmcow.errors import ValidationError


class Pool(msgspec.Struct, frozen=True, rename="camel"):
    max_size: int = 4


class Config(msgspec.Struct, frozen=True):
    timeout: float
    pool: Pool = Pool()
    extra: dict[str, Pool] = {}
    key: bytes = b""


def parsed(text: str | bytes, form: str, type: Any = Any) -> Any:  # noqa: A002
    data = text.encode() if isinstance(text, str) else text
    return documents.parse(data, form, where="the file", codec=MsgPack(type))


def refused(text: str | bytes, form: str, type: Any = Any) -> str:  # noqa: A002
    with pytest.raises(ValidationError) as caught:
        parsed(text, form, type)
    return str(caught.value)


def csv_file(tmp_path: Path, text: str | bytes) -> io.BufferedReader:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return open(path, "rb")


def rows(tmp_path: Path, text: str | bytes, **options: Any) -> list[Any]:
    with csv_file(tmp_path, text) as file:
        return list(documents.csv_rows(file, where="rows.csv", **options))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a/b.JSON", "json"),
        ("x.yml", "yaml"),
        ("x.csv.gz", "csv"),
        ("x.tsv", "csv"),
        ("x.mmdb", "mmdb"),
        ("json", None),
    ],
)
def test_suffix_says_the_format(name: str, form: str | None) -> None:
    """As people name their files; otherwise nobody guesses."""
    assert documents.format_of(name) == form


def test_each_format_gives_plain_data() -> None:
    """The same value out of each."""
    value = {"a": [1, 2.5, None], "b": {"c": "é"}}
    assert parsed(msgspec.json.encode(value), "json") == value
    assert parsed(b"\xef\xbb\xbf" + msgspec.json.encode(value), "json") == value
    assert parsed(msgspec.msgpack.encode(value), "msgpack") == value
    assert parsed('a = [1, 2.5]\nb.c = "é"', "toml") == {"a": [1, 2.5], "b": {"c": "é"}}


def test_a_type_is_read_in_the_notation_of_each_format() -> None:
    """Renamed fields, defaults, and bytes, which JSON writes as base64."""
    wanted = Config(2.0, Pool(9), {"x": Pool()}, b"hi")
    assert parsed('{"timeout": 2, "pool": {"maxSize": 9}, "extra": {"x": {}}, "key": "aGk="}', "json", Config) == wanted
    assert parsed('timeout = 2\nkey = "aGk="\n[pool]\nmaxSize = 9\n[extra.x]', "toml", Config).pool == Pool(9)
    data = msgspec.msgpack.encode({"timeout": 2.0, "pool": {"maxSize": 9}, "extra": {"x": {}}, "key": b"hi"})
    assert parsed(data, "msgpack", Config) == wanted


@pytest.mark.parametrize(
    ("text", "form", "told"),
    [
        ('{"a": 1,\n "é": tru}', "json", r"the file, line 2, column 7: JSON is malformed: Expecting value"),
        ('{"a":\n [1', "json", "line 2, column 4: JSON is malformed: Expecting ',' delimiter"),
        (" \n", "json", "empty"),
        ('{"a": NaN}', "json", "line 1, column 7: JSON is malformed: invalid character"),
        (b'{"a":\n "\xff"}', "json", "line 2, column 3: it is no UTF-8"),
        ("[" * 100_000, "json", "too deeply"),
        ("a = 1\na = 2", "toml", "line 2, column 6"),
        ("a = 1\nb = [", "toml", "line 2, column 6: .*and here it ends"),
        (b"a = '\xff'", "toml", "line 1, column 6"),
        (b"\x92\x01", "msgpack", "ends in the middle"),
        (b"\xc1", "msgpack", "invalid opcode"),
        (b"\x91" * 100_000, "msgpack", "too deeply"),
    ],
)
def test_malformed_document_says_where(text: str | bytes, form: str, told: str) -> None:
    """Line and column, counted from 1, in characters."""
    assert re.search(told, refused(text, form))


def test_what_does_not_fit_the_type_says_where() -> None:
    """The path of the field, for a wrong value and for a field that decoding would drop."""
    assert "at `$.pool.maxSize`" in refused('{"timeout": 1, "pool": {"maxSize": "x"}}', "json", Config)
    assert "no field 'timout' (at $)" in refused('{"timeout": 1, "timout": 2}', "json", Config)
    assert "no field 'max_size' (at $.extra.x)" in refused("timeout = 1\n[extra.x]\nmax_size = 1", "toml", Config)
    assert "no field 'x' (at $[1])" in refused('[{}, {"x": 1}]', "json", list[Pool])


def test_error_of_a_hook_is_told() -> None:
    """A dec_hook's own exception is an error of the document, not of the tool."""

    def hook(_: Any, value: Any) -> Any:
        raise KeyError(value)

    with pytest.raises(ValidationError, match="KeyError: 'x'"):
        documents.parse(b'"x"', "json", where="x", codec=JSON(complex, dec_hook=hook))


# ---- YAML ----


@pytest.fixture
def needs_yaml() -> None:
    pytest.importorskip("yaml", reason="needs PyYAML: pip install 'shmcow[yaml]'")


@pytest.mark.usefixtures("needs_yaml")
def test_yaml_gives_plain_data_with_aliases_written_out() -> None:
    """Anchors, merges and dates as in YAML 1.1; a type converts."""
    text = "base: &b {maxSize: 2}\nmore:\n  <<: *b\nlist: [*b, *b]\n"
    assert parsed(text, "yaml") == {"base": {"maxSize": 2}, "more": {"maxSize": 2}, "list": [{"maxSize": 2}] * 2}
    assert parsed("timeout: 1.5\npool: {maxSize: 3}", "yaml", Config) == Config(1.5, Pool(3))


def laughs(line: str, item: str, between: str) -> str:
    names = "abcdefghi"
    text = f"a: &a {item}\n"
    for before, name in itertools.pairwise(names):
        text += f"{name}: &{name} {line % between.join([f'*{before}'] * 10)}\n"
    return text


@pytest.mark.usefixtures("needs_yaml")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (laughs("[%s]", "lol", ", "), "aliases repeat"),
        (laughs("{<<: [%s]}", "{x: 1}", ", "), "aliases repeat"),
        ("a: &a [1, *a]", "line 1, column 4: an alias leads into"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is there already"),
        ("a: [1\nb: 2", "line 2, column 2"),
        ("a: \x07", "line 1, column 4"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("d: 2026-13-45", "month must be"),
        ("--- 1\n--- 2", "single document"),
        ("", "empty"),
        ("[" * 5_000, "too deeply"),
    ],
)
def test_malformed_or_hostile_yaml_is_refused(text: str, told: str) -> None:
    """Nothing is constructed but plain data, and little text never becomes much."""
    assert told in refused(text, "yaml")


def test_yaml_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the command."""
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(ImportError, match=r"pip install 'shmcow\[yaml\]'"):
        parsed("a: 1", "yaml")


# ---- CSV ----


def test_csv_columns_become_keys_and_values(tmp_path: Path) -> None:
    """One column is a text, several are a dict; numbers instead of names where there is no header."""
    text = '\ufeffcode,name,pop\r\n\r\nde,Germany,80\r\nfr,"Fra\nnce",60\r\n'
    assert rows(tmp_path, text, key=["code"]) == [
        ("de", {"name": "Germany", "pop": "80"}),
        ("fr", {"name": "Fra\nnce", "pop": "60"}),
    ]
    assert rows(tmp_path, text, key=["code"], columns=["name"])[0] == ("de", "Germany")
    assert rows(tmp_path, text, key=[0], header=True)[0][0] == "de"
    plain = "1;a;x\n2;b;y\n"
    assert rows(tmp_path, plain, key=[0], key_type=int, delimiter=";") == [(1, ["a", "x"]), (2, ["b", "y"])]
    assert rows(tmp_path, plain, key=[1], columns=[0], key_type=bytes, delimiter=";") == [(b"a", "1"), (b"b", "2")]
    assert rows(tmp_path, gzip.compress(plain.encode(), mtime=0), key=[0], columns=[1], delimiter=";") == [
        ("1", "a"),
        ("2", "b"),
    ]


def test_csv_values_take_a_type(tmp_path: Path) -> None:
    """Numbers are read from their text; a lone column goes into the field of its name."""

    class Country(msgspec.Struct, frozen=True):
        pop: int
        name: str = ""

    codec = MsgPack(Country)
    text = "code,name,pop\nde,Germany,80\n"
    assert rows(tmp_path, text, key=["code"], values=codec) == [("de", Country(80, "Germany"))]
    assert rows(tmp_path, text, key=["code"], columns=["pop"], values=codec) == [("de", Country(80))]
    assert rows(tmp_path, "a,1\n", key=[0], values=MsgPack(int)) == [("a", 1)]
    with pytest.raises(ValidationError, match=r"line 2 of rows.csv: .* has no field 'zoo'"):
        rows(tmp_path, "code,pop,zoo\nde,1,2\n", key=["code"], values=codec)


def test_csv_of_addresses_makes_an_ip_table(tmp_path: Path) -> None:
    """Networks, ranges in one column or in two."""
    text = "cc,first,last\nAU,1.1.1.0,1.1.1.9\n"
    for content, options in (
        (text, {"key": ["first", "last"]}),
        ("1.1.1.0,1.1.1.9,AU\n", {}),
        ("1.1.1.0-1.1.1.9,AU\n", {}),
    ):
        with csv_file(tmp_path, content) as file:
            encoded = prove(IPTable(str), documents.csv_rows(file, where="x", ip=True, **options), True)
        assert encoded.decoded["1.1.1.5"] == "AU"


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("a,b\n1\n", {"key": ["a"]}, "line 2 of rows.csv: it has 1 columns, and the first row has 2"),
        ('a,b\n"1,2\n', {"key": ["a"]}, "line 2 of rows.csv: cannot be read"),
        (b"a,b\n1,2\n1,\xff\n", {"key": ["a"]}, "line 3 of rows.csv: it is no UTF-8"),
        ("a,b\nx,2\n", {"key": ["a"], "key_type": int}, "line 2 of rows.csv: the key 'x' is no whole number"),
        ("a,b\nx,2\n", {"key": ["c"]}, "line 1 of rows.csv: there is no column 'c': the header has a, b"),
        ("a,a\nx,2\n", {"key": ["a"]}, "several columns 'a'"),
        ("1,2\n", {"key": [7]}, "a row has columns 0 to 1"),
        ("a\n1\n", {"key": ["a"]}, "no column for the values"),
        ("1,x\n", {"key": [0], "values": MsgPack(int)}, "line 1 of rows.csv: the value does not fit int"),
        (gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:25], {"key": ["a"]}, "cannot be read"),
    ],
)
def test_wrong_row_names_its_line(tmp_path: Path, text: str | bytes, options: Any, told: str) -> None:
    """Whatever is wrong in it."""
    with pytest.raises(ValidationError) as caught:
        rows(tmp_path, text, **options)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key": ["a", "b"]},
        {"key": [0, 1, 2], "ip": True},
        {"key": ["a"], "header": False},
        {"key": [0], "delimiter": ""},
    ],
)
def test_contradicting_options_are_refused_before_reading(tmp_path: Path, options: Any) -> None:
    """They are a mistake of the caller, not of the file."""
    with csv_file(tmp_path, "1,2\n") as file, pytest.raises(ValueError, match=r".") as caught:
        documents.csv_rows(file, where="x", **options)
    assert not isinstance(caught.value, ValidationError)


def test_rows_are_streamed_into_a_table_and_progress_is_told(tmp_path: Path) -> None:
    """A generator all the way, with the bytes that were read."""
    told: list[tuple[int, int]] = []
    text = "".join(f"{n},{n * n}\n" for n in range(10_000))
    with csv_file(tmp_path, text) as file:
        given = documents.csv_rows(
            file, where="x", key=[0], values=MsgPack(int), progress=lambda done, total: told.append((done, total))
        )
        encoded = prove(Table(key=str, value=int), given, True)
    assert encoded.decoded["9999"] == 9999**2
    assert len(told) == 2
    assert told[0][0] < told[1][0] <= told[1][1] == len(text)


# ---- contents ----


def test_contents_of_small_and_mapped_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is mapped, not read; either way what comes out is read-only."""
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 100)
    told: list[tuple[int, int]] = []
    with open(path, "rb") as file:
        read = documents.contents(file, lambda *figures: told.append(figures))
    monkeypatch.setattr(documents, "MAPPED_BYTES", 1000)
    with open(path, "rb") as file:
        mapped = documents.contents(file)
    assert told == [(25600, 25600)]
    assert type(mapped.obj).__name__ == "mmap"
    assert read == mapped == path.read_bytes()
    assert read.readonly
    assert mapped.readonly
