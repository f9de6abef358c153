"""Ollama's TEMPLATE, rendered by Go, is our rendering with a generation prompt, but for how JSON is spelt."""

import itertools
import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

from cutaway.exporting.ollama import TEMPLATE
from cutaway.tokenization.chat import normalise, render_text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("go") is None, reason="no Go: apt-get install golang-go"),
]

SOURCE = Path(__file__).parent / "ollama_template"
THINKING = (None, True, False)
NESTED = {"type": "object", "properties": {"b": {"type": ["number", "null"]}}, "required": ["b"]}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "查天氣",
            "description": 'Weather <now> & later, "quoted"\nsecond line',
            "parameters": {
                "type": "object",
                "properties": {
                    "zone": {"type": "string", "description": "台北 or 北京", "enum": ["a", "b"]},
                    "days": {"type": "integer"},
                    "list": {"type": "array", "items": {"type": "string"}},
                    "more": NESTED,
                    "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
                "required": ["zone"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
]
TEXTS = [
    "Hello!",
    "你好，世界",
    "a < b && c > d",
    'say "hi"\\n',
    "line\nline\n",
    "  spaced ",
    "{{ .Content }} {% x %}",
    "🙂",
]


def conversation(draw: random.Random, system: str | None, tools: bool) -> list[dict[str, Any]]:
    """Turns with every feature that both formats have; it ends where the assistant is to answer."""
    turns: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for _ in range(draw.randint(1, 3)):
        turns.append({"role": "user", "content": draw.choice(TEXTS)})
        while tools and draw.random() < 0.6:
            content = draw.choice(["", draw.choice(TEXTS)])
            calls = [
                {"name": draw.choice(["查天氣", "now"]), "arguments": arguments(draw)}
                for _ in range(draw.randint(1, 3))
            ]
            turns.append({"role": "assistant", "content": content, "tool_calls": calls} | thought(draw))
            turns += [{"role": "tool", "content": draw.choice([*TEXTS, '{"ok": true}'])} for _ in calls]
        turns.append({"role": "assistant", "content": draw.choice(TEXTS)} | thought(draw))
    return turns[: draw.choice([-1, len(turns)])]


def arguments(draw: random.Random) -> dict[str, Any]:
    values = [1, -2.5, "台北 <x> & y", None, True, [1, [2, "z"]], {"b": 1, "a": {"c": "\n"}}, ""]
    return {name: draw.choice(values) for name in draw.sample(["zone", "days", "a", "é"], draw.randint(0, 3))}


def thought(draw: random.Random) -> dict[str, Any]:
    return draw.choice([{}, {"reasoning_content": draw.choice(TEXTS) + "\n\nso."}])


def cases() -> list[tuple[list[dict[str, Any]], list[Any] | None, bool | None]]:
    draw = random.Random(0)
    features = itertools.product([None, "", "Be brief."], [None, TOOLS, TOOLS[1:]], THINKING)
    found = [(conversation(draw, system, bool(tools)), tools, thinking) for system, tools, thinking in features]
    while len(found) < 60:
        tools = draw.choice([None, TOOLS])
        found.append((conversation(draw, draw.choice([None, "Sys."]), bool(tools)), tools, draw.choice(THINKING)))
    return found


def in_go(asked: list[tuple[list[dict[str, Any]], list[Any] | None, bool | None]], scratch: Path) -> list[str]:
    program = scratch / "render"
    environment = {
        "GOCACHE": str(scratch / "cache"),
        "GO111MODULE": "off",
        "HOME": str(scratch),
        "PATH": "/usr/bin:/bin",
    }
    build = ["go", "build", "-o", str(program), str(SOURCE / "main.go")]
    subprocess.run(build, check=True, env=environment, timeout=300)
    request = {
        "template": TEMPLATE,
        "cases": [
            {"messages": [as_ollama(turn) for turn in normalise(turns)], "tools": tools, "think": thinking}
            for turns, tools, thinking in asked
        ],
    }
    done = subprocess.run([program], input=json.dumps(request), capture_output=True, text=True, check=True, timeout=60)
    rendered: list[str] = json.loads(done.stdout)
    return rendered


def as_ollama(turn: dict[str, Any]) -> dict[str, Any]:
    calls = [{"function": call} for call in turn.get("tool_calls", [])]
    thinking = turn.get("reasoning_content", "")
    return {"role": turn["role"], "content": turn["content"], "thinking": thinking, "tool_calls": calls}


def json_as_data(text: str) -> list[Any]:
    """Lines, those that are JSON objects parsed: spaces, escapes and the order of keys no longer matter."""
    lines: list[Any] = []
    for line in text.split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        lines.append(value if isinstance(value, dict) else line)
    return lines


def test_equal_on_sixty_conversations(tmp_path: Path) -> None:
    asked = cases()
    everything = json.dumps(asked)
    assert all(word in everything for word in ("tool_calls", "reasoning_content", '"role": "tool"', "\\n\\nso."))
    for (turns, tools, thinking), found in zip(asked, in_go(asked, tmp_path), strict=True):
        expected = render_text(turns, tools=tools, thinking=thinking, add_generation_prompt=True)
        assert json_as_data(found) == json_as_data(expected)


def test_the_difference_is_the_spelling_of_json(tmp_path: Path) -> None:
    """Without tools there is none, and the one that the manual names shows with them."""
    asked = cases()
    for (turns, tools, thinking), found in zip(asked, in_go(asked, tmp_path), strict=True):
        expected = render_text(turns, tools=tools, thinking=thinking, add_generation_prompt=True)
        assert (found == expected) == (not tools)


def test_ollama_finds_the_tags_of_thinking_and_tool_calls() -> None:
    """It takes the first and last text around `.Thinking`, and the first text within `if .ToolCalls`."""
    assert "{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{" in TEMPLATE
    inside = TEMPLATE.partition("{{ if .ToolCalls }}")[2]
    assert inside.startswith("{{ range slice .ToolCalls 0 1 }}<tool_call>\n{")
    assert TEMPLATE.count("{{ if .ToolCalls }}") == 1 and '"""' not in TEMPLATE
