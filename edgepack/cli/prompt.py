"""The text that `edgepack generate` continues: an option, or standard input."""

from __future__ import annotations

import sys

from edgepack.errors import EdgepackError
from edgepack.units import format_bytes

STANDARD_INPUT = "-"
# Far more than any context holds; whatever is larger is another file than was meant.
MOST_PROMPT_BYTES = 16_000_000
_WAYS = "--prompt TEXT, --prompt - for standard input, or --token-ids 2,818,..."


def read_prompt(prompt: str | None) -> str:
    """The text after ``--prompt``, or that of standard input where it is ``-`` or not given and something is piped in.

    One line break at the end of standard input is not part of the text: `echo` and editors add it.

    Raises:
        EdgepackError: there is no text, or standard input cannot be read as UTF-8.
    """
    if prompt is not None and prompt != STANDARD_INPUT:
        if not prompt:
            raise EdgepackError(f"--prompt is empty: there is nothing to continue; pass {_WAYS}")
        return prompt
    if prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        raise EdgepackError(f"nothing to continue: pass {_WAYS}")
    text = _standard_input()
    if not text:
        raise EdgepackError(f"nothing to continue: standard input is empty; pass {_WAYS}")
    return text


def _standard_input() -> str:
    try:
        data = sys.stdin.buffer.read(MOST_PROMPT_BYTES + 1) if sys.stdin is not None else b""
    except OSError as error:
        raise EdgepackError(f"standard input cannot be read: {error.strerror}; pass {_WAYS}") from error
    if len(data) > MOST_PROMPT_BYTES:
        raise EdgepackError(
            f"standard input is longer than {format_bytes(MOST_PROMPT_BYTES)}: expected a prompt, which fits a context"
        )
    try:
        text = data.decode("utf-8-sig")  # editors on Windows begin a file with the mark
    except UnicodeDecodeError as error:
        raise EdgepackError(
            f"standard input is not UTF-8 (byte {error.start} of {len(data):,}): convert it first, for example with "
            "iconv -f UTF-16 -t UTF-8"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
