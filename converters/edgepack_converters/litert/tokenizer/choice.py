"""Which tokenizer a bundle carries: SentencePiece where it gives the same ids, as tokenizer.json costs the engine more.

LiteRT-LM reads both. With Gemma's 262,144 tokens a tokenizer.json costs it 400 MB of memory and 1.2 s, a SentencePiece
model 40 MB and 0.1 s. Many checkpoints have only the former, so it is converted; and whatever model is written
has shown before that it gives the ids of tokenizer.json, which is what the checkpoint was last tuned with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import sentencepiece

from edgepack.errors import CheckpointError
from edgepack.shown import shown
from edgepack_converters.litert.tokenizer.sentencepiece import SILENT, to_sentencepiece, unlike_gemma
from edgepack_converters.litert.tokenizer.tokenizer_json import TokenizerJson

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXTS = (
    "",
    " ",
    "\n",
    "\t \r\n\x00\u00a0\u2003\ufeff",
    "The quick brown fox jumps over the lazy dog, doesn't it? I'd say: NO!",
    "Grüße aus Zürich, où l'été s'achève \u2013 ¿qué tal, señor? Čeština, žluťoučký kůň; İstanbul.",
    "Съешь же ещё этих мягких булок. Ελληνικά και ΚΕΦΑΛΑΙΑ. Հայերեն ქართული",
    "敏捷的棕色狐狸跳过了懒狗。東京特許許可局、カタカナとひらがな。 빠른 갈색 여우",
    "الثعلب البني السريع — שועל חום ומהיר; सभी मनुष्यों को गौरव, ภาษาไทย, தமிழ் தமிழ்",
    "rare: 𠮷野家 𪚥 㐀 龘 ﷽ ﬁ ½ Ⅷ ① Å é e\u0301 \u200b\u200d \ue000 \U000e0041 \U0010fffd",
    "emoji: 👩\u200d🚀 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇨🇭 👍🏽 ❤️ 1️⃣ 🫠",
    "0 1 23 456 7890 3.14159 1,000,000 0x1F 1e-9 ٣٤٥ \uff14\uff12 2024-02-29T23:59",
    "def f(x):\n    if x:\n        return {'a': [1, 2], \"b\": None}\n\n\n\tfor (;;) { i++; }\t\t// end\r\n",
    "<table><tr><td>x</td></tr></table> <h1>Hi</h1> <a href='#'>b</a> <unused12> <unknown_tag>",
    "</s> <s> [INST] <|im_end|>",
    "<start_of_turn>user\nHi <end_of_turn>\n<start_of_turn>model\n",
    "<start_of_turn> <start_of_turn><<start_of_turn>>",
    "snake_case camelCase PascalCase SCREAMING_CASE http://a.b/c?d=e&f=g#h user@example.org C:\\dir\\file.txt",
    "a  b   c    d     e" + " " * 17 + "f" + " " * 33 + "g" + " " * 100,
    "   three before and after   ",
    "▁ is what a space becomes ▁▁▁",
    "aaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!!!!!======================---------- hahahahahahaha",
    *(mark * count for mark in "\n\t " for count in (2, 3, 7, 31, 32, 65)),
    "x\n\n\n y\n \n\t\n  \n\n",
)
_TOKENS_A_TEXT, _TEXTS_AT_ONCE = 32, 64
_SHOWN_CHARS = 40


@dataclass(frozen=True, slots=True)
class Choice:
    """A tokenizer for the bundle.

    Attributes:
        model: a SentencePiece model; None where it is tokenizer.json as it is.
        reason: why it is tokenizer.json; None where it is not.
    """

    model: bytes | None
    reason: str | None = None


def choose(tokenizer: TokenizerJson, model: bytes | None = None) -> Choice:
    """Choose between tokenizer.model as it is, tokenizer.json as a SentencePiece model, and tokenizer.json as it is.

    Args:
        tokenizer: the tokenizer.json.
        model: content of tokenizer.model; None where there is none.

    Raises:
        CheckpointError: tokenizer.json is no tokenizer.
    """
    converted, reason = convert(tokenizer)
    expected: Tokenizer | None = None
    for name, candidate in (("tokenizer.model", model), ("a SentencePiece model of it", converted)):
        if candidate is not None:
            expected = expected or _open(tokenizer.content)
            reason = difference(expected, candidate, name)
            if reason is None:
                return Choice(candidate)
    return Choice(None, reason)


def convert(tokenizer: TokenizerJson) -> tuple[bytes | None, str | None]:
    """The SentencePiece model of a tokenizer.json, or the reason why there is none."""
    try:
        data = tokenizer.parsed()
        reason = unlike_gemma(data)
        return (None, reason) if reason else (to_sentencepiece(data, tokenizer.merged(data)), None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return None, f"it is put together in a way that is not known ({type(error).__name__}: {error})"


def difference(expected: Tokenizer, candidate: bytes, name: str = "the SentencePiece model") -> str | None:
    """Where the ids of a SentencePiece model are not those of tokenizer.json; None where there is no such text."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=candidate)
    except RuntimeError as error:
        return f"{name} cannot be read: {' '.join(str(error).split())}"
    for texts in _texts(expected):
        wanted = [encoding.ids for encoding in expected.encode_batch_fast(texts, add_special_tokens=False)]
        for text, ids, got in zip(texts, wanted, processor.encode(texts, num_threads=1), strict=True):
            if ids != got:
                at = next(
                    (i for i, (a, b) in enumerate(zip(ids, got, strict=False)) if a != b), min(len(ids), len(got))
                )
                said = f"for token {at} and on of {shown(text, _SHOWN_CHARS)}"
                return f"{name} has {got[at:][:3]} {said}, tokenizer.json {ids[at:][:3]}"
    return None


def _texts(expected: Tokenizer) -> Iterator[list[str]]:
    """The texts that have to agree: those above, then every token that can be written, some to a text."""
    yield list(TEXTS)
    written = (name for name in _names(expected) if name not in SILENT)
    joined = iter(lambda: "".join(islice(written, _TOKENS_A_TEXT)), "")
    while texts := list(islice(joined, _TEXTS_AT_ONCE)):
        yield texts


def _names(expected: Tokenizer) -> Iterator[str]:
    """Every token once, in the order of ids; one by one, as a dict of all costs 70 MB."""
    size = expected.get_vocab_size()
    found = 0
    for token_id in range(2 * size):
        name = expected.id_to_token(token_id)
        if name is not None:
            found += 1
            yield name
        if found == size:
            return
    # Ids far apart, or two tokens with one id.
    yield from expected.get_vocab()


def _open(tokenizer: bytes) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_buffer(tokenizer)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(
            f"tokenizer.json: expected a tokenizer, got one that cannot be read: {' '.join(str(error).split())}: "
            "fetch it again"
        ) from error
    found.no_padding()
    found.no_truncation()
    return found
