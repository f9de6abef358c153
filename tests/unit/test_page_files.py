"""The files of the chat page, without a browser: nothing from elsewhere, every string in three languages."""

import datetime
import re
from pathlib import Path

import pytest

import cutaway
from cutaway.tools.standard import standard_toolbox

PAGE = Path(cutaway.__file__).parent / "serving" / "page"
OWN = sorted(
    path for path in PAGE.rglob("*") if path.suffix in (".html", ".css", ".js") and path.parent.name != "vendor"
)
CODE = {path.name: path.read_text(encoding="utf-8") for path in OWN if path.parent == PAGE}
LANGUAGES = ("en", "zh-Hant", "zh-Hans")


def table(code: str) -> dict[str, str]:
    lines = (PAGE / "lang" / f"{code}.js").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "export default {" and lines[-1] == "};"
    found = [re.fullmatch(r'  (\w+): "(.+)",', line) for line in lines[1:-1]]
    assert all(found), f'{code}: a line is not `key: "text",`'
    return {match[1]: match[2] for match in found if match}


def used_keys() -> set[str]:
    """Keys that the code names in full; some are put together from a beginning and a value."""
    code = "\n".join(CODE.values())
    return set(re.findall(r'data-t(?:-label|-placeholder)?="(\w+)"', code)) | set(re.findall(r'\bt\("(\w+)"', code))


def test_every_string_is_in_every_language_with_the_same_values() -> None:
    tables = {code: table(code) for code in LANGUAGES}
    assert tables["en"].keys() == tables["zh-Hant"].keys() == tables["zh-Hans"].keys()
    for key, text in tables["en"].items():
        values = sorted(re.findall(r"\{\w+\}", text))
        assert all(sorted(re.findall(r"\{\w+\}", other[key])) == values for other in tables.values()), key
    assert used_keys() <= tables["en"].keys()
    code = "\n".join(CODE.values())
    composed = ("theme_", "thinking_", "Help", "error", "example", "beginning", "tool", "greeting", "thoughts")
    for key in tables["en"].keys() - used_keys():
        assert f'"{key}"' in code or any(part in key for part in composed), f"nothing uses {key}"


def test_the_built_in_tools_are_described_in_every_language() -> None:
    described = {f"tool_{tool.name}": tool.description for tool in standard_toolbox(datetime.date(2026, 1, 1))}
    assert {key: text for key, text in table("en").items() if key.startswith("tool_")} == described


def test_chinese_tables_have_chinese_punctuation_and_their_own_script() -> None:
    hant, hans = table("zh-Hant"), table("zh-Hans")
    for text in (*hant.values(), *hans.values()):
        assert not re.search(r"[一-鿿][,:;?!]|[,;?!][一-鿿]", text), text
    assert "設" in hant["settings"] and "设" in hans["settings"]
    same_script = re.compile("[設開關對話時標籤頁詞網]")
    assert not same_script.search("".join(hans.values()))


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_a_file_loads_nothing_from_elsewhere_and_is_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\.innerHTML|\.outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert len(text.splitlines()) < 300
    for name in re.findall(r'from "(\.[^"]+)"|(?:src|href)="([a-z][^"]*)"', text):
        assert (path.parent / next(filter(None, name))).is_file(), name


def test_vendored_parts_are_named_with_version_and_licence() -> None:
    vendor = PAGE / "vendor"
    notes = (vendor / "README.md").read_text(encoding="utf-8")
    for path in vendor.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in notes
    for file, name in (("marked.esm.js", "marked"), ("purify.es.mjs", "dompurify")):
        version = re.search(r"v?(\d+\.\d+\.\d+)", (vendor / file).read_text(encoding="utf-8"))
        assert version and f"`{name}` {version[1]}" in notes
