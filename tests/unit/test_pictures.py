"""The terminal pictures of docs/cli.md: drawn from what the real command prints."""

from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words_of(svg: str) -> list[str]:
    """Return the lines of text in a picture, each as its words."""
    lines: dict[float, list[tuple[float, str]]] = {}
    for x, y, text in re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', svg):
        lines.setdefault(float(y), []).append((float(x), html.unescape(text).replace("\xa0", " ")))
    return [" ".join(" ".join(text for _, text in sorted(lines[y])).split()) for y in sorted(lines)]


def test_picture_holds_what_the_command_printed(name: str, pictures: ModuleType) -> None:
    """The same words on the same lines, in colour, and nothing that is loaded from elsewhere."""
    stores = {store: f"{name}-{store}" for store in pictures.STORES}
    config = stores["app-config"]
    with pictures.stage(stores):
        printed = pictures.printed("readers", config)
        screen = pictures.printed("top", "--count", "1", "--interval", "0.05", *stores.values())
    assert printed.count("docs/pictures.py worker") == 5
    assert "stopped" in printed
    svg = pictures.svg(["readers", config], printed)
    ElementTree.fromstring(svg)
    plain = [" ".join(re.sub(r"\x1b\[[\d;]*m", "", line).split()) for line in printed.splitlines()]
    assert words_of(svg) == [f"$ shmcow readers {config}", *plain]
    assert not re.search(r"""(?:url|href|src)\s*[=(]\s*["']?\s*http""", svg)
    assert str(ROOT) not in svg
    drawn = words_of(pictures.svg(["top"], screen))
    assert len([line for line in drawn if line.startswith(name)]) == 3
    assert any("docs/pictures.py job" in line for line in drawn)
    assert "\x1b[?" not in screen


@pytest.mark.parametrize("command", ["ls", "stat", "readers", "top"])
def test_pictures_of_the_page_are_there(command: str, pictures: ModuleType) -> None:
    """Each shows its command and the stores of the stage, without a path of anybody's machine."""
    svg = (ROOT / "docs" / f"{command}.svg").read_text()
    lines = words_of(svg)
    assert lines[0] == f"$ shmcow {' '.join(pictures.PICTURES[command])}"
    assert any("app-config" in line for line in lines)
    assert not re.search(r"/(home|root|tmp)/", svg)
    assert "@font-face" not in svg
    assert f"]({command}.svg)" in (ROOT / "docs" / "cli.md").read_text()
