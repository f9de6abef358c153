import errno
import json
import lzma
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.data import cache as cache_module
from cutaway.data.cache import TokenCache, build_cache, load_cache, split_holdout
from cutaway.errors import UserError
from cutaway.tokenization.chat import render
from data_helpers import WORDS, text_cache, tiny_tokenizer, write_jsonl

TEXTS = [{"text": " ".join(WORDS[: n % 9 + 1]) + str(n)} for n in range(200)]
CHATS = [
    {"conversations": [{"role": "user", "content": f"fox {n}?"}, {"role": "assistant", "content": f"dog 今天 {n}"}] * 3}
    for n in range(50)
]


def build(paths: list[Path], kind: Any = "pretrain", **options: Any) -> TokenCache:
    return build_cache(paths, tiny_tokenizer(), kind, **{"workers": 1, "root": paths[0].parent / "cache", **options})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "hashes.json")


def test_documents_are_framed_and_counted(tmp_path: Path) -> None:
    cache = build([write_jsonl(tmp_path / "a.jsonl", TEXTS)])
    tokenizer = tiny_tokenizer()
    assert len(cache) == len(TEXTS) == len(cache.lengths) and cache.trained(0) is None
    assert cache.flat_tokens.dtype == np.uint16
    for number, record in enumerate(TEXTS):
        eos, ids = tokenizer.eos_id, tokenizer.encode(record["text"])
        assert cache.tokens(number).tolist() == [eos, *ids, eos]
        assert cache.num_bytes(number) == len(record["text"].encode())
        assert cache.targets_per_document[number] == len(ids) + 1


def test_conversations_are_rendered_with_their_mask(tmp_path: Path) -> None:
    cache = build([write_jsonl(tmp_path / "a.jsonl", CHATS)], "sft", max_tokens=512)
    for number, record in enumerate(CHATS):
        rendered = render(record["conversations"], tiny_tokenizer())
        length = len(cache.tokens(number))
        assert cache.tokens(number).tolist() == rendered.ids[:length]
        trained = cache.trained(number)
        assert trained is not None and trained.tolist() == rendered.mask[:length]
        assert not any(rendered.mask[length:]) and cache.targets_per_document[number] == sum(rendered.mask)
        answers = [turn["content"] for turn in record["conversations"] if turn["role"] == "assistant"]
        assert cache.num_bytes(number) == sum(len(answer.encode()) for answer in answers)


def test_long_conversations_are_cut_at_a_turn_or_left_out_and_counted(tmp_path: Path) -> None:
    whole = len(render(CHATS[0]["conversations"], tiny_tokenizer()).ids)
    answer = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "dog " * 300}]
    path = write_jsonl(tmp_path / "a.jsonl", [*CHATS[:10], {"conversations": answer}])
    cache = build([path], "sft", max_tokens=whole - 5)
    assert (len(cache), cache.meta["cut"], cache.meta["dropped"]) == (10, 10, 1)
    end = tiny_tokenizer().im_end_id
    assert all(cache.tokens(n)[-1] == end and cache.trained(n)[-1] for n in range(10))  # type: ignore[index]
    with pytest.raises(UserError, match="no usable record"):
        build([path], "sft", max_tokens=4)


