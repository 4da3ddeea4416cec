"""Train the demo checkpoint: a small Gemma 3n with every feature of the big one, on the text of `demo_text.py`.

    python tools/train_demo.py --out edgepack/assets/demo

Needs torch, transformers and tokenizers (the `dev` extra). Measured on 2 cores of an AMD EPYC, torch 2.13: 25 minutes
beside other work; the first 500 of the 900 steps take 4 minutes when the machine is quiet. With glibc, the variables
MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=4000000000 (set for these runs) spare the page faults of fresh
memory. Text, start and order of summation are seeded and fixed; other versions or CPUs round differently.

`demo_start.py` explains the starting values.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from demo_start import initialise
from demo_text import Turn, documents
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, Gemma3nForCausalLM, Gemma3nTextConfig

SEED = 20260
VALIDATION_SEED = SEED + 1
PLE_VOCAB = 2048
VOCAB = PLE_VOCAB + 128  # the rows past the PLE table stand where Gemma 3n keeps its image and audio soft tokens
BYTES = [f"<0x{value:02X}>" for value in range(256)]
PROMPTS = (
    "Once upon a time, there was",
    "What is the capital of France?",
    "Ben put the red ball under the bed. Lily put the blue kite on the roof. Where is the red ball?",
    "What is 3 + 5?",
    "Count from 3 to 9.",
    "Tell me a story about a fox.",
)
SPECIAL = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 105: "<start_of_turn>", 106: "<end_of_turn>"}  # Gemma's ids
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


@dataclass(frozen=True)
class Stage:
    """A part of the training: how many steps, of how many rows of how many tokens, from which text."""

    steps: int
    rows: int
    row_tokens: int
    echo_share: float
    long_every: int = 0  # each so-many steps take rows of four times the length


STAGES = (Stage(400, 8, 128, 0.3), Stage(500, 8, 256, 0.03, long_every=8))
PEAK_RATE = 3e-3
WARMUP_STEPS = 40


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < WARMUP_STEPS:
        return PEAK_RATE * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return PEAK_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def batches(tokenizer: Tokenizer, stages: tuple[Stage, ...]) -> Iterator[torch.Tensor]:
    """Yield the ids [B, S] of every step."""
    for index, stage in enumerate(stages):
        seed = SEED + 10 * (index + 1)
        short = packed_rows(tokenizer, seed, stage.row_tokens, stage.echo_share)
        long = packed_rows(tokenizer, seed + 1, 4 * stage.row_tokens, stage.echo_share)
        for step in range(stage.steps):
            is_long = stage.long_every > 0 and step % stage.long_every == stage.long_every - 1
            yield torch.tensor(list(islice(long, stage.rows // 4) if is_long else islice(short, stage.rows)))


def demo_config() -> Gemma3nTextConfig:
    """The shape: 8 layers, 5 own keys and values (3 sliding, 2 full), 3 share them (2 sliding, 1 full)."""
    sliding, full = "sliding_attention", "full_attention"
    config = Gemma3nTextConfig(
        vocab_size=VOCAB,
        vocab_size_per_layer_input=PLE_VOCAB,
        hidden_size=128,
        hidden_size_per_layer_input=64,
        num_hidden_layers=8,
        layer_types=[sliding, sliding, full, sliding, full, sliding, sliding, full],
        num_kv_shared_layers=3,
        intermediate_size=[512, 384, 384, 256, 256, 256, 256, 384],
        activation_sparsity_pattern=[0.95] * 3 + [0.0] * 5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        sliding_window=64,
        max_position_embeddings=1024,
        laurel_rank=32,
        initializer_range=128**-0.5,
        final_logit_softcapping=30.0,
        rope_parameters={
            sliding: {"rope_type": "default", "rope_theta": 10_000.0},
            full: {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        eos_token_id=[1, 106],
    )
    config._attn_implementation = "eager"
    return config


def train_tokenizer() -> Tokenizer:
    """A byte-fallback BPE in the manner of Gemma: spaces become `\u2581`, no space is put in front, ids as in Gemma."""
    pieces = Regex(r"\u2581?\p{L}+|\u2581?\p{N}|[^\p{L}\p{N}\u2581]".replace(r"\u2581", "\u2581"))
    reserved = list(BYTES)
    for index, token in SPECIAL.items():
        reserved.insert(index, token)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=PLE_VOCAB, special_tokens=reserved, initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )  # fmt: skip
    turns = (doc.turns or (Turn("", doc.text),) for doc in islice(documents(SEED), 20_000))
    tokenizer.train_from_iterator((f"{turn.role}\n{turn.text}" for group in turns for turn in group), trainer)
    # The trainer has marked all reserved tokens as special, but a byte is an ordinary one: build it again.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = []
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<unused{index}>": index for index in range(len(vocabulary), PLE_VOCAB)}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    return tokenizer


def packed_rows(tokenizer: Tokenizer, seed: int, length: int, echo_share: float = 0.03) -> Iterator[list[int]]:
    """Yield rows of `length` ids: whole documents, each with its `<bos>`, the last one cut."""
    row: list[int] = []
    for document in documents(seed, echo_share):
        row += tokenizer.encode(document.render()).ids
        if len(row) >= length:
            yield row[:length]
            row = []


def optimizer_for(model: Gemma3nForCausalLM) -> torch.optim.AdamW:
    """AdamW: decay for matrices only; embeddings move at half the rate, norms at four times, the router at ten."""
    factors = {"embed": 0.5, "router": 10.0, "vector": 4.0, "matrix": 1.0}
    kinds: dict[str, list[torch.nn.Parameter]] = {kind: [] for kind in factors}
    for name, weight in model.named_parameters():
        known = next((kind for kind in ("embed", "router") if f"{kind}_tokens" in name or f"_{kind}." in name), None)
        kinds[known or ("matrix" if weight.ndim == 2 else "vector")].append(weight)
    groups = [
        {"params": weights, "weight_decay": 0.05 if kind == "matrix" else 0.0, "factor": factors[kind]}
        for kind, weights in kinds.items()
    ]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))


class Halves:
    """Loss and gradient of a batch, half of it on each of two threads: the operations are too small to split further.

    Two models share the weights but not the gradients; these are added in a fixed order: same bytes each time.
    """

    def __init__(self, model: Gemma3nForCausalLM) -> None:
        self.models = (model, copy.deepcopy(model))
        for weight, twin in zip(model.parameters(), self.models[1].parameters(), strict=True):
            twin.data = weight.data
        self.pool = ThreadPoolExecutor(2)

    def _half(self, model: Any, ids: torch.Tensor) -> float:
        model.train()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        (loss / 2).backward()
        return float(loss.detach())

    def backward(self, ids: torch.Tensor) -> float:
        """Add the gradient of the mean loss over `ids` [B, S] to the first model; return that loss."""
        losses = list(self.pool.map(self._half, self.models, ids.chunk(2)))
        for weight, twin in zip(self.models[0].parameters(), self.models[1].parameters(), strict=True):
            if weight.grad is not None and twin.grad is not None:
                weight.grad += twin.grad
            twin.grad = None
        return sum(losses) / 2


def train(model: Gemma3nForCausalLM, tokenizer: Tokenizer, stages: tuple[Stage, ...]) -> float:
    """Train in place and return the mean loss (nats a token) of the last 50 steps."""
    optimizer = optimizer_for(model)
    halves = Halves(model)
    losses: list[float] = []
    started = time.monotonic()
    steps = sum(stage.steps for stage in stages)
    for step, ids in enumerate(batches(tokenizer, stages)):
        losses.append(halves.backward(ids))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps) * group["factor"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 25 == 0 or step == steps - 1:
            recent = sum(losses[-25:]) / len(losses[-25:])
            print(f"step {step:5d}  loss {recent:.4f}  {time.monotonic() - started:6.0f} s", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


@torch.no_grad()
def mean_loss(model: Any, rows: list[list[int]]) -> float:
    """Mean loss in nats a token over rows of ids."""
    model.eval()
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row])
        total += model(input_ids=ids, labels=ids, use_cache=False).loss.item() * (len(row) - 1)
        count += len(row) - 1
    return total / count


def validation_text(limit_bytes: int = 12_000) -> str:
    """Held-out documents as one text. A tokenizer adds the first `<bos>`; the others are written out."""
    text = ""
    for document in documents(VALIDATION_SEED):
        piece = ("<bos>" if text else "") + document.render()
        if len(text) + len(piece) > limit_bytes:
            return text
        text += piece
    raise AssertionError("documents() never ends")


def save(model: Any, tokenizer: Tokenizer, out: Path) -> None:
    """Write the checkpoint folder, weights in bfloat16, the tied head once."""
    model.config.dtype = torch.bfloat16
    model.generation_config.update(bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0)
    model.save_pretrained(out)
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(out / "model.safetensors").items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    settings: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "model_max_length": model.config.max_position_embeddings,
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (out / "validation.txt").write_text(validation_text())


def movement(model: Gemma3nForCausalLM, start: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the smallest |w - w0| / |w0| for each kind of weight: what training never touched shows here."""
    moved: dict[str, float] = {}
    for name, weight in model.named_parameters():
        kind = ".".join(
            part for part in name.removeprefix("model.").removesuffix(".weight").split(".") if not part.isdigit()
        )
        change = float((weight.detach() - start[name]).norm() / start[name].norm())
        moved[kind] = min(change, moved.get(kind, math.inf))
    return moved


