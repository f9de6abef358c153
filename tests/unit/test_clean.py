"""Cleaning: what each rule finds and leaves alone, input that is damaged, and the report."""

import gzip
import importlib.util
import json
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.cli import main as cli
from cutaway.data import clean as clean_module
from cutaway.data.clean import CleanReport, clean_files
from cutaway.data.near import BANDS, ROWS, NearIndex, bands, permutations, signatures, sketches
from cutaway.data.normalise import normalise_text
from cutaway.data.overlap import OverlapIndex
from cutaway.data.rules import CleanSettings
from cutaway.data.units import distinct, ngrams_of, text_of, units_of
from cutaway.errors import UserError
from data_helpers import write_jsonl

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("CUTAWAY_DATA", ROOT.parent / "shared" / "data"))
HANS = "旧桥连接着河的两岸，每天清晨渔民从这里出发，把网撒进雾里；到了黄昏，孩子们沿着码头奔跑，面包的香气飘过整条街。"
HANT = "舊橋連接著河的兩岸，每天清晨漁民從這裡出發，把網撒進霧裡；到了黃昏，孩子們沿著碼頭奔跑，麵包的香氣飄過整條街。"
ENGLISH = "The old bridge joins both banks of the river, and in the morning the fishers set out from it into the fog."


def clean(tmp_path: Path, records: list[Any], **options: Any) -> tuple[list[Any], CleanReport]:
    """What is left of records, and the report."""
    settings = CleanSettings(**{key: options.pop(key) for key in list(options) if hasattr(CleanSettings, key)})
    source, out = write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    report = clean_files([source], out, settings, workers=1, **options)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], report


def rule_of(tmp_path: Path, text: str, **options: Any) -> str:
    """The rule that one text breaks, or nothing."""
    _, report = clean(tmp_path, [{"text": text}], kind="pretrain", **options)
    return next((name for name, rule in report.removed.items() if rule.records), "")


@pytest.mark.parametrize(
    "before, after",
    [
        ("Cafe\u0301 \r\n\r\n\r\n\r\nb\u00a0c\t\n", "Café\n\nb c"),
        ("\ufeffa\u200bb\x07c\u2028d", "abc\nd"),
        ("　　缩进，全角：ＡＢＣ　\n", "　　缩进，全角：ＡＢＣ"),
        ("    indented()\n        code", "    indented()\n        code"),
        ("👩\u200d💻 می\u200cخواهم", "👩\u200d💻 می\u200cخواهم"),
        ("\n\nplain", "plain"),
    ],
)
def test_normalisation(before: str, after: str) -> None:
    assert normalise_text(before) == after
    assert normalise_text(after) == after
    assert normalise_text("，Ａ１", nfkc=True) == ",A1"


UNITS = [
    (HANS, HANT),
    ("Hello, WORLD 12!", "hello world\n12"),
    ("ＧＰＴ四", "gpt 四"),
    ("naïve Straße", "NAÏVE straße"),
]


@pytest.mark.parametrize("one, other", UNITS)
def test_units_are_the_same_across_script_case_width_and_punctuation(one: str, other: str) -> None:
    first, second = units_of(text_of([one])), units_of(text_of([other]))
    assert np.array_equal(first.hashes, second.hashes)


def test_units_and_runs_of_many_documents_are_those_of_each() -> None:
    texts = ["", "a", ENGLISH, "word", "word", HANS, "。。", "tail"]
    units, runs = units_of(text_of(texts)), ngrams_of(units_of(text_of(texts)), 3)
    for number, text in enumerate(texts):
        alone = units_of(text_of([text]))
        assert np.array_equal(units.hashes[units.offsets[number] : units.offsets[number + 1]], alone.hashes)
        mine = runs.hashes[runs.offsets[number] : runs.offsets[number + 1]]
        assert np.array_equal(mine, ngrams_of(alone, 3).hashes)
        assert len(mine) == max(len(alone.hashes) - 2, 0)
        assert distinct(runs)[number] == len(set(mine.tolist()))
    assert len(set(units.hashes.tolist())) == len(
        {"a", "word", "tail", *ENGLISH.lower().replace(",", "").replace(".", "").split(), *HANS} - {*"，。；"}
    )


def test_signatures_are_those_of_datasketch() -> None:
    datasketch = pytest.importorskip("datasketch")
    runs = ngrams_of(units_of(text_of([HANS, ENGLISH, "a b"])), 5)
    found = signatures(runs)
    scheme = {"num_perm": len(permutations()[0]), "scheme": "affine32"}
    for number in range(2):
        hashes = runs.hashes[runs.offsets[number] : runs.offsets[number + 1]].astype(np.uint32)
        a, b = permutations().astype(np.uint64)
        table = (hashes.astype(np.uint64)[:, None] * a + b) % 2**32
        assert np.array_equal(found[number], table.min(axis=0))
        assert (
            datasketch.MinHash(**scheme, hashvalues=found[number]).jaccard(
                datasketch.MinHash(**scheme, hashvalues=found[number])
            )
            == 1.0
        )
    assert (found[2] == 2**32 - 1).all()


