"""The built-in texts of a calibration: prose, code, conversations and documents in many languages."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Literal, Self

from pydantic import TypeAdapter, model_validator

from edgepack.text.overlap import said_in
from edgepack.values import Frozen

BUILTIN = "builtin"
_FOLDER = "texts"


class CalibrationText(Frozen):
    """One text: as it is, or a conversation that the checkpoint's own chat template renders.

    Attributes:
        name: unique among all.
        language: as in BCP 47, such as ``en`` or ``zh-Hans``.
        kind: what it is an example of.
        text: the text; None where there are messages.
        messages: `role` and `content` of every turn.
    """

    name: str
    language: str
    kind: Literal["prose", "code", "chat", "document"]
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError(f"{self.name}: expected either text or messages")
        return self

    @property
    def said(self) -> str:
        """The text, or what is said in the conversation, without roles and tools."""
        return self.text if self.text is not None else said_in(self.messages or ())


def builtin_texts() -> tuple[tuple[CalibrationText, ...], str]:
    """All texts of the package, in the order of their files' names, and the sha256 of those files."""
    folder = resources.files("edgepack.calibration") / _FOLDER
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    digest, reader = hashlib.sha256(), TypeAdapter(tuple[CalibrationText, ...])
    texts: list[CalibrationText] = []
    for file in files:
        content = file.read_bytes()
        digest.update(content)
        texts += reader.validate_json(content)
    return tuple(texts), digest.hexdigest()