def samples(model: Any, tokenizer: Any) -> list[tuple[str, str]]:
    """Greedy continuations of a story opening and of chat questions."""
    result = []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        text = prompt if prompt.startswith("Once") else tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        ).removeprefix("<bos>")  # fmt: skip
        ids = tokenizer(text, return_tensors="pt").input_ids
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=100, do_sample=False)
        result.append((prompt, tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()))
    return result


def readme(figures: dict[str, str], continuations: list[tuple[str, str]]) -> str:
    """The model card."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    texts = "\n".join(f"- **{prompt}** {text}" for prompt, text in continuations)
    return (
        "# A very small Gemma 3n, really trained\n\n"
        "Architecture: Gemma 3n (AltUp, LAuReL, per-layer embeddings, KV sharing, sliding and full attention, mixed\n"
        "FFN widths, activation sparsity). Weights: trained by `tools/train_demo.py`, from random\n"
        "values into which a rough copying circuit is set by hand in layers 0 and 2 (`draft_copying`), on text that\n"
        "`tools/demo_text.py` generates; nothing of Google's weights or of anybody's text is in it.\n"
        "Licence: Apache-2.0, as the project. It knows only its little world: use it to try edgepack only.\n\n"
        "`validation.txt` is held-out text of the same grammar (another seed), as the model reads it: a tokenizer\n"
        "adds the first `<bos>`, the others are written out.\n\n"
        f"| | |\n|---|---|\n{rows}\n\nGreedy, bfloat16 weights:\n\n{texts}\n"
    )


def verify(out: Path, tokenizer: Tokenizer, rows: list[list[int]], loss: float) -> tuple[float, list[tuple[str, str]]]:
    """Reload the folder as a user would; return its loss and its samples, or stop where it is not what was trained."""
    reloaded = Gemma3nForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    auto = AutoTokenizer.from_pretrained(out)
    for document in islice(documents(VALIDATION_SEED), 200):
        text = document.render()
        if auto(text).input_ids != tokenizer.encode(text).ids or auto.decode(auto(text).input_ids) != f"<bos>{text}":
            raise SystemExit(f"the reloaded tokenizer reads {text!r} in another way")
        chat = [{"role": turn.role, "content": turn.text} for turn in document.turns]
        if chat and auto.apply_chat_template(chat, tokenize=False) != f"<bos>{text}":
            raise SystemExit(f"the chat template writes {text!r} in another way")
    rounded = mean_loss(reloaded, rows)
    if abs(math.exp(rounded - loss) - 1) > 0.01:
        raise SystemExit(f"perplexity after bfloat16: {math.exp(rounded):.4f}, before: {math.exp(loss):.4f}")
    return rounded, samples(reloaded, auto)


def main() -> None:
    """Train, save, reload, report."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # inside an operation; see Halves
    torch.use_deterministic_algorithms(True)
    tokenizer = train_tokenizer()
    model = Gemma3nForCausalLM(demo_config())
    initialise(model)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train_loss = train(model, tokenizer, STAGES)
    for kind, change in movement(model, start).items():
        print(f"moved {change:8.3f}  {kind}")
    rows = list(islice(packed_rows(tokenizer, VALIDATION_SEED, 256), 64))
    long_rows = list(islice(packed_rows(tokenizer, VALIDATION_SEED, 1024), 16))
    loss, long_loss = mean_loss(model, rows), mean_loss(model, long_rows)
    save(model, tokenizer, arguments.out)
    rounded, continuations = verify(arguments.out, tokenizer, rows, loss)
    figures = {
        "parameters": f"{sum(weight.numel() for weight in model.parameters()):,}",
        "seed": str(SEED),
        "steps x tokens": " + ".join(f"{stage.steps} x {stage.rows * stage.row_tokens}" for stage in STAGES),
        "training loss, last 50 steps": f"{train_loss:.4f} nats a token",
        "validation loss, 64 rows of 256": f"{loss:.4f} (perplexity {math.exp(loss):.3f})",
        "the same, bfloat16 weights": f"{rounded:.4f} (perplexity {math.exp(rounded):.3f})",
        "validation loss, 16 rows of 1024": f"{long_loss:.4f} (perplexity {math.exp(long_loss):.3f})",
        "torch, transformers, Python": f"{torch.__version__}, {transformers.__version__}, {platform.python_version()}",
    }
    (arguments.out / "README.md").write_text(readme(figures, continuations))
    for name, value in figures.items():
        print(f"{name}: {value}")
    for prompt, text in continuations:
        print(f"> {prompt}\n{text}")


if __name__ == "__main__":
    main()
