"""How much of a text is in another one, of which only a sketch is known: the hashes of some of its n-grams.

An n-gram is 8 words, or 24 characters of scripts that set no spaces between words. docs/calibration.md has the bytes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgepack.values import Frozen

WORDS, CHARACTERS = 8, 24
MOST_HASHES = 400
_HASH_BYTES = 8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
# Thai, Lao, Tibetan, Burmese, Khmer, kana, Han, and the punctuation and wide letters that are set among them.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff]+"
)
Hashes = npt.NDArray[np.uint64]


class Sketch(Frozen):
    """The hashes of those n-grams of a text that `every` divides.

    Attributes:
        every: a power of 2; 1 where the text has so few that all are here.
        hashes: 16 hexadecimal digits each, in ascending order.
    """

    every: int = Field(ge=1, lt=2**63)
    hashes: tuple[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], ...] = Field(max_length=MOST_HASHES)

    def share_of(self, text: str) -> float:
        """The share of the n-grams of `text` that are in the sketched one, as far as the sketch tells: 0 to 1."""
        found = _chosen(np.unique(_ngrams(text)), self.every)
        known = np.array([int(digits, 16) for digits in self.hashes], np.uint64)
        return float(np.isin(found, known).mean()) if len(found) else 0.0


def sketch_of(texts: Iterable[str]) -> Sketch:
    """The sketch of all `texts`; no n-gram reaches from one into the next."""
    found = np.unique(np.concatenate([np.empty(0, np.uint64), *map(_ngrams, texts)]))
    every = 1
    while len(_chosen(found, every)) > MOST_HASHES:
        every *= 2
    return Sketch(every=every, hashes=tuple(f"{int(value):016x}" for value in _chosen(found, every)))


def said_in(messages: Iterable[Mapping[str, Any]]) -> str:
    """The contents of a conversation, a paragraph each, without roles and tools."""
    return "\n\n".join(turn["content"] for turn in messages if isinstance(turn.get("content"), str))


def _chosen(hashes: Hashes, every: int) -> Hashes:
    chosen: Hashes = hashes[hashes % np.uint64(every) == 0]
    return chosen


def _ngrams(text: str) -> Hashes:
    """The hash of every n-gram; of a text too short for one that of the whole text."""
    text = unicodedata.normalize("NFC", text).casefold()
    characters = "".join(_UNSPACED.findall(text))
    words = _UNSPACED.sub(" ", text).split()
    if len(words) < WORDS and len(characters) < CHARACTERS:
        whole = [*words, *characters]
        return _windows(whole, len(whole)) if whole else np.empty(0, np.uint64)
    return np.concatenate([_windows(words, WORDS), _windows(characters, CHARACTERS)])


def _windows(units: Sequence[str], size: int) -> Hashes:
    """The hashes of all runs of `size` units, modulo 2**64: h = 0, then h * _FACTOR + the hash of each unit."""
    count = len(units) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    hashes = {unit: _unit_hash(unit) for unit in set(units)}
    of_units = np.array([hashes[unit] for unit in units], np.uint64)
    found = np.zeros(count, np.uint64)
    for place in range(size):
        found = found * _FACTOR + of_units[place : place + count]
    return found


def _unit_hash(unit: str) -> int:
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest, "little")
