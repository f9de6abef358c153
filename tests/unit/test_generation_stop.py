from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.generation.stop import TextStream
from generation_helpers import tiny_tokenizer

IDS = st.lists(st.integers(0, tiny_tokenizer().vocab_size - 1), max_size=40)
STOPS = st.lists(st.text("ab天 ", min_size=1, max_size=4), max_size=3)


def run(ids: list[int], stop: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(tiny_tokenizer(), stop)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


@settings(max_examples=200, deadline=None)
@given(IDS)
def test_any_tokens_give_the_text_that_decoding_them_at_once_gives(ids: list[int]) -> None:
    assert "".join(run(ids, [])[0]) == tiny_tokenizer().decode(ids, skip_control=True)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_no_piece_holds_half_a_character(text: str) -> None:
    text = text.replace("\ufffd", "")
    pieces, _ = run(tiny_tokenizer().encode(text), [])
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


def reference(text: str, stop: list[str]) -> tuple[str, bool]:
    """Character by character: the first stop string to be complete ends the text; of several, the longest."""
    for end in range(1, len(text) + 1):
        found = [one for one in stop if text[:end].endswith(one)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(st.text("ab天 ", max_size=24), STOPS)
def test_a_stop_string_is_found_wherever_the_tokens_end(text: str, stop: list[str]) -> None:
    pieces, stopped = run(tiny_tokenizer().encode(text), stop)
    assert ("".join(pieces), stopped) == reference(text, stop)


def test_a_possible_stop_string_is_held_back_until_decided() -> None:
    stream = TextStream(tiny_tokenizer(), ["abc"])
    ids = {character: tiny_tokenizer().encode(character)[0] for character in "abcx"}
    assert [stream.push(ids[character]) for character in "xaabx"] == ["x", "", "a", "", "abx"]
    assert [stream.push(ids[character]) for character in "abc"] == ["", "", ""]
    assert stream.stopped and stream.finish() == "" and stream.push(ids["x"]) == ""


def test_within_one_token_the_stop_string_that_is_complete_first_counts() -> None:
    (token,) = tiny_tokenizer().encode("the")
    for stop in (["e", "h"], ["h", "e"], ["he", "h"]):
        stream = TextStream(tiny_tokenizer(), stop)
        assert stream.push(token) == "t" and stream.stopped


def test_tags_are_text_special_tokens_and_padding_ids_are_not() -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.control_ids["<think>"], tokenizer.im_end_id, tokenizer.vocab_size + 5, *tokenizer.encode("a")]
    assert "".join(run(ids, [])[0]) == "<think>a"


def test_an_unfinished_character_shows_as_a_replacement_at_the_end() -> None:
    first_byte = next(i for i in range(256) if tiny_tokenizer().token_bytes(i) == "天".encode()[:1])
    assert run([first_byte], [])[0] == ["", "\ufffd"]
