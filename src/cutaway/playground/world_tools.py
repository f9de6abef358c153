"""The town's tools, and conversations in which they are used.

What a tool says depends on the day (its seed), not on the world's facts: a model cannot know it by heart and has to
read the result. A tool answers in the language of its argument.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cutaway.playground.arithmetic import is_held_out
from cutaway.playground.items import FORM, Item, Split, Verifier, fill, kept_out, key_of
from cutaway.playground.language import LANGUAGES, Language, make_language
from cutaway.playground.questions import Forms
from cutaway.playground.world import World
from cutaway.tools.calculator import calculator
from cutaway.tools.schema import ToolError, make_tool
from cutaway.tools.toolbox import Toolbox

Turn = dict[str, Any]


@dataclass(frozen=True)
class Day:
    """Today's prices, the week's weather, minutes between places."""

    prices: tuple[int, ...]
    weather: tuple[int, ...]
    minutes: dict[tuple[int, int], int]


def make_day(seed: int) -> Day:
    """The day of a seed."""
    draw = random.Random(f"day {seed}")
    counts = {group: len(words) for group, words in make_language("en").words.items()}
    pairs = [(a, b) for a in range(counts["place"]) for b in range(a)]
    return Day(
        tuple(draw.randint(2, 99) for _ in range(counts["good"])),
        tuple(draw.randrange(counts["weather"]) for _ in range(counts["day"])),
        {pair: draw.randint(3, 40) for pair in pairs},
    )


def world_tools(world: World, day: Day, code: str = "en") -> list[Callable[..., Any]]:
    """price, weather, festival and route as functions that close over the town and its day.

    A word may be of any language; one that several share, as 星期一, is of the language `code` if it is one of them.
    """
    languages = [make_language(name) for name in sorted(LANGUAGES, key=lambda name: name != code)]

    def find(group: str, word: str) -> tuple[Language, int]:
        plain = word.strip().casefold().removeprefix("the ")
        for language in languages:
            words = [entry.casefold() for entry in language.words[group]]
            if plain in words:
                return language, words.index(plain)
        raise ToolError(f"no {group} is called {word[:40]!r}")

    def price(item: str) -> int:
        """Today's price of a good."""
        return day.prices[find("good", item)[1]]

    def weather(day_name: str) -> str:
        """The weather of a day of this week."""
        language, index = find("day", day_name)
        return language.words["weather"][day.weather[index]]

    def festival(month: str) -> str:
        """The festival in a month."""
        language, index = find("month", month)
        found = [i for i, value in enumerate(world.values["festival_month"]) if value == index]
        return language.words["festival"][found[0]] if found else language.pick("none", "沒有")

    def route(start: str, end: str) -> int:
        """Minutes on foot between two places."""
        a, b = find("place", start)[1], find("place", end)[1]
        return 0 if a == b else day.minutes[max(a, b), min(a, b)]

    return [price, weather, festival, route]


TOOLS = ("price", "weather", "festival", "route", "calculator")


def make_toolbox(world: World, seed: int, code: str = "en") -> Toolbox:
    """All tools of a day: what an environment `{"name": "playground", "seed": seed, "language": code}` means."""
    return Toolbox([*(make_tool(function) for function in world_tools(world, make_day(seed), code)), calculator])


