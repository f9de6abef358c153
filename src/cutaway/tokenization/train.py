"""Training the byte-level BPE vocabulary. `bpe.py` shows the algorithm; the library does the same, faster."""

import heapq
import logging
import random
import re
from collections.abc import Iterable, Iterator

from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer

from cutaway.errors import UserError
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.tokenizer import CONTROL_TOKENS, Tokenizer, add_control_tokens, blank_tokenizer

# The trainer needs 80 bytes of memory for a byte of Chinese, so 2.7 GB here; more text hardly changes the vocabulary.
SAMPLE_BYTES = 32_000_000
MIN_FREQUENCY = 2
_PIECE_CHARACTERS = 100_000
# The trainer's time grows with the square of a word, and text without spaces or punctuation is one word.
_LONG_RUN = re.compile(r"[^\W\d_]{256}|[^\w\s]{256}|\s{256}")
_SMALLEST = 256 + len(CONTROL_TOKENS)
_LARGEST = 1_000_000

logger = logging.getLogger("cutaway")


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings, sample_bytes: int = SAMPLE_BYTES) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2) of `settings.vocab_size` tokens.

    The vocabulary is the 256 bytes, then the merges in the order learnt, then the control tokens. `texts` is read once
    and may be of any length: beyond `sample_bytes` of UTF-8, documents are sampled by `settings.seed`. Text that
    repeats too little gives fewer tokens than asked, which is logged. Raises UserError for an impossible vocab_size and
    for no text at all.
    """
    if not _SMALLEST <= settings.vocab_size <= _LARGEST:
        raise UserError(
            f"tokenizer.vocab_size is {settings.vocab_size}, must be {_SMALLEST} (256 bytes and "
            f"{len(CONTROL_TOKENS)} control tokens) to {_LARGEST}"
        )
    trained = blank_tokenizer(settings.pattern)
    sample, sampled, seen = sample_documents(texts, sample_bytes, settings.seed)
    if not sampled:
        raise UserError("tokenizer training found no text: give it files with documents")
    if sampled < seen:
        logger.info("tokenizer: trained on a sample of %.0f of %.0f MB of text", sampled / 1e6, seen / 1e6)
    trainer = BpeTrainer(
        vocab_size=settings.vocab_size - len(CONTROL_TOKENS),
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    parts = (part for piece in sample for part in _cut_runs(piece.decode("utf-8")))
    trained.train_from_iterator(parts, trainer)
    add_control_tokens(trained)
    tokenizer = Tokenizer(trained.to_str())
    if tokenizer.vocab_size < settings.vocab_size:
        logger.warning(
            "tokenizer: the text repeats too little for %d tokens, so the vocabulary has %d",
            settings.vocab_size,
            tokenizer.vocab_size,
        )
    return tokenizer


def sample_documents(texts: Iterable[str], budget: int, seed: int) -> tuple[list[bytes], int, int]:
    """A uniform sample of documents of at most `budget` UTF-8 bytes, in one pass and in that much memory.

    Every document draws a number; those with the smallest are kept. Very long documents count as several. Returns the
    documents in their order, their bytes, and the bytes seen. All of them are kept where they fit.
    """
    draw = random.Random(seed)
    heap: list[tuple[float, int, bytes]] = []
    kept = seen = 0
    for number, piece in enumerate(_pieces(texts)):
        heapq.heappush(heap, (-draw.random(), number, piece))
        kept, seen = kept + len(piece), seen + len(piece)
        while kept > budget and len(heap) > 1:
            kept -= len(heapq.heappop(heap)[2])
    return [piece for _, piece in sorted((number, piece) for _, number, piece in heap)], kept, seen


def _pieces(texts: Iterable[str]) -> Iterator[bytes]:
    for text in texts:
        for start in range(0, len(text), _PIECE_CHARACTERS):
            yield text[start : start + _PIECE_CHARACTERS].encode("utf-8", "replace")


def _cut_runs(text: str) -> Iterator[str]:
    start = 0
    for run in _LONG_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]
