"""What `data clean` finds of what was planted, what else it removes, and how fast it is.

    python benchmarks/cleaning.py planted --text pretrain_extra.jsonl.xz --evaluation eval_*.jsonl.xz [--records N]
    python benchmarks/cleaning.py speed --text pretrain_extra.jsonl.xz --evaluation eval_*.jsonl.xz [--megabytes N]

`planted` puts exact and near duplicates, junk and evaluation questions among the records of a file, cleans it, and
counts. A near-duplicate is planted only where the exact Jaccard similarity is at least 0.85. An original that is
removed as a near-duplicate is not held against the cleaner if it is one: exact Jaccard similarity of at least 0.8,
counted here by means of its own.
"""

import argparse
import json
import lzma
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import opencc

from cutaway.data.clean import CleanReport, clean_files
from cutaway.data.formats import raw_records
from cutaway.data.overlap import LEAST_UNITS, question_of
from cutaway.data.parallel import chunks_of_files
from cutaway.data.rules import CleanSettings, Given, inspect

FOREIGN = {
    "ru": ["Старый мост соединяет два берега реки", "утром рыбаки выходят на лодках", "дети бегут по набережной"],
    "fr": ["Le vieux pont relie les deux rives du fleuve", "les enfants courent sur le quai", "on vend du pain chaud"],
    "es": ["El puente viejo une las dos orillas del río", "los niños corren por el muelle", "se vende pan caliente"],
    "de": ["Die alte Brücke verbindet beide Ufer", "die Kinder laufen über den Platz", "der Bäcker öffnet früh am Tag"],
    "vi": ["Cây cầu cũ nối hai bờ sông", "trẻ em chạy dọc bến tàu", "người ta bán bánh mì nóng buổi sáng"],
    "ja": ["古い橋は川の両岸をつないでいます", "子どもたちは岸を走ります", "朝になると漁師は舟を出します"],
    "ko": ["오래된 다리가 강의 두 기슭을 잇는다", "아이들이 부두를 달린다", "아침이면 어부들이 배를 띄운다"],
    "ar": ["الجسر القديم يصل بين ضفتي النهر", "يركض الأطفال على الرصيف", "في الصباح يخرج الصيادون"],
    "th": ["สะพานเก่าเชื่อมสองฝั่งแม่น้ำ", "เด็กวิ่งเล่นริมท่าเรือ", "ตอนเช้าชาวประมงออกเรือ"],
}