QUESTIONS: dict[str, dict[str, Forms]] = {
    "price": {
        "en": (
            ("How much is the {x} today?", "What does the {x} cost today?", "Today's price of the {x}?",
             "Please look up today's price of the {x}.", "What is the {x} sold for today?"),
            ("I want to buy the {x} today. What must I pay?", "Check the price of the {x} for today.",
             "Is the {x} cheap today?", "The {x}, how many coins today?", "Find out what the {x} costs now."),
        ),
        "zh": (
            ("今天{x}多少錢？", "{x}今天的價錢是多少？", "請查今天{x}的價錢。", "今天買{x}要付多少？",
             "{x}今天賣多少錢？"),
            ("我今天想買{x}，要多少錢？", "查一下今天{x}要幾元。", "今天的{x}便宜嗎？", "{x}呢，今天幾元？",
             "看看現在{x}賣多少。"),
        ),
    },
    "weather": {
        "en": (
            ("What will the weather be on {x}?", "How is the weather on {x}?", "Weather on {x}?",
             "Please look up the weather of {x}.", "What weather do we get on {x}?"),
            ("Should I take a coat on {x}?", "Tell me about the sky on {x}.", "{x}: what is the weather?",
             "Check {x}'s weather.", "I travel on {x}. What weather?"),
        ),
        "zh": (
            ("{x}天氣怎麼樣？", "{x}的天氣如何？", "請查{x}的天氣。", "{x}會是什麼天氣？", "這{x}天氣好嗎？"),
            ("{x}要帶外套嗎？", "說說{x}的天空。", "{x}：什麼天氣？", "查一下{x}的天氣狀況。",
             "我{x}出門，天氣會怎樣？"),
        ),
    },
    "festival": {
        "en": (
            ("Which festival is in {x}?", "What does the town celebrate in {x}?", "Is there a festival in {x}?",
             "Please look up the festival of {x}.", "What festival comes in {x}?"),
            ("I visit in {x}. What is on?", "Check the calendar for {x}.", "{x}: any festival?",
             "Name the festival that {x} has.", "What can I see in {x}?"),
        ),
        "zh": (
            ("{x}有什麼節日？", "鎮上{x}慶祝什麼？", "{x}有節日嗎？", "請查{x}的節日。", "{x}是什麼節？"),
            ("我{x}來玩，有什麼活動？", "看看{x}的行事曆。", "{x}：有節日嗎？", "說出{x}的節日。",
             "{x}能看到什麼慶典？"),
        ),
    },
    "route": {
        "en": (
            ("How long is the walk from the {x} to the {y}?", "How many minutes from the {x} to the {y}?",
             "How far is it from the {x} to the {y}?", "Please look up the way from the {x} to the {y}.",
             "From the {x} to the {y}, how long does it take?"),
            ("I am at the {x} and want to see the {y}. How long?", "Minutes between the {x} and the {y}?",
             "Check the walk: the {x} to the {y}.", "Starting at the {x}, when am I at the {y}?",
             "Is the {x} far from the {y}?"),
        ),
        "zh": (
            ("從{x}走到{y}要多久？", "從{x}到{y}要幾分鐘？", "{x}到{y}有多遠？", "請查從{x}到{y}的路。",
             "由{x}到{y}要花多少時間？"),
            ("我在{x}，想去{y}，要多久？", "{x}和{y}之間要走幾分鐘？", "查一下{x}到{y}的路程。", "{x}出發，多久到{y}？",
             "{x}離{y}遠嗎？"),
        ),
    },
    "calculator": {
        "en": (
            ("What is {x}?", "Calculate {x}.", "Use the calculator: {x}", "How much is {x}?", "{x} = ?"),
            ("I need the result of {x}.", "Please do {x} for me.", "Type {x} into the calculator.",
             "My bill says {x}. What is that?", "Solve {x}!"),
        ),
        "zh": (
            ("{x} 等於多少？", "請算{x}。", "用計算機算：{x}", "{x}是多少？", "{x} = ？"),
            ("我需要{x}的結果。", "幫我算{x}。", "把{x}輸入計算機。", "帳單寫{x}，是多少？", "解{x}。"),
        ),
    },
    "total": {
        "en": (
            ("What do the {x} and the {y} cost together today?", "Today's price of the {x} and the {y} in total?",
             "How much are the {x} and the {y} together today?"),
            ("I buy the {x} and the {y} today. What do I pay?", "Sum of today's prices of the {x} and the {y}?",
             "For the {x} plus the {y}, how many coins today?", "Today the {x} and the {y}: total?",
             "What is the bill for the {x} and the {y} today?"),
            ("The {x} and the {y} come home with me today. What is the sum?",
             "Add up the {x} and the {y} at today's prices.", "Both the {x} and the {y}, please: all in all today?"),
        ),
        "zh": (
            ("今天{x}和{y}一共多少錢？", "今天買{x}和{y}總共要付多少？", "{x}加{y}今天的總價是多少？"),
            ("我今天要買{x}跟{y}，要付多少？", "今天{x}和{y}的價錢加起來？", "{x}與{y}，今天合計幾元？",
             "今天{x}、{y}：總共？",
             "{x}和{y}今天的帳單是多少？"),
            ("我今天把{x}和{y}帶回家，合起來多少？", "今天{x}、{y}我都要，一起算多少錢？",
             "用今天的價錢把{x}和{y}加起來。"),
        ),
    },
    "prices": {
        "en": (
            ("What are today's prices of the {x} and the {y}?", "How much are the {x} and the {y} each today?",
             "Look up the {x} and the {y} today."),
            ("Today's prices, please: the {x}, the {y}.", "The {x} and the {y}, what does each cost today?",
             "Check both today: the {x}, the {y}.", "I ask for two prices of today: the {x} and the {y}.",
             "Price of the {x}? And of the {y}? Today."),
            ("Tell me two prices of today: the {x}, then the {y}.",
             "What do they want for the {x}, and for the {y}, today?",
             "I compare today: the {x} at what price, the {y} at what price?"),
        ),
        "zh": (
            ("今天{x}和{y}各多少錢？", "請查今天{x}和{y}的價錢。", "{x}和{y}今天各賣多少？"),
            ("今天的價錢：{x}、{y}。", "{x}跟{y}，今天各是幾元？", "今天兩樣都查：{x}、{y}。",
             "我想問今天{x}與{y}分別的價錢。",
             "{x}多少？{y}呢？今天的。"),
            ("告訴我今天兩個價錢：{x}，還有{y}。", "今天{x}要多少，{y}又要多少？",
             "我想比一比，今天{x}幾元、{y}幾元？"),
        ),
    },
}  # fmt: skip

