"""What LiteRT-LM is told about a model: start and stop tokens, context, family and chat template (`LlmMetadata`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from litert_lm_builder.runtime.proto import llm_metadata_pb2

from edgepack.model.families import family_of
from edgepack.model.spec import ModelSpec

# With the type of a Gemma, LiteRT-LM turns tools, calls and results into Python source before the template sees them.
PLAIN_TYPE = "generic_model"


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What a checkpoint's text files say.

    Attributes:
        tokenizer: content of tokenizer.json; None where there is none.
        stop_token_ids: ids that end an answer.
        chat_template: the Jinja source; None where there is none.
        start_token_id: id of the token that the engine puts before every text; None where it puts none.
        tokenizer_model: content of tokenizer.model, a SentencePiece model; None where there is none.
    """

    tokenizer: bytes | None = None
    stop_token_ids: Sequence[int] = ()
    chat_template: str | None = None
    tokenizer_model: bytes | None = None
    start_token_id: int | None = None


def llm_metadata(spec: ModelSpec, context_tokens: int, text: TextFacts) -> bytes:
    """The serialized `LlmMetadata` of a text-only model."""
    metadata, family = llm_metadata_pb2.LlmMetadata(), family_of(spec)
    if text.start_token_id is not None:
        metadata.start_token.token_ids.ids.append(text.start_token_id)
    for token_id in sorted(text.stop_token_ids):
        metadata.stop_tokens.add().token_ids.ids.append(token_id)
    metadata.max_num_tokens = context_tokens
    plain = text.chat_template is not None and uses_tools(text.chat_template)
    getattr(metadata.llm_model_type, PLAIN_TYPE if plain else family.litert_lm_type).SetInParent()
    if text.chat_template is not None:
        # A conversation renders the template; a plain session only knows these affixes.
        metadata.jinja_prompt_template = _as_python_reads(text.chat_template)
        start, end = family.turn
        for role in ("user", "model"):
            affixes = getattr(metadata.prompt_templates, role)
            affixes.prefix, affixes.suffix = f"{start}{role}\n", end
    return bytes(metadata.SerializeToString(deterministic=True))


def uses_tools(template: str) -> bool:
    """Whether a chat template writes tools, calls or results."""
    return re.search(r"\b(?:tools?|tool_calls?|tool_responses?)\b", template) is not None


def _as_python_reads(template: str) -> str:
    """Without the line break at its end, and with plain ones elsewhere: LiteRT-LM would write what Python drops."""
    lines = re.split(r"\r\n|\r|\n", template)
    return "\n".join(lines if lines[-1] else lines[:-1])