def test_candidates_are_those_of_datasketch_and_estimates_are_close() -> None:
    datasketch = pytest.importorskip("datasketch")
    draw = random.Random(1)
    base = [f"w{draw.randrange(10**6)}" for _ in range(400)]
    texts = []
    for changes in (0, 2, 4, 8, 16, 40, 100):
        copy = list(base)
        for place in draw.sample(range(400), changes):
            copy[place] = f"x{draw.randrange(10**6)}"
        texts.append(" ".join(copy))
    runs = ngrams_of(units_of(text_of(texts)), 5)
    found = signatures(runs)
    sets = [set(runs.hashes[a:b].tolist()) for a, b in zip(runs.offsets, runs.offsets[1:], strict=False)]
    exact = [len(sets[0] & other) / len(sets[0] | other) for other in sets]
    estimates = [float((found[0] == other).mean()) for other in found]
    assert max(abs(a - b) for a, b in zip(exact, estimates, strict=True)) < 0.11  # four standard errors
    lsh = datasketch.MinHashLSH(num_perm=found.shape[1], params=(BANDS, ROWS))
    lsh.insert(0, datasketch.MinHash(hashvalues=found[0], scheme="affine32"))
    keys = bands(found)
    for number in range(1, len(texts)):
        theirs = bool(lsh.query(datasketch.MinHash(hashvalues=found[number], scheme="affine32")))
        assert bool(set(keys[0].tolist()) & set(keys[number].tolist())) == theirs
    index = NearIndex(0.8)
    index.add(keys[0].tolist(), sketches(found)[0], 7)
    for number in range(len(texts)):
        match = index.find(keys[number].tolist(), sketches(found)[number])
        if abs(exact[number] - 0.8) > 0.1:
            assert (match is not None and match[0] == 7) == (exact[number] > 0.8)


REMOVED = {
    "too_short": ("短", {}),
    "too_long": (ENGLISH, {"max_chars": 50}),
    "broken": (HANS.encode().decode("latin-1"), {}),
    "symbols": ("#$%^ 12 &*()_+-= []{}|;: <>,./?~ 99 ()()()()", {}),
    "repetition": ("the same again and ever so on " * 20, {}),
    "language": ("Старый мост соединяет два берега реки, утром рыбаки выходят на лодках.", {}),
}


@pytest.mark.parametrize("rule", REMOVED)
def test_each_rule_finds_its_junk(tmp_path: Path, rule: str) -> None:
    text, options = REMOVED[rule]
    assert rule_of(tmp_path, text, **options) == rule


@pytest.mark.parametrize("text", [HANS, HANT, ENGLISH, "import os\n\ndef main() -> int:\n    return os.getpid() + 1\n"])
def test_good_text_stays(tmp_path: Path, text: str) -> None:
    assert rule_of(tmp_path, text) == ""


