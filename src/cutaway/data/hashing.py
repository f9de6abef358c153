"""Hashes that decide orders and choices: the same on every machine, in every process, for ever."""

import hashlib

import numpy as np
from jaxtyping import Integer


def content_hash(text: str) -> int:
    """64-bit hash of a document as it stands in the file, so the same for every tokenizer and script mix."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode("utf-8"), digest_size=8).digest(), "little")


def mix64(values: Integer[np.ndarray, "n"], seed: int) -> Integer[np.ndarray, "n"]:
    """A keyed bijection of 64-bit integers (splitmix64's finaliser), for orders that no library version can change."""
    with np.errstate(over="ignore"):
        mixed = values.astype(np.uint64)
        for step in (np.uint64(seed % 2**64), np.uint64(0x9E3779B97F4A7C15)):
            mixed = mixed + step + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def derive_key(*numbers: int) -> int:
    """One 64-bit key from several numbers, such as seed, epoch and window."""
    key = 0
    for number in numbers:
        key = int(mix64(np.array([key], np.uint64), number)[0])
    return key


def keyed_order(count: int, key: int) -> Integer[np.ndarray, "count"]:
    """A permutation drawn with `key`: the order of keyed hashes, which are all different."""
    return np.argsort(mix64(np.arange(count), key))
