"""Plan and checkpoint to the two graphs of a package and their weight files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgepack.calibration.planned import PlannedWeights
from edgepack.checkpoint.folder import Checkpoint
from edgepack.model.families import family_of
from edgepack.model.spec import ModelSpec
from edgepack.package.interface import DECODER, EMBED
from edgepack.package.interface_onnx import INPUT_IDS, INPUTS_EMBEDS, PER_LAYER_INPUTS, embed_interface
from edgepack.planning.plan import Plan, TensorPlan
from edgepack.quant.layout import FloatScheme
from edgepack_converters.contract import Emitted
from edgepack_converters.onnx.attention import AttentionOps
from edgepack_converters.onnx.builder import TableOps, declared_inputs
from edgepack_converters.onnx.layout import Layout
from edgepack_converters.phases import WEIGHTS, Phases, weights_of
from edgepack_converters.weight_writer import write_weights
from edgepack_converters.weights import WeightFile

FOLDER = "onnx"
OPSET = 21
IR_VERSION = 10
# MatMulNBits may quantize activations to int8 where the CPU has fast kernels for it (ORT's accuracy_level 4).
INT8_ACTIVATIONS = 4


@dataclass(frozen=True, slots=True)
class Emission:
    """Both graphs and the weight files they point into, before any weight is read."""

    graphs: dict[str, tuple[str, ir.Model]]
    files: tuple[WeightFile, ...]


def suffix(plan: Plan) -> str:
    """The name that transformers.js gives to the storage type of most of the graph."""
    sizes: dict[str, int] = {}
    for tensor in plan.tensors:
        if tensor.component == "ffn":
            scheme = tensor.scheme
            kind = {"float32": "", "float16": "_fp16"}[scheme.dtype] if isinstance(scheme, FloatScheme) else ""
            kind = kind if isinstance(scheme, FloatScheme) else {2: "_q2", 4: "_q4", 8: "_quantized"}[scheme.bits]
            sizes[kind] = sizes.get(kind, 0) + scheme.nbytes(tensor.shape)
    return max(sizes, key=lambda kind: sizes[kind])


def build(plan: Plan) -> Emission:
    """Emit both graphs of `plan` and decide where every weight stands."""
    spec, family = plan.spec, family_of(plan.spec)
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    layout, end = Layout(), suffix(plan)
    decoder_name, embed_name = f"decoder_model_merged{end}.onnx", f"embed_tokens{end}.onnx"
    decoder_file, embed_file = WeightFile(f"{decoder_name}_data"), WeightFile(f"{embed_name}_data")

    decoder = AttentionOps(spec, tensors, layout, decoder_file, INT8_ACTIVATIONS, plan.context_tokens)
    result = family.decode(decoder, spec, decoder.embeds, decoder.per_layer)
    decoder_model = _model(decoder.finished(result, OPSET))

    # After the decoder: the tied embedding then points to the head's bytes in the decoder's file.
    embed_model = _model(_embed_graph(spec, tensors, layout, embed_file))
    files = tuple(file for file in (decoder_file, embed_file) if file.size_bytes)
    return Emission({DECODER: (decoder_name, decoder_model), EMBED: (embed_name, embed_model)}, files)


def _embed_graph(spec: ModelSpec, tensors: dict[str, TensorPlan], layout: Layout, file: WeightFile) -> ir.Graph:
    ops, interface = TableOps(tensors, layout, file), embed_interface(spec)
    inputs = declared_inputs(interface)
    embeds, per_layer = family_of(spec).embed(ops, spec, inputs[INPUT_IDS])
    outputs = {INPUTS_EMBEDS: embeds} | ({PER_LAYER_INPUTS: per_layer} if per_layer is not None else {})
    return ops.graph("embed_tokens", interface, inputs, outputs, OPSET)


def _model(graph: ir.Graph) -> ir.Model:
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="edgepack")


def costs(plan: Plan, checkpoint: Checkpoint) -> dict[str, float]:
    """The phases of `emit` and what each costs, in weights."""
    return {WEIGHTS: weights_of(plan)}


def emit(
    plan: Plan, checkpoint: Checkpoint, weights: PlannedWeights, out: Path, *, threads: int, phases: Phases
) -> Emitted:
    """Write the graphs and weights of `plan` into ``out/onnx``: see `edgepack_converters.contract`.

    Raises:
        CheckpointError: a weight is missing, unreadable or not finite.
        PackageError: the files cannot be written.
    """
    emission = build(plan)
    folder = out / FOLDER
    folder.mkdir()
    phases.begin(WEIGHTS)
    for file in emission.files:
        path = folder / file.name
        write_weights(path, file.size_bytes, file.placements, weights, threads=threads, progress=phases.advance)
    for name, model in emission.graphs.values():
        ir.save(model, folder / name)
    graphs = {role: f"{FOLDER}/{name}" for role, (name, _) in emission.graphs.items()}
    return Emitted(graphs, libraries=("onnx_ir",), spans={})