_GROUPS = {"price": "good", "weather": "day", "festival": "month"}
_ARGUMENTS = {"price": "item", "weather": "day_name", "festival": "month"}
ONE_CALL = ("price", "weather", "festival", "route", "calculator")


@dataclass(frozen=True)
class Exchange:
    """A question that needs tools: all turns of its solution, the calls, and how answer and calls are judged."""

    turns: list[Turn]
    calls: list[dict[str, Any]]
    verifier: Verifier
    wrong: tuple[str, ...]
    tools: tuple[str, ...]
    kind: str


def exchange(
    world: World, language: Language, draw: random.Random, split: Split, toolbox: Toolbox, count: int = 1
) -> Exchange:
    """A question of `count` calls (1, 2 or 3), solved with the toolbox of a day."""
    if count == 1:
        # Forms for practice are of two and three calls only.
        asked: Split = split if split == "new" else "heldout" if kept_out(split) else "train"
        return _one_call(world, language, draw, asked, toolbox)
    kind = "prices" if count == 2 else "total"
    while True:
        a, b = draw.sample(range(len(language.words["good"])), 2)
        x, y = language.words["good"][a], language.words["good"][b]
        calls = [{"name": "price", "arguments": {"item": word}} for word in (x, y)]
        results = [_result(toolbox, call) for call in calls]
        # The expression of a third call is a pair of operands like any other.
        leaks = not kept_out(split) and is_held_out(world, int(results[0]), "+", int(results[1]))
        if world.held_out("call", kind, a, b) == kept_out(split) and not leaks:
            break
    turns: list[Turn] = [
        {"role": "user", "content": _question(kind, language, draw, split, x=x, y=y)},
        _calls(*calls),
        *({"role": "tool", "content": text} for text in results),
    ]
    # The same tools for both kinds: a calculator that is offered for a total alone would say what is asked for, and a
    # small model reads that off sooner than the question.
    tools = ("price", "calculator")
    if count == 2:
        answer = language.pick(
            f"The {x} costs {results[0]} coins and the {y} {results[1]} coins.",
            f"{x}{results[0]}元，{y}{results[1]}元。",
        )
        verifier: Verifier = {"name": "contains_all", "args": {"expected": results}}
        wrong = (answer.replace(results[0], str(int(results[0]) + 100)),)
        return Exchange([*turns, {"role": "assistant", "content": answer}], calls, verifier, wrong, tools, kind)
    sum_call: dict[str, Any] = {"name": "calculator", "arguments": {"expression": "+".join(results)}}
    total = _result(toolbox, sum_call)
    answer = language.pick(f"Together they cost {total} coins.", f"一共{total}元。")
    turns += [_calls(sum_call), {"role": "tool", "content": total}, {"role": "assistant", "content": answer}]
    verifier = {"name": "numeric", "args": {"expected": int(total)}}
    wrong = (answer.replace(total, str(int(total) + 1)),)
    return Exchange(turns, [*calls, sum_call], verifier, wrong, tools, kind)