@pytest.mark.parametrize("kind, records", [("pretrain", TEXTS), ("sft", CHATS)])
def test_several_processes_give_the_same_files(
    tmp_path: Path, kind: str, records: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SMALL_INPUT", 0)
    monkeypatch.setattr("cutaway.data.parallel.CHUNK_BYTES", 500)
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", records[place:]) for place, name in enumerate("ab")]
    seen: list[tuple[float, int]] = []
    one = build(paths, kind, root=tmp_path / "one", progress=lambda share, count: seen.append((share, count)))
    two = build(paths, kind, root=tmp_path / "two", workers=2)
    assert one.path is not None and two.path is not None and one.path.name == two.path.name
    assert [path.read_bytes() for path in sorted(one.path.iterdir())] == [
        path.read_bytes() for path in sorted(two.path.iterdir())
    ]
    assert len(seen) > 5 and seen == sorted(seen) and seen[-1] == (1.0, len(one))


def test_an_error_in_a_process_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SMALL_INPUT", 0)
    monkeypatch.setattr("cutaway.data.parallel.CHUNK_BYTES", 500)
    paths = [write_jsonl(tmp_path / "a.jsonl", TEXTS), write_jsonl(tmp_path / "b.jsonl", [*TEXTS[:99], {"text": 3}])]
    with pytest.raises(UserError, match=r"b\.jsonl:100: 'text' must be a string"):
        build(paths, workers=2)
    assert names(tmp_path / "cache") == []


def test_the_key_is_content_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    first = build([path])
    copy = write_jsonl(tmp_path / "copy.jsonl", TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_write_cache", None)
        assert build([copy]).path == first.path
        assert build([path], seed=5).path == first.path  # the seed only draws scripts
    others = [build([path], scripts="hant"), build([write_jsonl(path, TEXTS[1:])]), build([copy, copy])]
    assert len({str(cache.path) for cache in [first, *others]}) == 4


def test_scripts_are_converted_before_tokenising(tmp_path: Path) -> None:
    pytest.importorskip("opencc")
    cache = build([write_jsonl(tmp_path / "a.jsonl", [{"text": "头发 fox"}])], scripts="hant")
    assert tiny_tokenizer().decode(cache.tokens(0)[1:-1].tolist()) == "頭髮 fox"


def test_bad_records_count_again_when_the_cache_exists(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*TEXTS[:3], {"text": ""}, *TEXTS[3:5]])
    assert len(build([path], skip_bad=1)) == 5
    for _ in range(2):
        with pytest.raises(UserError, match=r"a\.jsonl:4: 'text' is empty"):
            build([path])


def test_unreadable_input_leaves_nothing(tmp_path: Path) -> None:
    packed = lzma.compress("".join(json.dumps(record) + "\n" for record in TEXTS).encode())
    (tmp_path / "a.jsonl.xz").write_bytes(packed[:-30])
    with pytest.raises(UserError, match=r"a\.jsonl\.xz: truncated or corrupt"):
        build([tmp_path / "a.jsonl.xz"])
    with pytest.raises(UserError, match="no such file"):
        build([tmp_path / "none.jsonl"])
    with pytest.raises(UserError, match="no data files"):
        build_cache([], tiny_tokenizer(), "pretrain", root=tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_a_full_disk_leaves_no_half_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "encode_files", full)
    with pytest.raises(UserError, match="No space left on device; set CUTAWAY_CACHE"):
        build([path])
    assert names(tmp_path / "cache") == []


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(UserError, match="cannot write the token cache"):
        build([path], root=path / "below a file")


def test_interruption_leaves_no_half_cache(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)

    def stop(share: float, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build([path], progress=stop)
    assert names(tmp_path / "cache") == []


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    first = build([path])
    assert first.path is not None
    (first.path / "tokens.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="not a complete token cache"):
        load_cache(first.path)
    assert build([path]).tokens(199).tolist() == build([path], root=tmp_path / "fresh").tokens(199).tolist()


def test_whoever_comes_second_takes_the_first_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    write = cache_module._write_cache

    def slow(folder: Path, *args: Any) -> None:
        monkeypatch.setattr(cache_module, "_write_cache", write)
        build([path])
        write(folder, *args)

    monkeypatch.setattr(cache_module, "_write_cache", slow)
    assert len(build([path])) == 200 and len(names(tmp_path / "cache")) == 1


def _race(path: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(int(build([path]).flat_tokens.sum()))


def test_two_processes_at_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS * 20)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_race, args=(path, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sums[0] == sums[1] and len(names(tmp_path / "cache")) == 1


def test_the_default_root_is_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_CACHE", str(tmp_path / "elsewhere"))
    cache = build_cache([write_jsonl(tmp_path / "a.jsonl", TEXTS)], tiny_tokenizer(), "pretrain")
    assert cache.path is not None and cache.path.parent == tmp_path / "elsewhere"


def test_old_abandoned_folders_are_removed(tmp_path: Path) -> None:
    import os

    for name, age in (("old", 2e5), ("new", 0)):
        folder = tmp_path / "cache" / f".building-{name}"
        folder.mkdir(parents=True)
        os.utime(folder, (folder.stat().st_mtime - age,) * 2)
    build([write_jsonl(tmp_path / "a.jsonl", TEXTS)])
    assert [name for name in names(tmp_path / "cache") if name.startswith(".")] == [".building-new"]
    shutil.rmtree(tmp_path / "cache")


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(0, 400), st.integers(0, 5))
@settings(deadline=None)
def test_holdout_is_a_small_part_of_whole_documents(lengths: list[int], tokens: int, seed: int) -> None:
    cache = text_cache(lengths)
    train, heldout = split_holdout(cache, tokens, seed)
    assert sorted([*train, *heldout]) == list(range(len(lengths))) and len(train) > 0
    assert bool(len(heldout)) == (tokens > 0 and len(lengths) > 1)
    assert len(heldout) <= 1 or sum(lengths[n] - 1 for n in heldout) <= 0.1 * (sum(lengths) - len(lengths))
    if len(heldout) > 1:
        assert sum(lengths[n] - 1 for n in heldout) - tokens < max(lengths[n] - 1 for n in heldout)


def test_holdout_depends_on_content_and_keeps_copies_together(tmp_path: Path) -> None:
    once = build([write_jsonl(tmp_path / "a.jsonl", TEXTS)])
    twice = build([write_jsonl(tmp_path / "b.jsonl", [*TEXTS[::-1], *TEXTS])])

    def heldout(cache: TokenCache, tokens: int, seed: int = 0) -> list[bytes]:
        return sorted(cache.tokens(n).tobytes() for n in split_holdout(cache, tokens, seed)[1])

    single = heldout(once, 60)
    assert heldout(twice, 120) == sorted(single * 2)
    assert heldout(once, 60, seed=1) != single
    assert set(single) < set(heldout(once, 200))
    train, _ = split_holdout(twice, 120, 0)
    assert not {twice.tokens(n).tobytes() for n in train} & set(single)
