"""Quality of recipes on a trained model: KL, top-1 agreement and perplexity against Transformers in float32.

    python benchmarks/quality.py CHECKPOINT --to onnx --recipe int4 --recipe int8

The text is real English: Python's own documentation topics, from the standard library. Each recipe is exported, run by
its runtime (activations quantized as in use), and compared position by position. `absmax` stands for the int4 recipe
with plain symmetric absolute-maximum rounding at the same bits and blocks.
"""

from __future__ import annotations

import tempfile
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


def chunks(folder: Path, count: int, tokens: int) -> list[list[int]]:
    """`count` pieces of `tokens` token ids, each with the start token first."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    text = "\n\n".join(body for _, body in sorted(topics.items()))
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


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("--to", default="onnx")
    arguments.add_argument("--recipe", action="append", default=[])
    arguments.add_argument("--pieces", type=int, default=8)
    arguments.add_argument("--tokens", type=int, default=512)
    chosen = arguments.parse_args()
    pieces = chunks(chosen.checkpoint, chosen.pieces, chosen.tokens)
    model = transformers.AutoModelForCausalLM.from_pretrained(chosen.checkpoint, dtype=torch.float32).eval()
    recipes: list[str | Recipe] = [*(chosen.recipe or ["int4", "int8"]), plain(load_recipe("int4", chosen.to))]
    sums: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        packages = {}
        for recipe in recipes:
            name = recipe.name if isinstance(recipe, Recipe) else recipe
            packages[name] = Path(scratch) / Path(name).name
            edgepack.export(chosen.checkpoint, to=chosen.to, out=packages[name], recipe=recipe, context=chosen.tokens)
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
    print(machine())
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; {len(pieces)} x {chosen.tokens} tokens")
    for name, total in sums.items():
        kl, same, loss, reference_loss = total / len(pieces)
        print(
            f"{name}: weights {sizes[name] / 1e6:.0f} MB, KL {kl:.4f}, same top-1 {same:.1%}, "
            f"perplexity {np.exp(loss):.1f} (float32 {np.exp(reference_loss):.1f}, "
            f"ratio {np.exp(loss - reference_loss):.2f})"
        )
    print(f"KL int4 / absmax: {sums[recipes[0] if isinstance(recipes[0], str) else 'int4'][0] / sums['absmax'][0]:.3f}")


if __name__ == "__main__":
    main()