def _one_call(world: World, language: Language, draw: random.Random, split: Split, toolbox: Toolbox) -> Exchange:
    tool = draw.choice(ONE_CALL)
    held = kept_out(split)
    words = language.words
    x = y = ""
    form: int | None = None
    while True:
        if tool == "calculator":
            a, b, sign = draw.randint(100, 999), draw.randint(2, 99), draw.choice("+-*")
            apart = world.held_out("call", tool, a, sign, b)
        elif tool == "route":
            chosen = draw.sample(range(len(words["place"])), 2)
            apart = world.held_out("call", tool, *chosen)
        else:
            group, count = _GROUPS[tool], len(QUESTIONS[tool]["en"][0])
            chosen, form = [draw.randrange(len(words[group]))], draw.randrange(count)
            apart = world.form_held_out(form, count, tool, chosen[0])
        if split == "new" or apart == held:
            break
    if tool == "calculator":
        x = f"{a} {sign} {b}"
        arguments = {"expression": f"{a}{sign}{b}"}
    elif tool == "route":
        x, y = (words["place"][index] for index in chosen)
        arguments = {"start": x, "end": y}
    else:
        x = words[_GROUPS[tool]][chosen[0]]
        arguments = {_ARGUMENTS[tool]: x}
    question = _question(tool, language, draw, split, None if split == "new" else form, x=x, y=y)
    call: dict[str, Any] = {"name": tool, "arguments": arguments}
    text = _result(toolbox, call)
    answer = _answer(tool, language, x, y, text)
    verifier: Verifier
    if tool == "weather" or tool == "festival":
        others = [word for word in words[tool] if word != text]
        verifier = {"name": "contains", "args": {"expected": text, "without": others}}
        wrong: tuple[str, ...] = (_answer(tool, language, x, y, others[0]),)
    else:
        verifier = {"name": "numeric", "args": {"expected": int(text)}}
        wrong = (_answer(tool, language, x, y, str(int(text) + 1)),)
    turns = [
        {"role": "user", "content": question},
        _calls(call),
        {"role": "tool", "content": text},
        {"role": "assistant", "content": answer},
    ]
    return Exchange(turns, [call], verifier, wrong, (tool,), tool)


def _result(toolbox: Toolbox, call: dict[str, Any]) -> str:
    """What `toolbox.call` answers to a call that is known to be good, without a thread for it."""
    tool = next(tool for tool in toolbox if tool.name == call["name"])
    return str(tool.function(**call["arguments"]))


def _answer(tool: str, language: Language, x: str, y: str, text: str) -> str:
    english, chinese = {
        "price": (f"The {x} costs {text} coins today.", f"{x}今天{text}元。"),
        "weather": (f"The weather on {x}: {text}.", f"{x}的天氣是{text}。"),
        "festival": (f"The festival in {x}: {text}.", f"{x}的節日：{text}。"),
        "route": (f"It takes {text} minutes.", f"要走{text}分鐘。"),
        "calculator": (f"{x} = {text}.", f"{x} = {text}。"),
    }[tool]
    return language.pick(english, chinese)


def _question(
    kind: str, language: Language, draw: random.Random, split: Split, number: Any = None, **values: str
) -> str:
    forms = QUESTIONS[kind][key_of(language)][FORM[split]]
    form = draw.choice(forms) if number is None else forms[number]
    return fill(language.pick(form, form), **values)


def _calls(*calls: dict[str, Any]) -> Turn:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def tool_prompt(toolbox: Toolbox, needed: tuple[str, ...], draw: random.Random, count: int = 3) -> Turn:
    """A system turn that offers the needed tools among `count`, in a random order."""
    rest = [name for name in TOOLS if name not in needed]
    names = [*needed, *draw.sample(rest, max(0, count - len(needed)))]
    draw.shuffle(names)
    return {"role": "system", "content": "", "tools": toolbox.only(names).schemas()}


def call_text(calls: list[dict[str, Any]]) -> str:
    """Calls as a model writes them."""
    lines = [json.dumps(call, ensure_ascii=False) for call in calls]
    return "\n".join(f"<tool_call>\n{line}\n</tool_call>" for line in lines)


def as_item(language: Language, found: Exchange) -> Item:
    """An exchange as an item: its question, last answer and verifier."""
    last = found.turns[-1]["content"]
    return Item("tool", language.code, found.turns[0]["content"], last, found.verifier, found.wrong)