LANGUAGES = {
    "fr": "Le vieux pont relie les deux rives du fleuve et les enfants courent sur le quai avec leurs amis.",
    "ja": "古い橋は川の両岸をつないでいます。朝になると漁師はここから舟を出します。",
    "ko": "오래된 다리가 강의 두 기슭을 잇는다. 아침이면 어부들이 배를 띄운다.",
    "ar": "الجسر القديم يصل بين ضفتي النهر، وفي الصباح يخرج الصيادون إلى البحر",
    "th": "สะพานเก่าเชื่อมสองฝั่งแม่น้ำ ตอนเช้าชาวประมงออกเรือจากที่นี่",
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_foreign_language_is_counted_by_name_and_kept_where_wanted(tmp_path: Path, name: str) -> None:
    pytest.importorskip("py3langid")
    left, report = clean(tmp_path, [{"text": LANGUAGES[name]}, {"text": ENGLISH}])
    assert [record["text"] for record in left] == [ENGLISH]
    assert report.removed["language"].examples[0]["detail"] == name
    for languages in (f"en,{name}", "any"):
        assert rule_of(tmp_path, LANGUAGES[name], languages=languages) == ""


def test_duplicates_name_their_original(tmp_path: Path) -> None:
    copy = HANS.replace("黄昏", "傍晚")
    long = " ".join(f"word{number}" for number in range(300))
    records = [
        HANS + ENGLISH,
        "unlike " + ENGLISH,
        long,
        f"{HANS}{ENGLISH}  \r\n",
        long.replace("word7 ", "other "),
        copy,
    ]
    left, report = clean(tmp_path, [{"text": text, "id": number} for number, text in enumerate(records)])
    assert [record["id"] for record in left] == [0, 1, 2, 5]
    source = tmp_path / "in.jsonl"
    assert report.removed["duplicate"].examples[0] == {
        "where": f"{source}:4",
        "detail": f"of {source}:1",
        "text": (HANS + ENGLISH)[:120],
    }
    assert report.removed["near_duplicate"].examples[0]["detail"].startswith(f"of {source}:3, similarity about 0.9")
    assert report.index_documents == 4 and report.index_bytes > 4 * 256
    left, _ = clean(tmp_path, [{"text": long}, {"text": long.replace("word7 ", "other ")}], near=0.0)
    assert len(left) == 2


QUESTIONS = [
    {
        "question": "Which force keeps the moon in its path around the earth, year after year?",
        "choices": ["gravity", "wind"],
        "answer": 0,
    },
    {"question": "下列关于叶绿体的说法，正确的是？", "choices": ["含有叶绿素", "没有膜"], "answer": 0},
    {
        "question": "To cook rice",
        "choices": ["wash it and boil it in water until soft", "put it in the freezer for a day"],
        "answer": 0,
    },
    {"question": "Why?", "choices": ["a", "b"], "answer": 0},
]


def test_leaked_questions_are_found_in_either_script_and_with_other_punctuation(tmp_path: Path) -> None:
    evaluation = write_jsonl(tmp_path / "eval.jsonl", QUESTIONS)
    index = OverlapIndex.from_files([evaluation])
    assert (len(index.questions), index.too_short) == (3, 1)
    texts = [
        f"Quiz! which force keeps the moon in its path around the earth year after year -- {ENGLISH}",
        HANT + "下列關於葉綠體的說法正確的是（ ）" + HANT,
        "to cook rice: wash it and boil it in water until soft / put it in the freezer for a day",
        "Which force keeps the moon in its path around the earth is a good question, and there are more of them.",
        "To cook rice one needs a pot. Why? Because.",
        "",
    ]
    leaks = index.leaks(texts)
    assert [None if leak is None else leak.question for leak in leaks] == [0, 1, 2, None, None, None]
    left, report = clean(tmp_path, [{"text": text} for text in texts[:5]], evaluation=[evaluation])
    assert len(left) == 2 and report.removed["evaluation"].records == 3
    assert "Which force" in report.removed["evaluation"].examples[0]["detail"]
    assert "evaluation questions looked for: 3; too short to look for: 1" in str(report)


def test_a_file_that_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "eval.jsonl", [QUESTIONS[0], {"chosen": 1}])
    with pytest.raises(UserError, match=r"eval\.jsonl:2: no evaluation question"):
        clean(tmp_path, [{"text": ENGLISH}], evaluation=[bad])


@pytest.mark.parametrize(
    "script, texts", [("hans", [HANS]), ("hant", [HANT]), ("both", [HANS, HANT]), ("keep", [HANS])]
)
def test_scripts(tmp_path: Path, script: str, texts: list[str]) -> None:
    left, report = clean(tmp_path, [{"text": HANS}, {"text": ENGLISH}], script=script)
    assert [record["text"] for record in left] == [*texts, ENGLISH]
    assert (report.records, report.kept, report.lines) == (2, 2, len(texts) + 1)
    assert report.changed["converted"].records == (script in ("hant", "both"))


def test_conversations_keep_their_form(tmp_path: Path) -> None:
    call = '[{"name": "look", "arguments": {"q": "  a  "}}]'
    turns = [
        {"role": "user", "content": "你好\u200b "},
        {"role": "assistant", "content": "", "reasoning_content": "想\r\n", "tool_calls": call},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "好的"},
    ]
    left, report = clean(tmp_path, [{"conversations": turns, "id": "x"}] * 2)
    assert report.removed["duplicate"].records == 1
    assert [turn["content"] for turn in left[0]["conversations"]] == ["你好", "", "ok", "好的"]
    assert left[0]["conversations"][1] == turns[1] | {"reasoning_content": "想"}
    assert left[0]["id"] == "x"


