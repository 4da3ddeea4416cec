"""What LiteRT-LM is told about a model: start and stop tokens, context, family and chat template (`LlmMetadata`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from litert_lm_builder.runtime.proto import llm_metadata_pb2

from edgepack.spec import ModelSpec

START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>\n"


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What a checkpoint's text files say.

    Attributes:
        tokenizer: content of tokenizer.json; None where there is none.
        stop_token_ids: ids that end an answer.
        chat_template: the Jinja source; None where there is none.
    """

    tokenizer: bytes | None = None
    stop_token_ids: Sequence[int] = ()
    chat_template: str | None = None


def llm_metadata(spec: ModelSpec, context_tokens: int, text: TextFacts) -> bytes:
    """The serialized `LlmMetadata` of a text-only model."""
    metadata = llm_metadata_pb2.LlmMetadata()
    if spec.bos_token_id is not None:
        metadata.start_token.token_ids.ids.append(spec.bos_token_id)
    for token_id in sorted(text.stop_token_ids):
        metadata.stop_tokens.add().token_ids.ids.append(token_id)
    metadata.max_num_tokens = context_tokens
    getattr(metadata.llm_model_type, spec.family).SetInParent()
    if text.chat_template is not None:
        # A conversation renders the template; a plain session only knows these affixes.
        metadata.jinja_prompt_template = text.chat_template
        for role in ("user", "model"):
            affixes = getattr(metadata.prompt_templates, role)
            affixes.prefix, affixes.suffix = f"{START_OF_TURN}{role}\n", END_OF_TURN
    return bytes(metadata.SerializeToString(deterministic=True))