@dataclass
class Planted:
    """A line that should not survive, or an original that should."""

    kind: str
    text: str


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of five words or Chinese characters, by a regular expression."""
    units = re.findall(
        r"[\u2e80-\u2fff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u2e80-\u9fff]+", text.lower()
    )
    return {tuple(units[place : place + 5]) for place in range(len(units) - 4)}


def jaccard(one: str, other: str) -> float:
    """Exact similarity of two texts."""
    a, b = shingles(one), shingles(other)
    return len(a & b) / max(len(a | b), 1)


def disturb(text: str, draw: random.Random) -> str:
    """A copy with a few characters left out, doubled or replaced, still at least 0.85 similar."""
    for rate in (0.02, 0.01, 0.005, 0.0025, 0.001):
        copy = "".join(
            draw.choice(["", char * 2, draw.choice(text)]) if draw.random() < rate else char for char in text
        )
        if copy != text and jaccard(copy, text) >= 0.85:
            return copy
    return text + draw.choice("。.!?")


def junk(draw: random.Random, texts: list[str]) -> Iterator[Planted]:
    """One piece of every kind of junk."""
    signs = "#$%^&*()_+-=[]{}|;:<>,./?~`@!0123456789 "
    yield Planted(
        "too short", draw.choice(["好", "ok", "...", "第一章", "Chapter 1", " 　 "]) + str(draw.randint(1, 9))
    )
    yield Planted("line noise", "".join(draw.choice(signs) for _ in range(draw.randint(80, 600))))
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    yield Planted("encoded", "data: " + "".join(draw.choice(letters) for _ in range(draw.randint(200, 900))))
    phrase = draw.choice(texts)[draw.randint(0, 20) :][: draw.randint(9, 30)]
    yield Planted("repetition", phrase * draw.randint(20, 60))
    chinese = next(text for text in iter(lambda: draw.choice(texts), "") if re.match(r"[\u4e00-\u9fff]{4}", text))
    yield Planted("wrong decoding", chinese[:300].encode("utf-8").decode("latin-1"))
    yield Planted("lost characters", re.sub(r"[\u4e00-\u9fff]", lambda m: draw.choice([m[0], "\ufffd"]), chinese[:300]))
    language = draw.choice(list(FOREIGN))
    parts = [draw.choice(FOREIGN[language]) + " " + str(draw.randint(1, 10**6)) for _ in range(draw.randint(4, 6))]
    yield Planted(f"language {language}", ". ".join(parts))


def plant(texts: list[str], questions: list[tuple[str, str]], each: int, seed: int = 7) -> list[Planted]:
    """The originals in order with `each` of every kind among them, copies after what they are copies of."""
    draw = random.Random(seed)
    long = [number for number, text in enumerate(texts) if len(text) >= 200]
    after: dict[int, list[Planted]] = {}

    def put(least: int, planted: Planted) -> None:
        after.setdefault(draw.randint(least, len(texts) - 1), []).append(planted)

    traditional = opencc.OpenCC("s2t")
    chinese = [number for number in long if re.search(r"[\u4e00-\u9fff]{20}", texts[number])]
    for _ in range(each):
        number = draw.choice(long)
        put(
            number,
            Planted("exact copy", "\ufeff" + texts[number].replace("\n", "  \r\n").replace(" ", "\u00a0") + " \n"),
        )
        number = draw.choice(long)
        put(number, Planted("near copy", disturb(texts[number], draw)))
        number = draw.choice(chinese)
        put(number, Planted("copy in the other script", traditional.convert(texts[number])))
        for planted in junk(draw, texts):
            put(0, planted)
        question, choices = draw.choice(questions)
        host = texts[draw.choice(long)]
        place = draw.randint(0, len(host))
        leak = f"{host[place:]}\n{question}\n{choices}\n{host[:place]}"
        put(0, Planted("evaluation question", leak))
        alone = draw.choice(
            [pair[0] for pair in draw.choices(questions, k=200) if len(shingles(pair[0])) >= LEAST_UNITS]
        )
        put(0, Planted("evaluation question alone", alone))
    lines = []
    for number, text in enumerate(texts):
        lines.append(Planted("", text))
        lines += after.get(number, [])
    return lines


def try_planted(
    texts: list[str], evaluation: list[str], each: int, say: Callable[[str], None] = print
) -> tuple[float, float, CleanReport]:
    """Share of the planted that is found, share of the originals wrongly removed, and the report."""
    questions = [question_of(json.loads(record.raw)) for path in evaluation for record in raw_records(path)]
    usable = [(q, c) for q, c in questions if len(shingles(f"{q}\n{c}")) + 4 >= LEAST_UNITS]
    lines = plant(texts, usable, each)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        with open(source, "w", encoding="utf-8") as file:
            for number, line in enumerate(lines):
                file.write(json.dumps({"text": line.text, "number": number}, ensure_ascii=False) + "\n")
        report = clean_files([source], out, CleanSettings(), evaluation=evaluation, examples=10**9)
        kept = {json.loads(line)["number"] for line in out.read_text(encoding="utf-8").splitlines()}
    put, found = Counter(line.kind for line in lines), Counter[str]()
    for number, line in enumerate(lines):
        found[line.kind] += number not in kept
    for kind in filter(None, sorted(put)):
        say(f"{kind:<28} planted {put[kind]:>6}  found {found[kind]:>6}  {found[kind] / put[kind]:8.2%}")
    planted = sum(put.values()) - put[""]
    share = (sum(found.values()) - found[""]) / planted
    wrong = Counter[str]()
    real = 0
    for name, rule in report.removed.items():
        for example in rule.examples:
            number = int(example["where"].rsplit(":", 1)[1]) - 1
            if lines[number].kind:
                continue
            if name == "near_duplicate":
                other = int(example["detail"].split(",")[0].rsplit(":", 1)[1]) - 1
                if jaccard(lines[number].text, lines[other].text) >= 0.8:
                    real += 1
                    continue
            wrong[name] += 1
    say(f"planted {planted}, found {share:.2%}")
    say(f"originals {put['']}, real near-duplicates among them {real}, others removed {wrong.total()}: {dict(wrong)}")
    say(f"others removed: {wrong.total() / put['']:.3%} of the originals")
    return share, wrong.total() / put[""], report


def try_speed(texts: list[str], evaluation: list[str]) -> None:
    """MB/s of one process, by processor time, rule by rule set. A megabyte is 10^6 bytes of UTF-8 text."""
    from cutaway.data.clean import Seen
    from cutaway.data.overlap import OverlapIndex

    index = OverlapIndex.from_files(evaluation)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        source.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
        megabytes = sum(len(text.encode("utf-8")) for text in texts) / 1e6
        cases: list[tuple[str, dict[str, Any]]] = [
            ("every rule", {}),
            ("every rule, output in both scripts", {"script": "both"}),
            ("without near-duplicates", {"near": 0.0}),
            ("without near-duplicates, output in both scripts", {"near": 0.0, "script": "both"}),
        ]
        inspect(Given(CleanSettings(), "pretrain", index), next(chunks_of_files([source]))[1][:5])
        for name, changes in cases:
            given = Given(CleanSettings(**changes), "pretrain", index)
            seen, start = Seen(given.settings.near), time.process_time()
            for _, records in chunks_of_files([source]):
                for finding in inspect(given, records):
                    if not finding.rule:
                        seen.check(finding, 0, ["in"])
            speed = megabytes / (time.process_time() - start)
            size = f", index {seen.num_bytes() / max(len(seen), 1):.0f} bytes a document"
            print(f"{name:<50} {speed:6.1f} MB/s of processor time{size}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["planted", "speed"])
    parser.add_argument("--text", required=True)
    parser.add_argument("--evaluation", nargs="+", required=True)
    parser.add_argument("--records", type=int)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--each", type=int, default=300)
    arguments = parser.parse_args()
    texts = read_texts(arguments.text, arguments.records)
    if arguments.action == "planted":
        _, _, report = try_planted(texts, arguments.evaluation, arguments.each)
        for rule in report.removed.values():
            del rule.examples[3:]
        print(report)
        return
    size = 0
    for number, text in enumerate(texts):
        size += len(text.encode("utf-8"))
        if size > arguments.megabytes * 1e6:
            texts = texts[:number]
            break
    try_speed(texts, arguments.evaluation)


def read_texts(path: str, records: int | None) -> list[str]:
    """The first texts of a packed file, or all."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for _, line in zip(range(records or 10**12), file, strict=False)]


if __name__ == "__main__":
    main()
