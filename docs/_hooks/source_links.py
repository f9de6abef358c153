"""Links from the manual into the source: `[text](../src/cutaway/FILE.py#name)` leads to the line that
defines the name.

A page is made of every source file, and a link to a file or a name that is not there stops the build, so that the
manual cannot speak of code that has gone. On a plain file view the same links open the file.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url

SOURCE = Path(__file__).resolve().parents[2] / "src" / "cutaway"
LINK = re.compile(r"\[([^\]]*)\]\((?:\.\./)*src/cutaway/([\w/]+\.(?:py|toml|js|html))(?:#([\w.]+))?\)")
FENCE = "`" * 6


def on_files(files: Any, *, config: Any) -> Any:
    """Add a page for every source file."""
    page = SOURCE / "serving" / "page"
    for path in sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.toml"), *page.glob("*.js"), *page.glob("*.html")]):
        name = path.relative_to(SOURCE).as_posix()
        language = {".py": "python", ".js": "javascript"}.get(path.suffix, path.suffix[1:])
        text = path.read_text(encoding="utf-8").rstrip()
        body = f'---\nsearch:\n  exclude: true\n---\n# {name}\n\n{FENCE}{language} linenums="1"\n{text}\n{FENCE}\n'
        files.append(File.generated(config, f"code/{name}.md", content=body))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turn links into the source into links to the line on the page of that file."""

    def link(found: re.Match[str]) -> str:
        text, name, symbol = found.groups()
        if not (SOURCE / name).is_file():
            raise PluginError(f"{page.file.src_uri}: no source file {name}")
        place = f"#__span-0-{line_of(name, symbol, page.file.src_uri)}" if symbol else ""
        return f'<a href="{get_relative_url(f"code/{name}.html", page.url)}{place}">{text}</a>'

    return LINK.sub(link, markdown)


def line_of(name: str, symbol: str, page: str) -> int:
    """Line that defines `symbol` (a function, a class, `Class.method` or a constant of the module)."""
    body = ast.parse((SOURCE / name).read_text(encoding="utf-8")).body
    line = 0
    for part in symbol.split("."):
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = {getattr(target, "id", None) for target in targets} | {getattr(node, "name", None)}
            if part in names:
                line, body = node.lineno, getattr(node, "body", [])
                break
        else:
            raise PluginError(f"{page}: no {symbol} in {name}")
    return line
