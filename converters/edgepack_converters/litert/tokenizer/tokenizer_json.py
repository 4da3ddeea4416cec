"""tokenizer.json with its merges written in less room, and read one by one.

Gemma's has 514,906 merges. As lists of two texts they cost Python 170 MB, and `tokenizers`, which keeps copies while it
opens the file, 270 MB. The library reads an older spelling too, one text with a space between both parts, and needs 70
MB for the same merges. So they are respelled as bytes, and nothing but the vocabulary is ever parsed as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_BEGIN = re.compile(rb'"merges"\s*:\s*\[')
# No possessive quantifiers here: Python 3.11.2, that of Debian 12 and of Raspberry Pi OS, takes some of them wrongly.
_TEXT = rb'"((?:[^"\\ ]|\\[^u]|\\u(?!0020))*)"'
# One merge with what follows it: a list of two texts without a space, or one text with one space in it.
_MERGE = re.compile(
    rb"\s*(?:\[\s*" + _TEXT + rb"\s*,\s*" + _TEXT + rb"\s*\]|" + _TEXT[:-1] + b" " + _TEXT[1:] + rb")\s*([,\]])"
)
_RESPELLED = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
# In the older spelling `tokenizers` takes a line that begins like this for a comment.
_COMMENT = b"#version"


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """A tokenizer.json, its merges respelled where they can be.

    Attributes:
        content: the file.
        span: where the list of respelled merges begins and ends in it, brackets included; None where they are as they
            were.
    """

    content: bytes
    span: tuple[int, int] | None

    def parsed(self) -> Any:
        """All of it, without merges where these are respelled.

        Raises:
            ValueError: it is no JSON.
        """
        if self.span is None:
            return json.loads(self.content)
        start, end = self.span
        return json.loads(self.content[:start] + b"[]" + self.content[end:])

    def merged(self, data: Any) -> Iterator[str]:
        """What every merge makes, in their order; `data` is what was parsed."""
        if self.span is None:
            for merge in data["model"]["merges"]:
                yield "".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1)
            return
        for match in _RESPELLED.finditer(self.content, *self.span):
            name = json.loads(match[0]) if b"\\" in match[0] else match[1].decode()
            yield name.replace(" ", "", 1)


def respell(tokenizer: bytes) -> TokenizerJson:
    """Respell the merges of a tokenizer.json, unless there are none, or a part of one cannot be told from the space."""
    begin = _BEGIN.search(tokenizer)
    if begin is None or _BEGIN.search(tokenizer, begin.end()):
        return TokenizerJson(tokenizer, None)
    written, position, separator, more = bytearray(tokenizer[: begin.end()]), begin.end(), b"", True
    while more:
        merge = _MERGE.match(tokenizer, position)
        if merge is None:
            return TokenizerJson(tokenizer, None)
        first, second, third, fourth, after = merge.groups()
        left, right = (first, second) if third is None else (third, fourth)
        if left.startswith(_COMMENT):
            return TokenizerJson(tokenizer, None)
        written += b'%b"%b %b"' % (separator, left, right)
        position, separator, more = merge.end(), b",", after == b","
    written += b"]"
    end = len(written)
    written += memoryview(tokenizer)[position:]
    return TokenizerJson(bytes(written), (begin.end() - 1, end))