def test_bad_records_are_counted_and_several_processes_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.data.parallel.CHUNK_BYTES", 500)
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": f"{ENGLISH} {number % 40} {HANS}"}) for number in range(80)]
    lines[3], lines[50] = "{broken", '{"text": 3}'
    source.write_text("\n".join(lines), encoding="utf-8")
    reports = []
    for workers in (1, 3):
        report = clean_files([source], tmp_path / f"{workers}.jsonl.gz", CleanSettings(), workers=workers)
        reports.append(report.to_dict())
    assert reports[0] == reports[1]
    assert reports[0]["records"] == 80 and reports[0]["removed"]["bad_record"]["records"] == 2
    one, three = (gzip.decompress((tmp_path / f"{n}.jsonl.gz").read_bytes()) for n in (1, 3))
    assert one == three and one.count(b"\n") == reports[0]["kept"]
    assert sum(rule["records"] for rule in reports[0]["removed"].values()) + reports[0]["kept"] == 80


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.xz", "jsonl.zst"])
def test_a_half_written_archive_leaves_one_line_and_no_output(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = b"".join(json.dumps({"text": f"{ENGLISH} {number * 7919}"}).encode() + b"\n" for number in range(3000))
    path, out = tmp_path / f"in.{suffix}", tmp_path / "out.jsonl"
    pack = {"gz": gzip.compress, "xz": lzma.compress}.get(path.suffix[1:])
    packed = pack(lines) if pack else pytest.importorskip("zstandard").compress(lines)
    path.write_bytes(packed[: len(packed) // 2])
    assert cli.main(["data", "clean", str(path), "--out", str(out), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "truncated or corrupt file, readable up to line" in error
    assert sorted(item.name for item in tmp_path.iterdir()) == [path.name]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
def test_a_line_of_a_gigabyte_is_counted_in_bounded_memory(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with open(source, "wb") as file:
        file.write(json.dumps({"text": ENGLISH}).encode() + b"\n")
        file.seek(2**30, 1)  # a hole: NUL bytes that take no room on the disk
        file.write(b"\n" + json.dumps({"text": HANS}).encode() + b"\n")
    # Not getrusage: its maximum begins with that of the process which started this one.
    code = (
        "import sys; from cutaway.cli.main import main; code = main(sys.argv[1:]);"
        "status = open('/proc/self/status').read();"
        "print('peak', int(status.split('VmHWM:')[1].split()[0]) // 1024); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "data", "clean", str(source), "--out", str(out), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "in.jsonl:2: the line is longer than 64 MB" in done.stdout
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2
    assert int(done.stdout.split("peak")[1]) < 700


MISTAKES = {
    "no files": (["--out", "o.jsonl"], "name at least one file"),
    "no out": (["in.jsonl"], "--out is missing"),
    "parquet": (["in.jsonl", "--out", "o.parquet"], "written as .jsonl"),
    "onto itself": (["in.jsonl", "--out", "in.jsonl"], "is one of the inputs"),
    "near": (["in.jsonl", "--out", "o.jsonl", "--near", "0.3"], "near is 0.3"),
    "share": (["in.jsonl", "--out", "o.jsonl", "--max-repetition", "3"], "max_repetition is 3.0"),
    "language": (["in.jsonl", "--out", "o.jsonl", "--languages", "english"], "two-letter codes"),
    "missing": (["no.jsonl", "--out", "o.jsonl"], "no such file"),
    "unknown kind": (["odd.jsonl", "--out", "o.jsonl"], "no record of a known kind"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", [{"text": ENGLISH}])
    write_jsonl(tmp_path / "odd.jsonl", [{"words": ENGLISH}])
    assert cli.main(["data", "clean", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cutaway: error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("module, text", [("datasketch", ENGLISH), ("py3langid.langid", LANGUAGES["fr"])])
def test_a_missing_extra_is_named(tmp_path: Path, module: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cutaway.data import language, near

    near.permutations.cache_clear()
    language._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'cutaway\[text\]'"):
        rule_of(tmp_path, text)
    near.permutations.cache_clear()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clean_module, "_writer", full)
    with pytest.raises(UserError, match=r"out\.jsonl: cannot be written: No space left"):
        clean(tmp_path, [{"text": ENGLISH}])


@pytest.mark.slow
def test_what_was_planted_is_found_and_little_else() -> None:
    text = DATA / "pretrain_extra.jsonl.xz"
    if not text.is_file():
        pytest.skip(f"no {text}: set CUTAWAY_DATA to the folder with the shared corpora")
    spec = importlib.util.spec_from_file_location("cleaning", ROOT / "benchmarks" / "cleaning.py")
    assert spec is not None and spec.loader is not None
    cleaning = importlib.util.module_from_spec(spec)
    sys.modules["cleaning"] = cleaning
    spec.loader.exec_module(cleaning)
    evaluation = [str(path) for path in sorted(DATA.glob("eval_*.jsonl.xz"))]
    found, wrong, _ = cleaning.try_planted(cleaning.read_texts(str(text), 6000), evaluation, 100)
    assert found >= 0.99
    assert wrong < 0.005
