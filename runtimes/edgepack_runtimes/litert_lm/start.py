"""The start token in LiteRT-LM: the engine puts the one of its bundle before every text, and before a conversation."""

from __future__ import annotations

import litert_lm

from edgepack.errors import EdgepackError, PackageError
from edgepack.text.start_token import StartToken
from edgepack_runtimes.native.log import captured_log


def without_start(engine: litert_lm.Engine, start: StartToken, text: str) -> str:
    """`text` without the start token that the engine adds to it.

    Raises:
        EdgepackError: the engine would read the text as other tokens than the package's tokenizer does.
    """
    bos = engine.bos_token_id
    if bos is None:
        if start.text and text.startswith(start.text) and list(engine.tokenize(start.text)) != [start.token_id]:
            raise EdgepackError(
                f"the text begins with {start.text}, which LiteRT-LM reads letter by letter: no text of this package "
                "has a start token; leave it out, or use --runtime litert"
            )
        return text
    written = str(engine.detokenize([bos]))
    if not start.before_texts and not text.startswith(written):
        raise EdgepackError(
            f"LiteRT-LM puts {written} before every text of this package, as its chat template begins with it, and the "
            f"tokenizer puts none before this text: begin the text with {written}, ask in a chat, or use "
            "--runtime litert"
        )
    return text.removeprefix(written)


def conversation_tokens(engine: litert_lm.Engine, message: str) -> int:
    """How many tokens the engine's own conversation, as applications use it, reads of a user's first `message`.

    Raises:
        PackageError: the engine refuses it.
    """
    with captured_log() as log:
        try:
            conversation = engine.create_conversation(max_output_tokens=1)
            try:
                conversation.send_message(message)
                return int(conversation.get_benchmark_info().last_prefill_token_count)
            finally:
                conversation.close()
        except RuntimeError as error:
            raise PackageError(f"LiteRT-LM's own conversation failed: {log.reason_of(error)}") from error
