"""The reference through Transformers. The only module of the core that imports torch, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from edgepack.errors import EdgepackError
from edgepack.shown import printable
from edgepack.validation.quality.divergence import Logits
from edgepack.validation.quality.jobs import Model, Probe, ReferenceJob, require_ids, require_vocabulary

# Names of the text model's tensors in a multimodal checkpoint, as two generations of Transformers wrote them.
TEXT_MODEL_NAMES = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}


def transformers_model(job: ReferenceJob) -> Model:
    """The text model of a checkpoint in Transformers, on the CPU."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the library does not type it
    known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(job.path, **known)
    text_config = config.get_text_config()
    require_vocabulary(job, text_config.vocab_size)
    for probe in job.probes:
        require_ids(job, probe, _own_ids(Path(job.path), probe))
    # Towers for images and sound are left out: they hold memory, and one of them needs another library.
    mapping = None if text_config is config else TEXT_MODEL_NAMES
    auto: Any = transformers.AutoModelForCausalLM
    model, info = auto.from_pretrained(
        job.path,
        config=text_config,
        key_mapping=mapping,
        dtype=getattr(torch, job.dtype or "float32"),
        use_safetensors=True,
        output_loading_info=True,
        **known,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise EdgepackError(
            f"{job.path}: Transformers found no weights for {len(lost)} tensors, {printable(lost[0])} first, and would "
            "make them up: this checkpoint is no reference"
        )
    model.eval()

    def logits(ids: list[int], last: int) -> Logits:
        with torch.inference_mode():
            output = model(torch.tensor([ids]), use_cache=False, logits_to_keep=last)
            values: Logits = output.logits[0].float().numpy()
        return values

    return logits


def _own_ids(folder: Path, probe: Probe) -> list[int]:
    """What tokenizer.json of the checkpoint makes of the text; a start token is the package's business."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = list(tokenizer.encode(probe.text, add_special_tokens=False).ids)
    start = probe.ids[:1] if len(probe.ids) == len(ids) + 1 else ()
    return [*start, *ids]
