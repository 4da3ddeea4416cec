"""How far the expected KLs of a sensitivity file can be trusted: against forwards on the same and on other tokens.

    python benchmarks/sensitivity.py CHECKPOINT --calibration FILE --sensitivity FILE --text FILE --groups 12 --bits 4.3

For some groups every way to store them is run alone, and compared with what its references and the errors of products
predict. Then all groups at once, for the sum; and the mix of each --bits against what the file expects of it.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import machine, parser
from threadpoolctl import threadpool_limits

from edgepack.calibration.file import Calibration, open_calibration
from edgepack.calibration.sensitivity.file import Sensitivity, read_sensitivity
from edgepack.calibration.sensitivity.probe import Probe
from edgepack.calibration.sensitivity.rounded import Factors, change_of
from edgepack.calibration.sensitivity.run import few_sequences, reference_of, runs_every_candidate
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.model.read import read_model
from edgepack.model.spec import ModelSpec
from edgepack.planning.assign import assign
from edgepack.planning.backends import backend_named
from edgepack.planning.candidates import candidates_of
from edgepack.planning.mix import bits_per_weight, choose_mix
from edgepack.quant import IntScheme, Storage, load_recipe


class Check:
    """A file of costs, and forwards to compare it with."""

    def __init__(self, costs: Sensitivity, spec: ModelSpec, probe: Probe, known: Calibration) -> None:
        self.costs, self.spec, self.probe, self.known = costs, spec, probe, known
        self.backend = backend_named(costs.backend)
        self.groups = candidates_of(spec, self.backend)
        self.columns = {tensor.name: tensor.shape[1] for group, _ in self.groups for tensor in group.tensors}

    def kl(self, stage: int, ways: list[dict[str, Storage]]) -> list[float]:
        """KL of each way to store some tensors."""
        factors = Factors(self.known)
        return self.probe.divergences(stage, [change_of(stored, self.columns, factors) for stored in ways])

    def law(self, count: int) -> None:
        """Run `count` groups at every candidate, alone and together."""
        groups = [(group, each) for group, each in self.groups if not runs_every_candidate(group)]
        step = max(1, len(groups) // count | 1)  # odd, so that it meets every kind
        costs = {cost.name: cost.choices for cost in self.costs.groups}
        ratios: dict[str, list[float]] = {}
        sums: dict[str, tuple[dict[str, Storage], float]] = {}
        for group, each in groups[::step]:
            found, told = self.kl(group.stage, [one.stored for one in each]), []
            for i, (one, kl) in enumerate(zip(each, found, strict=True)):
                reference = reference_of(each, i)
                errors = [choice.error or 1e-30 for choice in costs[group.name]]
                predicted = found[reference] * errors[i] / errors[reference]
                name = f"{one.asked.scheme.name} {one.asked.rounding}"
                if i != reference:
                    ratios.setdefault(name, []).append(kl / max(predicted, 1e-30))
                told.append(f"{name} {kl:.3g} ({predicted:.3g})")
                stored, total = sums.get(name, ({}, 0.0))
                sums[name] = ({**stored, **one.stored}, total + kl)
            print(group.name, "; ".join(told), flush=True)
        for name, values in ratios.items():
            middle = np.exp(np.mean(np.log(values)))
            print(f"{name}: measured / predicted {middle:.2f}, {min(values):.2f} to {max(values):.2f}")
        for name, (stored, total) in sums.items():
            print(f"{name}: together {self.kl(0, [stored])[0]:.4g}, sum {total:.4g}", flush=True)

    def mixes(self, asked: list[str]) -> None:
        """Run int4 and the mix of each ``bits`` or ``bits/head bits``."""
        base = load_recipe("int4", self.backend.name)
        recipes = [(base, float("nan"))]
        for text in asked:
            bits, _, head = text.partition("/")
            wanted = {"head_bits": float(head) if head else None, "calibrated": True}
            mix = choose_mix(self.spec, self.backend, self.costs, float(bits), base=base, **wanted)
            recipes.append((mix.recipe, mix.kl))
        for recipe, expected in recipes:
            tensors = [t for t in assign(self.spec, recipe, self.backend) if isinstance(t.scheme, IntScheme)]
            kl = self.kl(0, [{t.name: Storage(scheme=t.scheme, rounding=t.rounding) for t in tensors}])[0]
            bits_read = bits_per_weight(assign(self.spec, recipe, self.backend), self.spec)
            print(f"{recipe.name}: {bits_read:.3f} bits, expected {expected:.4g}, together {kl:.4g}", flush=True)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("--calibration", type=Path, required=True)
    arguments.add_argument("--sensitivity", type=Path, required=True)
    arguments.add_argument("--text", type=Path, required=True)
    arguments.add_argument("--tokens", type=int, default=512)
    arguments.add_argument("--sequence", type=int, default=256)
    arguments.add_argument("--groups", type=int, default=12)
    arguments.add_argument("--bits", action="append", default=[])
    chosen = arguments.parse_args()
    costs = read_sensitivity(chosen.sensitivity)
    with (
        open_checkpoint(chosen.checkpoint) as source,
        open_calibration(chosen.calibration) as known,
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(2) as pool,
        threadpool_limits(1),
    ):
        spec = read_model(source)
        costs.require_for(source, spec, costs.backend, chosen.sensitivity)
        ids = few_sequences(source, spec, chosen.text, chosen.tokens, chosen.sequence).ids
        check = Check(costs, spec, Probe(source, spec, ids, Path(folder), pool), known)
        print(f"{check.probe.positions} positions of {ids.shape}; {machine()}", flush=True)
        if chosen.groups:
            check.law(chosen.groups)
        if chosen.bits:
            check.mixes(chosen.bits)


if __name__ == "__main__":
    main()
