"""Files that users name are read up to a size, and a name that no file can have is told as that."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepack.checkpoint.folder import open_checkpoint
from edgepack.config import read_config
from edgepack.errors import CheckpointError, EdgepackError
from edgepack.planning.plan import load_plan
from edgepack.planning.targets import read_profile
from edgepack.quant import load_recipe
from edgepack.reading import read_user_file
from edgepack.validation.golden.file import read_goldens
from edgepack.validation.verdict.baseline import load_report


def test_a_file_as_large_as_allowed_and_one_byte_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_user_file(tmp_path / "file", "file", most_bytes=5) == b"12345"
    with pytest.raises(EdgepackError, match=r"^list .*/file is too large: expected at most 4 bytes; is it the right"):
        read_user_file(tmp_path / "file", "list", most_bytes=4)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file without an end")
@pytest.mark.parametrize("read", [load_plan, read_profile])
def test_a_file_without_an_end(read: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    with pytest.raises(EdgepackError, match=r"endless.json is too large: expected at most 32,000,000 bytes"):
        read(tmp_path / "endless.json")


@pytest.mark.parametrize("read", [load_recipe, load_plan, read_profile])
def test_a_checkpoint_in_place_of_a_small_file(read: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "model.json").touch()
    os.truncate(tmp_path / "model.json", 1 << 33)
    with pytest.raises(EdgepackError, match=r"model.json is too large"):
        read(tmp_path / "model.json")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a\ud800b"])
def test_a_recipe_whose_name_no_file_can_have(name: str) -> None:
    with pytest.raises(EdgepackError, match=r"is neither a built-in recipe .* nor a JSON file"):
        load_recipe(name)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(EdgepackError, match=r"^plan 'a.*b' cannot be read: .*; write one with `edgepack plan --save`$"):
        load_plan(Path(name))


READERS: dict[str, Callable[[Path], object]] = {
    "config": read_config,
    "baseline": load_report,
    "golden prompts": read_goldens,
}


@pytest.mark.parametrize("what", READERS)
def test_a_device_that_never_ends_is_read_up_to_a_size(what: str) -> None:
    with pytest.raises(EdgepackError, match=rf"{what} /dev/zero is too large: expected at most 32,000,000 bytes"):
        READERS[what](Path("/dev/zero"))


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a\udc00b"])
def test_a_name_that_no_file_can_have_is_one_line(what: str, name: str) -> None:
    with pytest.raises(EdgepackError) as caught:
        READERS[what](Path(name))
    assert "cannot be read" in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a\udc00b"])
def test_a_checkpoint_of_such_a_name_is_one_line(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "[" * 400 + "]" * 400])
def test_a_number_of_thousands_of_digits_and_brackets_in_a_config(value: str, tmp_path: Path) -> None:
    file = tmp_path / "edgepack.toml"
    file.write_text(f"[validate]\nnew_tokens = {value}\n")
    with pytest.raises(EdgepackError, match=r"is not TOML|Invalid JSON: recursion limit"):
        read_config(file)
