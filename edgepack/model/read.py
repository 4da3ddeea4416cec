"""The whole reading of a checkpoint: config, tensors and text files, once they go together."""

from __future__ import annotations

from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import CheckpointError
from edgepack.model.families import read_spec, require_tensors
from edgepack.model.spec import ModelSpec
from edgepack.shown import shown
from edgepack.text.start_token import read_start_token
from edgepack.text.stop_tokens import read_stop_token_ids


def read_model(checkpoint: Checkpoint) -> ModelSpec:
    """The model that `checkpoint` describes, once its config, tensors, start and stop tokens go together.

    Raises:
        CheckpointError: they do not, or a file is broken.
        UnsupportedError: the model is none that can be converted.
    """
    spec = with_start_token(read_spec(checkpoint), checkpoint)
    require_tensors(checkpoint, spec)
    beyond = sorted(token_id for token_id in read_stop_token_ids(checkpoint.path) if token_id >= spec.vocab_size)
    if beyond:
        raise CheckpointError(
            f"{checkpoint.path}: the stop token (eos_token_id in generation_config.json or config.json, or the "
            f"tokenizer's) has the id {shown(beyond[0])}: expected less than vocab_size={spec.vocab_size}"
        )
    return spec


def with_start_token(spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """`spec`, as config.json alone describes it, with the start token of the whole checkpoint.

    Raises:
        CheckpointError: the model has no such token.
        TextFileError: as `read_start_token`.
    """
    start = read_start_token(checkpoint.path, checkpoint.config)
    if start.token_id is not None and start.token_id >= spec.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: the id of the start token is {start.token_id} ({start.origin}): expected less than "
            f"vocab_size={spec.vocab_size}; do the files belong to one model?"
        )
    return spec.model_copy(update={"bos_token_id": start.token_id})
