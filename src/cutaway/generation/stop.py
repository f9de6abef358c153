"""Tokens to text as they come: whole characters only, and nothing that may turn out to be a stop string."""

import codecs
from collections.abc import Sequence

from cutaway.tokenization.tokenizer import Tokenizer


class TextStream:
    """Text of a growing list of tokens.

    A byte-level token may end within a character, and a stop string may span tokens, so `push` gives back only text
    that no later token can change; the rest is held until it is decided. All text given back, joined, is
    `tokenizer.decode(ids, skip_control=True)` up to the first stop string, wherever the borders of the tokens lie. Of
    several stop strings the one that is complete first counts.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._tags = {i: text.encode() for text, i in tokenizer.control_ids.items() if i not in tokenizer.special_ids}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False
        """Whether a stop string was found; what follows it is dropped."""

    def push(self, token: int) -> str:
        """The text that `token` settles, often none."""
        # A vocabulary may be padded to a round size: ids above the tokenizer's have no text.
        known = token < self._tokenizer.vocab_size
        data = self._tags.get(token) or (self._tokenizer.token_bytes(token) if known else b"")
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """The text held back, once no token will follow; an unfinished character shows as U+FFFD."""
        rest = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return rest

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stop if stop in text]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
