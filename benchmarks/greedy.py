"""The same greedy tokens as Transformers in float32, and readable text at the other recipes, on a trained model.

python benchmarks/greedy.py CHECKPOINT --to onnx --prompt "Once upon a time, there was" --recipe fp32 --recipe int4
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from common import machine, parser

import edgepack
from edgepack.planning.backends import backend_named

CONTEXT = 512


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("--to", default="onnx")
    arguments.add_argument("--prompt", default="Once upon a time, there was")
    arguments.add_argument("--new", type=int, default=20)
    arguments.add_argument("--recipe", action="append", default=[])
    chosen = arguments.parse_args()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(chosen.checkpoint)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(chosen.checkpoint, dtype=torch.float32).eval()
    inputs = tokenizer(chosen.prompt, return_tensors="pt")
    prompt = inputs["input_ids"][0].tolist()
    expected = model.generate(**inputs, max_new_tokens=chosen.new, do_sample=False)[0].tolist()[len(prompt) :]
    print(machine())
    print(f"Transformers {transformers.__version__}, float32: {tokenizer.decode(expected)!r}")
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in chosen.recipe or ["fp32", "int8", "int4"]:
            package = Path(scratch) / Path(recipe).name
            edgepack.export(chosen.checkpoint, to=chosen.to, out=package, recipe=recipe, context=CONTEXT)
            for name in backend_named(chosen.to).runtimes:
                with edgepack.load(package, runtime=name) as runtime:
                    ids = runtime.codec.encode(chosen.prompt)
                    got = list(runtime.generate(ids, max_new_tokens=chosen.new))
                same = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), len(expected))
                equal = f"prompt ids equal: {ids == prompt}; {same} of {len(expected)} tokens equal"
                print(f"{recipe}, {name}: {equal}; {tokenizer.decode(got)!r}")


if __name__ == "__main__":
    main()
