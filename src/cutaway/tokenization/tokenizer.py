"""Byte-level BPE over the `tokenizers` library. Text is only ever text: a control token cannot be typed.

Two encoders share one vocabulary. `encode` uses the one without the added tokens, so that `<|im_end|>` in a user's
message becomes ordinary pieces; control ids come from `control_ids` alone (see `chat.py`). The files that `save` writes
hold the added tokens, as every other runtime expects.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers

from cutaway.errors import UserError
from cutaway.tokenization.template import CHAT_TEMPLATE

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
# Not special: other runtimes strip special tokens before their parsers of thinking and tool calls look.
TAG_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
CONTROL_TOKENS = SPECIAL_TOKENS + TAG_TOKENS

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"qwen2": _PATTERN.replace("DIGITS", r"\p{N}"), "llama3": _PATTERN.replace("DIGITS", r"\p{N}{1,3}")}


def _byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in a vocabulary file (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_characters()


class Tokenizer:
    """A vocabulary with its two encoders. Make one with `Tokenizer.load` or `train.train_tokenizer`."""

    def __init__(self, definition: str, config: dict[str, Any] | None = None) -> None:
        """`definition` is the text of a tokenizer.json, `config` the contents of its tokenizer_config.json."""
        self._full = tokenizers.Tokenizer.from_str(definition)
        self._full.no_truncation()
        self._full.no_padding()
        self._table: dict[str, Any] = json.loads(self._full.to_str())
        self._table["post_processor"] = None
        self._text = tokenizers.Tokenizer.from_str(json.dumps(self._table | {"added_tokens": []}))
        self._config = dict(config) if config is not None else _default_config()
        added: dict[int, AddedToken] = self._full.get_added_tokens_decoder()
        self.control_ids: dict[str, int] = {token.content: index for index, token in added.items()}
        self.special_ids: frozenset[int] = frozenset(index for index, token in added.items() if token.special)
        self._control_text: dict[int, str] = {index: token.content for index, token in added.items()}
        self.vocab_size: int = max(self._full.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Read `tokenizer.json` (and `tokenizer_config.json`, where there is one) of a model or tokenizer directory.

        Any tokenizer.json works as a vocabulary, other projects' too. Raises UserError where the file is missing or
        cannot be read.
        """
        folder = Path(directory)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{folder}: no tokenizer.json there (a tokenizer or model directory is needed)")
        config = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        if (folder / "chat_template.jinja").is_file():
            config["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        try:
            return cls(path.read_text(encoding="utf-8"), config)
        except Exception as error:  # the library raises bare Exception
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not a tokenizer file that can be read: {reason}") from None

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json so that Transformers 4.57 and 5 give these very ids."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = dict(self._config)
        # Model-specific classes bring their own normalisers in Transformers 5; this one takes tokenizer.json as it is.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.pop("auto_map", None)
        _write(folder / "tokenizer.json", json.dumps(json.loads(self._full.to_str()), ensure_ascii=False, indent=1))
        _write(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))
        # A template left by another version would win over the one in tokenizer_config.json.
        (folder / "chat_template.jinja").unlink(missing_ok=True)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, all of it taken as text. Lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
        ids: list[int] = self._text.encode(well_formed(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, on all cores."""
        batch = self._text.encode_batch_fast([well_formed(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def encode_markup(self, text: str) -> list[int]:
        """Ids of `text` in which markers are control tokens: for a template's text, never for what a user typed."""
        ids: list[int] = self._full.encode(well_formed(text), add_special_tokens=False).ids
        return ids

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
        """Ids of a template's text given in pieces, and each piece's flag for its ids.

        The pieces of a byte-level vocabulary are encoded one by one, as a prompt and its answer are. A vocabulary that
        writes something in front of every text (SentencePiece's blank) must see the text as a whole; there an id has
        the flag of the character that it begins with.
        """
        if self._byte_level:
            parts = [(self.encode_markup(text), flag) for text, flag in pieces]
            return [index for ids, _ in parts for index in ids], [flag for ids, flag in parts for _ in ids]
        encoding = self._full.encode(well_formed("".join(text for text, _ in pieces)), add_special_tokens=False)
        flags = [flag for text, flag in pieces for _ in well_formed(text)]
        return encoding.ids, [flags[min(start, len(flags) - 1)] for start, _ in encoding.offsets]

    def decode(self, ids: Iterable[int], skip_control: bool = False) -> str:
        """Text of `ids`; broken UTF-8 shows as U+FFFD.

        `skip_control` leaves out the special tokens (`<|im_end|>` and so on) but keeps the thinking and tool tags, as
        `skip_special_tokens` of Transformers does.
        """
        kept = [index for index in ids if not (skip_control and index in self.special_ids)]
        if not self._byte_level:
            text: str = self._full.decode(kept, skip_special_tokens=False)
            return text
        pieces = (
            self._control_text[index].encode() if index in self._control_text else self.token_bytes(index)
            for index in kept
        )
        return b"".join(pieces).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes of the text tokens among `ids`; a token may end within a character. Control tokens give none."""
        return b"".join(self.token_bytes(index) for index in ids)

    def token_bytes(self, index: int) -> bytes:
        """Bytes that one token stands for; `b""` for control tokens and for ids without a token."""
        if not 0 <= index < self.vocab_size:
            raise IndexError(f"token id {index} is outside the vocabulary of {self.vocab_size}")
        return self._bytes_of[index]

    def control_text(self, index: int) -> str | None:
        """The name of a control token, None for a token of text."""
        return self._control_text.get(index)

    def control_id(self, token: str) -> int:
        """Id of a control token; UserError where this vocabulary lacks it."""
        if token not in self.control_ids:
            raise UserError(f"this tokenizer has no control token {token}: train one with `cutaway tokenizer train`")
        return self.control_ids[token]

    @property
    def eos_id(self) -> int:
        """`<|endoftext|>`, which begins and ends documents (a foreign vocabulary's own end token, where it differs)."""
        if END_OF_TEXT in self.control_ids:
            return self.control_ids[END_OF_TEXT]
        return self.control_id(str(self.named_token("eos_token")))

    @property
    def im_start_id(self) -> int:
        """`<|im_start|>`, which opens a turn."""
        return self.control_id(IM_START)

    @property
    def im_end_id(self) -> int:
        """`<|im_end|>`, which closes a turn and ends an answer."""
        return self.control_id(IM_END)

    @property
    def chat_template(self) -> str | None:
        """Jinja text of the chat format; None for a vocabulary that came without one."""
        template = self._config.get("chat_template")
        return template if isinstance(template, str) else None

    def named_token(self, name: str) -> str | None:
        """The text of `bos_token`, `eos_token` or `pad_token` in tokenizer_config.json, if it names one."""
        token = self._config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        return content if isinstance(content, str) else None

    @property
    def is_native(self) -> bool:
        """True where the chat format is Cutaway's own, which `chat.render` writes; else see `foreign.py`."""
        return self.chat_template == CHAT_TEMPLATE and all(token in self.control_ids for token in CONTROL_TOKENS)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides ids: vocabulary, merges, splitting, normalising, control tokens."""
        deciding = {key: self._table[key] for key in ("model", "pre_tokenizer", "normalizer", "added_tokens")}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    @property
    def definition(self) -> dict[str, Any]:
        """The parsed tokenizer.json, for exporters: model, merges, pre_tokenizer, added_tokens. Not to be changed."""
        return self._table

    @cached_property
    def _byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(self._table["decoder"])

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        for token, index in self._full.get_vocab(with_added_tokens=True).items():
            if index in self._control_text:
                continue
            if self._byte_level and all(character in BYTE_OF_CHARACTER for character in token):
                table[index] = bytes(BYTE_OF_CHARACTER[character] for character in token)
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                table[index] = bytes([int(token[3:5], 16)])
            else:
                table[index] = token.replace("\u2581", " ").encode()
        return table


def blank_tokenizer(pattern: str) -> tokenizers.Tokenizer:
    """An untrained byte-level BPE: no normaliser, splitting by `PATTERNS[pattern]`.

    The Llama-3 pattern goes with `ignore_merges`, since llama.cpp's pre-tokenizer of that name takes both together.
    """
    if pattern not in PATTERNS:
        raise UserError(f"tokenizer.pattern is {pattern!r}, must be one of {', '.join(PATTERNS)}")
    blank = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=pattern == "llama3"))
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    blank.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    blank.decoder = decoders.ByteLevel()
    return blank


def add_control_tokens(trained: tokenizers.Tokenizer) -> None:
    """Append the control tokens after the BPE vocabulary, in the order of `CONTROL_TOKENS`."""
    tokens = [AddedToken(token, special=token in SPECIAL_TOKENS, normalized=False) for token in CONTROL_TOKENS]
    trained.add_tokens(tokens)


def _default_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "additional_special_tokens": [IM_START, IM_END],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "chat_template": CHAT_TEMPLATE,
    }


def well_formed(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: must be a JSON object")
    return table


def _write(path: Path, text: str) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
