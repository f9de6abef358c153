"""What the manual says of the repository: every test that it names is there, and both languages name the same."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def named(page: Path) -> set[tuple[str, str]]:
    """Files of tests, and functions in them, that a page names."""
    return set(NAMED.findall(page.read_text(encoding="utf-8")))


def test_every_named_test_is_there() -> None:
    found = {(page.name, *one) for page in PAGES for one in named(page)}
    assert len(found) > 20
    functions = {
        file: {node.name for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if hasattr(node, "name")}
        for file in {file for _, file, _ in found}
        if (ROOT / file).is_file()
    }
    gone = [one for one in found if one[1] not in functions or (one[2] and one[2] not in functions[one[1]])]
    assert sorted(gone) == []


@pytest.mark.parametrize("page", ["minimind.md"])
def test_both_languages_name_the_same(page: str) -> None:
    assert named(ROOT / "docs" / page) == named(ROOT / "docs" / "zh-Hant" / page) != set()
