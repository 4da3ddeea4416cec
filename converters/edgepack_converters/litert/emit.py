"""Plan and checkpoint to one `.litertlm` file, every weight streamed to its place in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgepack.calibration.planned import PlannedWeights
from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import CheckpointError
from edgepack.planning.plan import Plan
from edgepack.text.codec import read_chat_template, read_tokenizer
from edgepack.text.start_token import StartToken, read_start_token
from edgepack.text.stop_tokens import read_stop_token_ids
from edgepack.text.templates import ChatTemplates
from edgepack_converters.contract import Emitted
from edgepack_converters.litert.bundle import BUNDLE, FOLDER, build
from edgepack_converters.litert.metadata import TextFacts
from edgepack_converters.litert.template.check import check_template
from edgepack_converters.litert.tokenizer.process import choose_apart
from edgepack_converters.phases import (
    TEMPLATE,
    TOKENIZER,
    WEIGHTS,
    WEIGHTS_A_TEMPLATE,
    WEIGHTS_A_TOKENIZER_BYTE,
    Phases,
    tokenizer_bytes,
    weights_of,
)
from edgepack_converters.weight_writer import write_weights

LIBRARIES = ("ai_edge_litert", "litert_lm_builder", "sentencepiece")


def costs(plan: Plan, checkpoint: Checkpoint) -> dict[str, float]:
    """The phases of `emit` and what each costs, in weights."""
    phases: dict[str, float] = {}
    if tokenizer := tokenizer_bytes(checkpoint):
        phases[TOKENIZER] = WEIGHTS_A_TOKENIZER_BYTE * tokenizer
        if read_chat_template(checkpoint.path) is not None:
            phases[TEMPLATE] = WEIGHTS_A_TEMPLATE
    return {**phases, WEIGHTS: weights_of(plan)}


def emit(
    plan: Plan, checkpoint: Checkpoint, weights: PlannedWeights, out: Path, *, threads: int, phases: Phases
) -> Emitted:
    """Write ``out/litert/model.litertlm``: see `edgepack_converters.contract`.

    Raises:
        CheckpointError: a weight is missing, unreadable or not finite, tokenizer.json is no tokenizer, or there is no
            stop token.
        UnsupportedError: LiteRT-LM renders the chat template otherwise than Transformers.
        PackageError: the file cannot be written.
    """
    start = read_start_token(checkpoint.path, checkpoint.config)
    text, choice = text_facts(plan, checkpoint.path, start), None
    if text.tokenizer is not None:
        phases.begin(TOKENIZER)  # first, while little else is in memory
        choice = choose_apart(text.tokenizer, text.tokenizer_model)
    if text.tokenizer is not None and text.chat_template is not None:
        phases.begin(TEMPLATE)
        text = checked_by_engine(plan, checkpoint.path, start, text)
    phases.begin(WEIGHTS)
    bundle = build(plan, text, choice)
    folder = out / FOLDER
    folder.mkdir()
    write_weights(
        folder / BUNDLE,
        bundle.container.size_bytes,
        bundle.container.placements,
        weights,
        threads=threads,
        progress=phases.advance,
    )
    spans = bundle.spans()
    notes = []
    if bundle.tokenizer_reason is not None:
        notes.append(
            "the bundle has tokenizer.json, which costs LiteRT-LM more memory than a SentencePiece model: "
            f"{bundle.tokenizer_reason}"
        )
    return Emitted(dict.fromkeys(spans, f"{FOLDER}/{BUNDLE}"), LIBRARIES, spans, tuple(notes))


def text_facts(plan: Plan, checkpoint: Path, start: StartToken) -> TextFacts:
    """What a bundle says about texts.

    Raises:
        EdgepackError: there is no stop token.
    """
    text = TextFacts(
        tokenizer=read_tokenizer(checkpoint),
        stop_token_ids=sorted(read_stop_token_ids(checkpoint) or plan.spec.eos_token_ids),
        chat_template=read_chat_template(checkpoint),
        tokenizer_model=read_tokenizer(checkpoint, "tokenizer.model"),
        start_token_id=start.token_id if start.before_texts else None,
    )
    if text.tokenizer is not None and not text.stop_token_ids:
        raise CheckpointError(
            f"{checkpoint}: no stop token, which LiteRT-LM needs: name eos_token_id in generation_config.json"
        )
    return text


def checked_by_engine(plan: Plan, checkpoint: Path, start: StartToken, text: TextFacts) -> TextFacts:
    """`text`, once LiteRT-LM renders its chat template as Transformers does.

    Raises:
        UnsupportedError: it does not.
    """
    template = text.chat_template or ""
    chat = ChatTemplates(checkpoint)
    if not start.before_texts and start.text and chat.begins_with(start.text):
        # The engine leaves `bos_token` empty, so that it has to put the token before the text by itself.
        text = replace(text, start_token_id=start.token_id)
    check_template(
        plan.spec,
        template,
        chat.render,
        bos_token=start.text if text.start_token_id is not None else "",
        always=start.before_texts or text.start_token_id is None,
        names=chat.special_tokens,
        where=checkpoint,
    )
    return text
