"""What a GGUF file's number format costs: bits per byte in the real llama.cpp, format by format, on the same text.

    python benchmarks/quantization.py RUN --text pretrain_extra.jsonl.xz [--kilobytes 60] [--formats f32 q8_0]

All five formats in one call, unless --formats names some. Documents of Simplified and Traditional Chinese and of
English, as many kilobytes of each, cut to the model's context and to 512 tokens. Keys and values are fp16, llama.cpp's
default. Beside each figure stands the difference to our own network in fp32 with its 95 % interval, from resampling the
documents (both on the same ones).
"""

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from bits_per_byte import text_slices
from cutaway.data.formats import read_records
from cutaway.exporting.gguf_file import Quantization, write_gguf
from cutaway.model.weights import load_model
from cutaway.tokenization.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "oracle"))

from llama_cpp import Ask, ask  # noqa: E402

LONGEST = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--kilobytes", type=float, default=60)
    parser.add_argument("--formats", nargs="+", choices=get_args(Quantization), default=get_args(Quantization))
    parser.add_argument("--llama-cpp", default=str(ROOT / ".llama_cpp"))
    arguments = parser.parse_args()
    os.environ["CUTAWAY_LLAMA_CPP"] = arguments.llama_cpp
    tokenizer = Tokenizer.load(arguments.run)
    with tempfile.TemporaryDirectory() as scratch:
        slices = text_slices(arguments.text, arguments.kilobytes / 1000, Path(scratch))
        texts = [record.value["text"] for path in slices.values() for record in read_records([path], "pretrain")]
        longest = min(LONGEST, load_model(arguments.run).config.max_position_embeddings)
        prompts = [[tokenizer.eos_id, *ids][:longest] for ids in tokenizer.encode_batch(texts)]
        sizes = np.array([sum(len(tokenizer.token_bytes(index)) for index in ids[1:]) for ids in prompts])
        print(f"{len(prompts)} documents, {sum(map(len, prompts))} tokens, {sizes.sum()} bytes")
        ours = our_bits(arguments.run, prompts)
        print(f"cutaway, fp32: {ours.sum() / sizes.sum():.4f} bits per byte")
        print("\n| format | megabytes | bits per byte | against fp32, 95 % interval |\n| --- | ---: | ---: | ---: |")
        for name in arguments.formats:
            file = write_gguf(arguments.run, Path(scratch) / f"{name}.gguf", name)
            (answer,) = ask(Ask(str(file), prompts=prompts, nats=True, cache="F16"))
            bits = np.array([sum(nats) for nats in answer["nats"]]) / math.log(2)
            low, high = interval(bits - ours, sizes)
            total = bits.sum() / sizes.sum()
            change = (bits - ours).sum() / sizes.sum()
            megabytes = file.stat().st_size / 1e6
            print(f"| {name} | {megabytes:.2f} | {total:.4f} | {change:+.4f} [{low:+.4f}, {high:+.4f}] |", flush=True)


@torch.no_grad()
def our_bits(run: Path, prompts: list[list[int]]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Bits of each document by our own network."""
    model = load_model(run).eval()
    rows = [torch.tensor([ids]) for ids in prompts]
    return np.array([float(model(ids[:, :-1], targets=ids[:, 1:]).sum()) / math.log(2) for ids in rows])


def interval(
    differences: "np.ndarray[tuple[int], np.dtype[np.float64]]", sizes: "np.ndarray[tuple[int], np.dtype[np.int64]]"
) -> tuple[float, float]:
    """Middle 95 % of the difference in bits per byte over 2,000 draws of as many documents."""
    draw = np.random.default_rng(0).integers(len(sizes), size=(2000, len(sizes)))
    low, high = np.quantile(differences[draw].sum(1) / sizes[draw].sum(1), [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
