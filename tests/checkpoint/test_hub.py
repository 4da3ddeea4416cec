"""From a hub id to a local folder, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepack.checkpoint import hub
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import EdgepackError
from tests.support.checkpoint_files import ONE, ONE_DATA, make_folder, refused, write_shard
from tests.support.paths import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "ckpt")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to connect fails the test instead of leaving the machine."""
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a test tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def hub_cache(cache: Path) -> Path:
    """The layout that the hub library keeps: blobs, and a snapshot of links to them. Returns the snapshot."""
    repo = cache / "models--some-org--tiny-model"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    write_shard(repo / "blobs" / "b1", ONE, ONE_DATA)
    (repo / "blobs" / "b2").write_text('{"model_type": "gemma3_text"}')
    (snapshot / "model.safetensors").symlink_to("../../blobs/b1")
    (snapshot / "config.json").symlink_to("../../blobs/b2")
    return snapshot


@pytest.mark.usefixtures("no_network")
def test_offline_cache_is_enough(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    for revision in (None, "main", COMMIT):
        with open_checkpoint("some-org/tiny-model", revision=revision, cache_dir=tmp_path, offline=True) as checkpoint:
            assert checkpoint.source.repo_id == "some-org/tiny-model"
            assert checkpoint.source.revision == COMMIT
            assert checkpoint.path == snapshot
            assert checkpoint.read("w")[1, 1] == 3
            assert [path.name for path in checkpoint.side_files()] == ["config.json"]


@pytest.mark.usefixtures("no_network")
def test_offline_without_the_model_in_the_cache(tmp_path: Path) -> None:
    hub_cache(tmp_path)
    refused("some-org/other", "some-org/other", "not complete in the hub cache", cache_dir=tmp_path, offline=True)
    refused("some-org/tiny-model", "at revision 'v2'", cache_dir=tmp_path, offline=True, revision="v2")


def test_the_offline_variable_of_the_hub_library_is_respected(tmp_path: Path) -> None:
    hub_cache(tmp_path)
    program = (
        "import sys; from pathlib import Path; from edgepack.checkpoint.folder import open_checkpoint\n"
        "from edgepack.errors import CheckpointError\n"
        "with open_checkpoint('some-org/tiny-model', cache_dir=Path(sys.argv[1])) as c: print(c.source.revision)\n"
        "try: open_checkpoint('some-org/other', cache_dir=Path(sys.argv[1]))\n"
        "except CheckpointError as error: print(error)\n"
    )
    # A fresh process: the library reads the variable when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    commit, message = done.stdout.splitlines()
    assert commit == COMMIT
    assert message.startswith("some-org/other: no folder here, not complete in the hub cache")


def test_a_snapshot_given_as_a_path_knows_its_origin(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.source.repo_id == "some-org/tiny-model"
        assert checkpoint.source.revision == COMMIT
    blob = snapshot.parents[1] / "blobs" / "b1"
    blob.rename(tmp_path / "elsewhere")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    refused(snapshot, "outside the checkpoint folder")


def test_what_is_asked_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def fake(repo_id: str, **options: Any) -> str:
        calls.append((repo_id, options))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    with open_checkpoint("org/name", revision="v1", token="secret", cache_dir=tmp_path) as checkpoint:
        assert checkpoint.source.repo_id == "org/name"
    with open_checkpoint("org/name", offline=True):
        pass
    (repo, first), (_, second) = calls
    assert repo == "org/name"
    assert (first["revision"], first["token"], first["cache_dir"]) == ("v1", "secret", tmp_path)
    assert not first["local_files_only"]
    assert second["local_files_only"]
    assert second["token"] is None  # then the library looks at HF_TOKEN and its login by itself


def test_downloaded_are_weights_and_text_files_of_the_top_folder(tmp_path: Path) -> None:
    from huggingface_hub.utils._paths import filter_repo_objects

    wanted = ["chat_template.jinja", "config.json", "model-00001-of-00002.safetensors", "tokenizer.model"]
    others = ["README.md", "model.gguf", "onnx/config.json", "original/model.safetensors", "pytorch_model.bin"]
    got = filter_repo_objects([*wanted, *others], allow_patterns=list(hub.WANTED), ignore_patterns=list(hub.IGNORED))
    assert list(got) == wanted


def test_an_existing_folder_wins_over_a_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    folder.rename(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with open_checkpoint("org/name") as checkpoint:
        assert checkpoint.source.repo_id is None


@pytest.mark.parametrize("source", ["name", "./org/name", "/org/name", "../name", "a/b/c", "org/"])
def test_spellings_that_are_no_hub_id(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(source, "no such folder")


def hub_error(name: str, status: int) -> Exception:
    """An error of the hub library as it is raised after a response with `status`."""
    from unittest.mock import MagicMock

    from huggingface_hub import errors

    response = MagicMock(status_code=status, headers={})
    error: Exception = getattr(errors, name)("first line\nsecond line with the request id", response=response)
    return error


@pytest.mark.parametrize(
    ("error", "needles"),
    [
        (
            lambda: hub_error("GatedRepoError", 403),
            ["accept the licence", "https://huggingface.co/org/name", "hf auth"],
        ),
        (lambda: hub_error("RepositoryNotFoundError", 404), ["neither a folder here nor a model on the hub"]),
        (lambda: hub_error("RevisionNotFoundError", 404), ["at revision 'v1'", "no such revision"]),
        (lambda: hub_error("DisabledRepoError", 403), ["the hub has disabled this repository"]),
        (lambda: OSError(28, "No space left on device"), ["cache cannot be written: No space left", "HF_HOME"]),
        (lambda: PermissionError(13, "Permission denied", "/srv/hf"), ["cannot be written (/srv/hf): Permission de"]),
        (lambda: ValueError("first line\nsecond line"), ["download failed: first line"]),
        (lambda: RuntimeError(), ["download failed: RuntimeError"]),
    ],
)
def test_errors_of_the_hub_become_one_line(
    error: Callable[[], Exception], needles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error()

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = refused("org/name", "org/name", *needles, revision="v1", token="secret")
    assert "secret" not in message
    assert "second line" not in message


def test_repository_without_any_wanted_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "never-made"))
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: ["README.md"])
    refused("org/name", "org/name: the repository has no safetensors and no config.json")


def test_without_the_hub_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("org/name", "org/name: no such folder", "pip install huggingface_hub")


def test_with_a_hub_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise ImportError("libssl.so.3: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Broken())
    with pytest.raises(EdgepackError, match=r"huggingface_hub is installed but cannot be loaded: libssl\.so\.3"):
        open_checkpoint("org/name")
