"""Options of `plan` and `export` beside edgepack.toml: backend and runtime go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.cli.options import choose
from edgepack.config import read_config
from edgepack.errors import EdgepackError


def config(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "edgepack.toml"
    file.write_text(f"[export]\ncheckpoint = 'demo'\n{text}\n")
    return file


@pytest.mark.parametrize(
    ("to", "runtime", "chosen"),
    [
        (None, None, ("litert", "litert-lm")),
        ("tflite", None, ("tflite", "litert-lm")),
        ("onnx", None, ("onnx", None)),
        (None, "litert", (None, "litert")),
        (None, "onnx", (None, "onnx")),
    ],
)
def test_one_on_the_command_line_takes_the_place_of_both(
    tmp_path: Path, to: str | None, runtime: str | None, chosen: tuple[str | None, str | None]
) -> None:
    found = choose(
        read_config(config(tmp_path, 'to = "litert"\nruntime = "litert-lm"')),
        checkpoint=None, to=to, runtime=runtime, target=None, recipe=None, context=None, prefill=None, revision=None,
    )  # fmt: skip
    assert (found.to, found.runtime) == chosen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('to = "onnx"\nruntime = "litert-lm"', "export.runtime litert-lm does not run what is exported for onnx"),
        ('runtime = "abacus"', "export.runtime 'abacus' is not known: expected one of onnx, "),
        ("runtime = 3", 'export.runtime: expected a runtime, such as "onnx", got 3'),
    ],
)
def test_a_runtime_that_means_nothing_is_refused_where_it_stands(tmp_path: Path, text: str, said: str) -> None:
    file = config(tmp_path, text)
    with pytest.raises(EdgepackError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"config {file}: {said}")
