"""Exports with a calibration: nearer to float32, the same bytes from any number of threads, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_info, threadpool_limits

import edgepack
import edgepack.system.threads
from edgepack.calibration.file import open_calibration
from edgepack.calibration.layout import FORMAT, VERSION
from edgepack.calibration.work import partial_folder
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.exporting import Export, calibration_beside
from edgepack.model.numpy_ops import NumpyOps, logits
from edgepack.model.read import read_model
from edgepack.package.folder import Package
from edgepack.quant import FloatScheme, Recipe, Rounding, Storage, rounding
from edgepack.quant.gptq import compensated
from edgepack.quant.grid import Quantized
from edgepack.text.codec import TextCodec
from tests.calibration.recipes import FOLDS, decoder_recipe
from tests.calibration.small import calibrated, expected_ids, with_tokenizer
from tests.support import tiny
from tests.support.paths import DEMO
from tests.support.tiny import FloatArray, TinyPackages
from tests.support.tolerances import LITERT_FP32_LOGITS

both_backends = pytest.mark.parametrize("backend", ["onnx", "litert"])


def export(small: Path, backend: str, recipe: Recipe, out: str = "package", **given: Any) -> Export:
    given = {"context": tiny.CONTEXT, "threads": 1, **given}
    return edgepack.export(small, to=backend, out=small.parent / out, recipe=recipe, **given)


def decoded(package: Package) -> FloatArray:
    """Logits [N * S, V] of the calibration's own sequences."""
    with edgepack.load(package.path, threads=1) as model:
        return np.concatenate([model.logits(ids.tolist()) for ids in expected_ids()])


def log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def exact(checkpoint: Path) -> FloatArray:
    with open_checkpoint(checkpoint) as source:
        return np.concatenate(list(logits(NumpyOps(read_model(source), source), expected_ids())))


