"""Quality of recipes on a trained model: KL, top-1 agreement and perplexity against Transformers in float32.

    python benchmarks/quality.py CHECKPOINT --to onnx --recipe int4 --recipe int8
    python benchmarks/quality.py CHECKPOINT --calibration FILE --recipe int4-calibrated --text PROSE --pieces 20

The text is real English: Python's own documentation topics, from the standard library, or a file. Each recipe is
exported, run by its runtime (activations quantized as in use), and compared position by position. `absmax` stands for
the int4 recipe with plain symmetric absolute-maximum rounding at the same bits and blocks.
"""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
import transformers
from common import machine, parser

import edgepack
from edgepack.model.spec import COMPONENTS
from edgepack.package.folder import open_package
from edgepack.quant import IntScheme, Recipe, Storage, load_recipe


def chunks(folder: Path, file: Path | None, count: int, tokens: int) -> list[list[int]]:
    """`count` pieces of `tokens` token ids, each with the start token first."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    text = "\n\n".join(body for _, body in sorted(topics.items())) if file is None else file.read_text("utf-8")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    step = len(ids) // count
    return [[tokenizer.bos_token_id, *ids[i * step : i * step + tokens - 1]] for i in range(count)]


def plain(recipe: Recipe) -> Recipe:
    """`recipe` with every int scheme symmetric and rounded by absolute maximum."""
    rows = {}
    for component in COMPONENTS:
        scheme = recipe.storage(component).scheme
        plain = scheme.model_copy(update={"zero_point": False}) if isinstance(scheme, IntScheme) else scheme
        rows[component] = Storage(scheme=plain)
    return Recipe(name="absmax", description="plain rounding", components=rows)


CACHED = ("weight cache", "models in the cache")


def weights_bytes(package: Path) -> int:
    """Size of the weights in the package, without what a first load writes elsewhere."""
    return sum(row.disk_bytes for row in open_package(package).manifest.plan.rows if row.name not in CACHED)


def bits_a_weight(package: Path) -> str:
    """Bits of a weight in the matrices of the decoder, and in the embedding."""
    words = []
    for name, wanted in (("decoder", False), ("embedding", True)):
        matrices = [
            tensor
            for tensor in open_package(package).manifest.plan.tensors
            if len(tensor.shape) == 2 and (tensor.component in ("embedding", "head", "ple")) == wanted
        ]
        bits = 8 * sum(tensor.scheme.nbytes(tensor.shape) for tensor in matrices)
        words.append(f"{name} {bits / sum(prod(tensor.shape) for tensor in matrices):.3f}")
    return ", ".join(words)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("--to", default="onnx")
    arguments.add_argument("--recipe", action="append", default=[])
    arguments.add_argument("--calibration", type=Path)
    arguments.add_argument("--text", type=Path)
    arguments.add_argument("--absmax", action="store_true")
    arguments.add_argument("--pieces", type=int, default=8)
    arguments.add_argument("--tokens", type=int, default=512)
    chosen = arguments.parse_args()
    pieces = chunks(chosen.checkpoint, chosen.text, chosen.pieces, chosen.tokens)
    model = transformers.AutoModelForCausalLM.from_pretrained(chosen.checkpoint, dtype=torch.float32).eval()
    recipes = [load_recipe(name, chosen.to) for name in chosen.recipe or ["int4", "int8"]]
    recipes += [plain(load_recipe("int4", chosen.to))] if chosen.absmax else []
    sums: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        packages = {}
        for recipe in recipes:
            packages[recipe.name] = Path(scratch) / recipe.name
            edgepack.export(
                chosen.checkpoint,
                to=chosen.to,
                out=packages[recipe.name],
                recipe=recipe,
                calibration=chosen.calibration if recipe.calibrated else None,
                context=chosen.tokens,
            )
        for ids in pieces:
            with torch.no_grad():
                reference = log_softmax(model(torch.tensor([ids])).logits[0].numpy())[:-1]
            following = np.array(ids[1:])
            rows = np.arange(len(following))
            for name, package in packages.items():
                with edgepack.load(package) as runtime:
                    got = log_softmax(runtime.logits(ids))[:-1]
                kl = (np.exp(reference) * (reference - got)).sum(-1).mean()
                same = (reference.argmax(-1) == got.argmax(-1)).mean()
                losses = -got[rows, following].mean(), -reference[rows, following].mean()
                sums[name] = sums.get(name, np.zeros(4)) + np.array([kl, same, *losses])
        sizes = {name: weights_bytes(path) for name, path in packages.items()}
        bits = {name: bits_a_weight(path) for name, path in packages.items()}
    print(machine())
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; {len(pieces)} x {chosen.tokens} tokens")
    for name, total in sums.items():
        kl, same, loss, reference_loss = total / len(pieces)
        print(
            f"{name}: weights {sizes[name] / 1e6:.0f} MB, bits {bits[name]}, KL {kl:.4f}, same top-1 {same:.1%}, "
            f"perplexity {np.exp(loss):.1f} (float32 {np.exp(reference_loss):.1f}, "
            f"ratio {np.exp(loss - reference_loss):.2f})"
        )


if __name__ == "__main__":
    main()
