"""How other people's values look in our messages: on one line, without control characters, and cut.

The one place that decides how much of a value is shown: a config, a manifest or a header can hold megabytes.
"""

from __future__ import annotations

MOST_VALUE_CHARACTERS = 80
MOST_TEXT_CHARACTERS = 200
MOST_LINE_CHARACTERS = 1000
# Values in a message are cut where they are put in. This is for what nobody thought of.
MOST_MESSAGE_CHARACTERS = 2000


def shown(value: object, most: int = MOST_VALUE_CHARACTERS) -> str:
    """`value` as Python writes it, at most `most` characters of it, with its whole length where it is cut."""
    try:
        text = repr(value)
    except (RecursionError, ValueError) as error:  # ValueError: a whole number of more than 4,300 digits
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
    return printable(text, most)


def printable(text: str, most: int = MOST_TEXT_CHARACTERS) -> str:
    """The first `most` characters of `text` without control characters: names in a file are a stranger's words."""
    kept = "".join(c if c.isprintable() else _escaped(c) for c in text[: most + 1])
    return kept if len(kept) <= most else f"{kept[:most]}... ({len(text):,} characters)"


def one_line(said: BaseException | str, most: int = MOST_LINE_CHARACTERS) -> str:
    """What an error of a library says, or such a text, without line breaks; the class of an error that says nothing."""
    words = printable(" ".join(str(said).split()), most)
    return words if words or isinstance(said, str) else type(said).__name__


def bounded(message: str, most: int = MOST_MESSAGE_CHARACTERS) -> str:
    """`message` in printable characters; of one that is too long the beginning and the end, where the way out is."""
    if len(message) <= most:
        return printable(message, most)
    end = most // 4
    start = most - end
    return f"{printable(message[:start], start)} ... ({len(message):,} characters) ... {printable(message[-end:], end)}"


def _escaped(character: str) -> str:
    """The number of a character; of one that stands for a byte of a name that is not UTF-8, that of the byte."""
    number = ord(character)
    return f"\\x{number - 0xDC00 if 0xDC80 <= number <= 0xDCFF else number:02x}"