@both_backends
@pytest.mark.parametrize("name", ["shared", "gemma3"])
def test_nearer_to_float32_than_rounding_to_nearest(
    name: str, backend: str, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    small = with_tokenizer(tiny_packages(name).checkpoint, tmp_path)
    wanted, file = exact(small), calibrated(small).path
    found = {
        (rounding, folds): decoded(
            export(
                small,
                backend,
                decoder_recipe(backend, rounding, folds),
                f"{rounding}{len(folds)}",
                calibration=file if rounding == "gptq" else None,
            ).package
        )
        for rounding, folds in (("nearest", ()), ("gptq", ()), ("gptq", FOLDS))
    }
    errors = {how: float(np.square(values - wanted).mean()) for how, values in found.items()}
    assert errors["gptq", ()] < 0.8 * errors["nearest", ()]
    assert errors["gptq", FOLDS] < 0.8 * errors["nearest", ()]


@both_backends
def test_the_demo_is_nearer_to_float32_on_text_that_the_calibration_does_not_have(backend: str, tmp_path: Path) -> None:
    lines = (DEMO / "validation.txt").read_text("utf-8").split("<bos>")
    text = tmp_path / "text.txt"
    text.write_text("".join(lines[:-4]), "utf-8")

    def divergence(rounding: Rounding) -> float:
        """Mean KL to float32 in nats."""
        out = tmp_path / rounding
        recipe = decoder_recipe(backend, rounding, FOLDS if rounding == "gptq" else ())
        calibrate = text if rounding == "gptq" else None
        edgepack.export(DEMO, to=backend, out=out, recipe=recipe, calibrate=calibrate, context=256)
        found = []
        with edgepack.load(out) as model, open_checkpoint(DEMO) as source:
            codec = TextCodec(out)
            for line in lines[-4:]:
                ids = codec.encode(line)
                wanted = logits(NumpyOps(read_model(source), source), np.array([ids]))[0]
                p, q = (log_softmax(values.astype(np.float64)) for values in (wanted, model.logits(ids)))
                found.append((np.exp(p) * (p - q)).sum(1))
        return float(np.concatenate(found).mean())

    assert divergence("gptq") < 0.9 * divergence("nearest")


@both_backends
@pytest.mark.parametrize("name", ["shared", "gemma3"])
def test_folds_alone_change_nothing_that_a_package_computes(
    name: str, backend: str, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    """Every weight of a graph is read through the folds, norms and stacked matrices too."""
    small = with_tokenizer(tiny_packages(name).checkpoint, tmp_path)
    recipe = Recipe(name="folded", description="test", default=Storage(scheme=FloatScheme()), folds=FOLDS)
    package = export(small, backend, recipe, calibration=calibrated(small).path).package
    np.testing.assert_allclose(decoded(package), exact(small), rtol=0, atol=LITERT_FP32_LOGITS)


@both_backends
def test_the_bytes_are_those_of_any_number_of_threads(
    backend: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgepack.system.threads, "available_cores", lambda: 3)
    products: set[int] = set()

    def noted(*given: Any) -> Quantized:
        products.update(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        return compensated(*given)

    monkeypatch.setattr(rounding, "compensated", noted)
    file = calibrated(small).path
    recipe = decoder_recipe(backend, "gptq", FOLDS)
    manifests = []
    for threads in (1, 2, 3):
        with threadpool_limits(limits=threads, user_api="blas"):  # what a product would get by itself
            export(small, backend, recipe, str(threads), calibration=file, threads=threads)
        manifests.append((small.parent / str(threads) / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1] == manifests[2]
    assert products == {1}


# --- in one go --------------------------------------------------------------------------------------------------------


def test_in_one_go_the_calibration_goes_when_the_package_is_whole(small: Path) -> None:
    recipe = decoder_recipe("onnx", "gptq")
    text = small.parent / "text.txt"
    phases: list[str] = []
    done = export(small, "onnx", recipe, calibrate=text, progress=lambda done, total, phase: phases.append(phase))
    assert sorted(path.name for path in small.parent.iterdir()) == ["package", "small", "text.txt"]
    assert any(phase.startswith("layer 1 of") for phase in phases) and "weights" in phases
    source = done.package.manifest.calibration
    assert source is not None and (source.text, source.sequence_tokens) == ("text.txt", tiny.CONTEXT)
    assert done.package.manifest.calibration_sketch is not None


def test_a_named_calibration_stays_and_is_made_once(small: Path) -> None:
    recipe, text, kept = decoder_recipe("onnx", "gptq"), small.parent / "text.txt", small.parent / "kept"
    first = export(small, "onnx", recipe, "first", calibrate=text, calibration=kept)
    made = kept.stat()
    again = export(small, "onnx", recipe, "again", calibrate=text, calibration=kept)
    assert kept.stat() == made
    alone = export(small, "onnx", recipe, "alone", calibration=kept)
    manifests = [done.package.manifest for done in (first, again, alone)]
    assert manifests[0] == manifests[1] == manifests[2]
    text.write_text("Another text, from another day, and long enough to be cut into one sequence of tokens. " * 9)
    with pytest.raises(EdgepackError, match=r"kept exists: choose another, or pass --overwrite to replace it"):
        export(small, "onnx", recipe, "other", calibrate=text, calibration=kept)


def test_a_calibration_that_an_ended_export_left_is_used(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgepack.exporting

    recipe, text = decoder_recipe("onnx", "gptq"), small.parent / "text.txt"
    left = calibration_beside(small.parent / "package")
    with monkeypatch.context() as patch:
        patch.setattr(edgepack.exporting, "list_files", lambda folder, threads: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(small, "onnx", recipe, calibrate=text)
    assert sorted(path.name for path in small.parent.iterdir()) == [left.name, "small", "text.txt"]
    phases: list[str] = []
    export(small, "onnx", recipe, calibrate=text, progress=lambda done, total, phase: phases.append(phase))
    assert not any(phase.startswith("layer") for phase in phases) and not left.exists()


def test_what_another_text_left_is_replaced(small: Path) -> None:
    text, left = small.parent / "text.txt", calibration_beside(small.parent / "package")
    calibrated(small, out=left)
    left.write_bytes(left.read_bytes()[:-1])
    export(small, "onnx", decoder_recipe("onnx", "gptq"), calibrate=text)
    assert not left.exists() and not partial_folder(left).exists()


# --- refused ----------------------------------------------------------------------------------------------------------


def refused(small: Path, said: str, how: Rounding = "gptq", **given: Any) -> None:
    recipe = decoder_recipe("onnx", how)
    with pytest.raises(EdgepackError) as caught:
        export(small, "onnx", recipe, **given)
    message = str(caught.value)
    assert said in message and "\n" not in message, message
    assert not (small.parent / "package").exists()


def test_a_recipe_and_its_calibration_go_together(small: Path) -> None:
    file = calibrated(small).path
    refused(small, "recipe decoder-gptq rounds by what the inputs of the matrices are like: pass --calibrate builtin")
    needless = "recipe decoder-nearest makes no use of a calibration: leave it out, or take a recipe with the rounding"
    refused(small, needless, "nearest", calibration=file)
    refused(small, needless, "nearest", calibrate="builtin")


def test_a_calibration_of_another_checkpoint_is_refused(small: Path, tiny_packages: TinyPackages) -> None:
    file = calibrated(small).path
    other = small.parent / "other"
    other.mkdir()
    other = with_tokenizer(tiny_packages("gemma3").checkpoint, other)
    with pytest.raises(EdgepackError, match=r"out\.safetensors: a calibration of another checkpoint: expected finger"):
        export(other, "onnx", decoder_recipe("onnx", "gptq"), calibration=file)


def test_a_file_that_is_no_calibration_is_refused(small: Path) -> None:
    refused(small, "no calibration: expected the format edgepack-calibration", calibration=small / "model.safetensors")
    refused(small, "cannot be read", calibration=small / "gone")
    refused(small, "text gone cannot be read: No such file", calibrate="gone")


def changed(file: Path, **tensors: npt.ArrayLike) -> Path:
    """A copy of a calibration with the first values of some tensors replaced."""
    out, content = file.with_name("changed"), load_file(file)
    for name, values in tensors.items():
        content[name].flat[: np.size(values)] = values
    with open_calibration(file) as known:
        metadata = {"format": FORMAT, "version": VERSION, "header": known.header.model_dump_json()}
    save_file(content, out, metadata)
    return out


def test_statistics_that_are_not_numbers_are_refused(small: Path) -> None:
    file = calibrated(small).path
    for name in ("layers.0.mlp.down_proj.second", "layers.0.mlp.down_proj.rms"):
        said = f"changed: tensor '{name}' holds nan or inf in row 0; make a new one with `edgepack calibrate`"
        refused(small, said, calibration=changed(file, **{name: np.nan}))


def test_more_damping_than_usual_is_said(small: Path) -> None:
    """Correlations beyond 1, as rounding may leave them: not positive definite with the usual damping."""
    file, name = calibrated(small).path, "layers.0.mlp.down_proj"
    with open_calibration(file) as known:
        columns = len(known.moments(f"{name}.weight").rms)
    beyond = np.full((columns, columns), 1.03)
    np.fill_diagonal(beyond, 1.0)
    values = {f"{name}.second": beyond[np.triu_indices(columns)], f"{name}.rms": np.ones(columns)}
    done = export(small, "onnx", decoder_recipe("onnx", "gptq"), calibration=changed(file, **values))
    assert done.notes[-1] == (
        "singular second moments in the calibration: 1 damped by more than 1 % of their mean, at most by 10 % "
        f"({name}); more tokens may help"
    )


def test_a_package_without_calibration_says_nothing_of_one(tiny_packages: TinyPackages) -> None:
    manifest = tiny_packages("untied", recipe="int4").package.manifest
    assert manifest.calibration is None and manifest.calibration_sketch is None
