"""A tiny made-up town in Traditional Chinese, Simplified Chinese and English: text to pretrain on, and conversations.

Everything follows from the seed. Each fact about each person stands in the text in several wordings, and questions
about it in the conversations, so that a model of a few million parameters can learn to answer within minutes. The
Chinese is written in Traditional characters and converted for the simplified half.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import UserError

Record = dict[str, Any]

TOWN = ("Pinewood", "松林鎮")
PEOPLE = (
    ("Alice", "陳怡君"), ("Ben", "林志明"), ("Clara", "王美玲"), ("David", "張家豪"),
    ("Emma", "李淑芬"), ("Frank", "黃建國"), ("Grace", "吳雅婷"), ("Henry", "劉俊傑"),
    ("Irene", "蔡佩珊"), ("Jack", "楊宗翰"), ("Kate", "許惠雯"), ("Leo", "鄭文雄"),
)  # fmt: skip
JOBS = (
    ("baker", "麵包師傅", "bakery", "麵包店"), ("teacher", "老師", "school", "學校"),
    ("doctor", "醫生", "hospital", "醫院"), ("farmer", "農夫", "farm", "農場"),
    ("librarian", "圖書館員", "library", "圖書館"), ("cook", "廚師", "restaurant", "餐廳"),
)  # fmt: skip
STREETS = (
    ("River Street", "河邊街"),
    ("Garden Road", "花園路"),
    ("Market Square", "市場廣場"),
    ("Hill Lane", "山坡巷"),
)
PETS = (("dog", "狗"), ("cat", "貓"), ("rabbit", "兔子"), ("parrot", "鸚鵡"), ("turtle", "烏龜"))
FOODS = (
    ("noodles", "牛肉麵"),
    ("dumplings", "水餃"),
    ("apple pie", "蘋果派"),
    ("fish soup", "魚湯"),
    ("fried rice", "炒飯"),
)
HOBBIES = (("painting", "畫畫"), ("fishing", "釣魚"), ("singing", "唱歌"), ("reading", "讀書"), ("cycling", "騎腳踏車"))

# One line a fact: key, sentences in English, sentences in Chinese, question and answer in each.
FACTS = (
    ("job", ("{n} is a {v} in Pinewood.", "{n} works as a {v}."), ("{n}是松林鎮的{v}。", "{n}的工作是{v}。"),
     ("What is {n}'s job?", "{n} is a {v}."), ("{n}的工作是什麼？", "{n}是{v}。")),
    ("place", ("Every morning {n} goes to the {v}.", "{n} works at the {v}."),
     ("每天早上{n}都去{v}。", "{n}在{v}上班。"),
     ("Where does {n} work?", "{n} works at the {v}."), ("{n}在哪裡上班？", "{n}在{v}上班。")),
    ("street", ("{n} lives on {v}.", "The house of {n} is on {v}."), ("{n}住在{v}。", "{n}的家在{v}。"),
     ("Where does {n} live?", "{n} lives on {v}."), ("{n}住在哪裡？", "{n}住在{v}。")),
    ("pet", ("{n} has a {v}.", "The pet of {n} is a {v}."), ("{n}養了一隻{v}。", "{n}的寵物是{v}。"),
     ("Which pet does {n} have?", "{n} has a {v}."), ("{n}養什麼寵物？", "{n}養了一隻{v}。")),
    ("food", ("{n} likes to eat {v}.", "The favourite food of {n} is {v}."), ("{n}喜歡吃{v}。", "{n}最愛的食物是{v}。"),
     ("What does {n} like to eat?", "{n} likes to eat {v}."), ("{n}喜歡吃什麼？", "{n}喜歡吃{v}。")),
    ("hobby", ("In the evening {n} enjoys {v}.", "The hobby of {n} is {v}."), ("晚上{n}喜歡{v}。", "{n}的嗜好是{v}。"),
     ("What is {n}'s hobby?", "{n}'s hobby is {v}."), ("{n}的嗜好是什麼？", "{n}的嗜好是{v}。")),
)  # fmt: skip
TALK = (
    (("Hello!", "Hello! How can I help you?"), ("你好！", "你好！有什麼我可以幫忙的嗎？")),
    (("Who are you?", "I am a small language model, trained from nothing with Cutaway."),
     ("你是誰？", "我是用 Cutaway 從零訓練出來的小型語言模型。")),
    (("Which town do you know?", "I know Pinewood and the people who live there."),
     ("你認識哪個城鎮？", "我認識松林鎮，還有住在那裡的人。")),
    (("Thank you!", "You are welcome."), ("謝謝你！", "不客氣。")),
    (("Who is the king of Pinewood?", "I do not know that."), ("松林鎮的國王是誰？", "這個我不知道。")),
)  # fmt: skip
EXAMPLE_QUESTIONS = (
    "Who are you?",
    "Where does Alice live?",
    "陳怡君的工作是什麼？",
    "林志明喜歡吃什麼？",
    "What is 3 + 4?",
)


@dataclass(frozen=True)
class SmallSet:
    """Documents for pretraining and conversations for fine-tuning, as records of the data formats."""

    documents: list[Record]
    conversations: list[Record]

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write pretrain.jsonl and sft.jsonl."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, records in (("pretrain", self.documents), ("sft", self.conversations)):
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder / "pretrain.jsonl", folder / "sft.jsonl"


def make_small_set(seed: int = 0, documents: int = 2400, conversations: int = 2000) -> SmallSet:
    """The town of a seed: the same records for the same arguments, on every machine.

    Raises UserError where OpenCC, which writes the simplified half, is not installed.
    """
    draw = random.Random(seed)
    town = _make_town(draw)
    return SmallSet(
        [{"text": text} for text in _documents(town, draw, documents)],
        [{"conversations": turns} for turns in _conversations(town, draw, conversations)],
    )


def _make_town(draw: random.Random) -> list[dict[str, tuple[str, str]]]:
    town = []
    for name in PEOPLE:
        english_job, chinese_job, english_place, chinese_place = draw.choice(JOBS)
        person = {"name": name, "job": (english_job, chinese_job), "place": (english_place, chinese_place)}
        choices = {"street": STREETS, "pet": PETS, "food": FOODS, "hobby": HOBBIES}
        town.append(person | {key: draw.choice(values) for key, values in choices.items()})
    return town


def _documents(town: list[dict[str, tuple[str, str]]], draw: random.Random, count: int) -> Iterator[str]:
    """A third English, a third Traditional, a third Simplified; each in turn about people, and every eighth a sum."""
    simplify = _simplifier()
    for number in range(count):
        chinese = number % 3 > 0
        if number % 8 == 7:
            text = (" " if not chinese else "").join(_sum(draw, chinese) for _ in range(6))
        else:
            text = (" " if not chinese else "").join(_facts(person, draw, chinese) for person in draw.sample(town, 2))
        yield simplify(text) if number % 3 == 2 else text


def _facts(person: dict[str, tuple[str, str]], draw: random.Random, chinese: bool) -> str:
    facts = draw.sample(FACTS, 4)
    sentences = [draw.choice(fact[2 if chinese else 1]) for fact in facts]
    values = [person[fact[0]][chinese] for fact in facts]
    pairs = zip(sentences, values, strict=True)
    return ("" if chinese else " ").join(text.format(n=person["name"][chinese], v=value) for text, value in pairs)


def _sum(draw: random.Random, chinese: bool) -> str:
    a, b = draw.randint(0, 9), draw.randint(0, 9)
    return f"{a}加{b}等於{a + b}。" if chinese else f"{a} plus {b} is {a + b}, so {a} + {b} = {a + b}."


def _conversations(
    town: list[dict[str, tuple[str, str]]], draw: random.Random, count: int
) -> Iterator[list[dict[str, str]]]:
    """One to three questions each: about people mostly, then sums (half of them thought through) and small talk."""
    simplify = _simplifier()
    for number in range(count):
        chinese = number % 3 > 0
        turns: list[dict[str, str]] = []
        for _ in range(draw.choice((1, 1, 2, 3))):
            kind = draw.random()
            if kind < 0.7:
                person, fact = draw.choice(town), draw.choice(FACTS)
                question, answer = (
                    text.format(n=person["name"][chinese], v=person[fact[0]][chinese])
                    for text in fact[4 if chinese else 3]
                )
                turns += _exchange(question, answer)
            elif kind < 0.85:
                a, b = draw.randint(0, 9), draw.randint(0, 9)
                question = f"{a} + {b} 等於多少？" if chinese else f"What is {a} + {b}?"
                answer = f"{a} + {b} = {a + b}" + ("。" if chinese else ".")
                turns += _exchange(question, answer, _thought(a, b, chinese, draw))
            else:
                turns += _exchange(*draw.choice(TALK)[chinese])
        yield [{key: simplify(text) for key, text in turn.items()} for turn in turns] if number % 3 == 2 else turns


def _thought(a: int, b: int, chinese: bool, draw: random.Random) -> str:
    if draw.random() < 0.5:
        return ""
    return f"{a}加{b}等於{a + b}。" if chinese else f"{a} plus {b} is {a + b}."


def _exchange(question: str, answer: str, thought: str = "") -> list[dict[str, str]]:
    reply = {"role": "assistant", "content": answer} | ({"reasoning_content": thought} if thought else {})
    return [{"role": "user", "content": question}, reply]


def _simplifier() -> Any:
    try:
        import opencc
    except ImportError:
        raise UserError("the built-in text needs OpenCC for its simplified half: pip install opencc") from None
    return opencc.OpenCC("t2s").convert
