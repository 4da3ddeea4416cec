"""A hub that answers and refuses, with the library's own client against a server on this machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.checkpoint_files import refused

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class Hub(BaseHTTPRequestHandler):
    """Answers every request for a repository with what stands in `answers`: status and headers, or its files."""

    answers: ClassVar[dict[str, tuple[int, dict[str, str]]]] = {}
    files: ClassVar[dict[str, dict[str, bytes]]] = {}

    def do_GET(self) -> None:
        """Answer for the API and for files."""
        parts = self.path.partition("?")[0].strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repo in self.files:
            self._repository(repo, parts)
            return
        status, headers = self.answers[repo]
        self._send(status, b"{}", headers)

    do_HEAD = do_GET  # noqa: N815 - the name that the base class calls

    def _repository(self, repo: str, parts: list[str]) -> None:
        files = self.files[repo]
        if parts[0] != "api":
            self._send(200, files[parts[-1]], {"ETag": f'"{parts[-1]}"', "X-Repo-Commit": COMMIT})
        elif "tree" in parts:
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
            self._send(200, json.dumps(tree).encode(), {})
        else:
            siblings = [{"rfilename": name} for name in files]
            self._send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield address
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "headers", "needles"),
    [
        (403, {"X-Error-Message": "Your token may not read gated models"}, ["403: Your token may not", "permission"]),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, ["401: Invalid", "hf auth login"]),
        (429, {"Retry-After": "77"}, ["429, too many requests; wait 77 seconds"]),
        (503, {}, ["refused with 503, a fault or maintenance"]),
        (504, {"X-Error-Message": "Gateway\ttimed out"}, ["504: Gateway timed out"]),
        (451, {"X-Error-Message": "not in your country"}, ["451: not in your country"]),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, ["disabled this repository"]),
        (403, {"X-Error-Code": "GatedRepo"}, ["access is gated; accept the licence"]),
        (404, {"X-Error-Code": "RepoNotFound"}, ["neither a folder here nor a model on the hub"]),
    ],
)
def test_a_refusal_says_who_refused_and_why(
    status: int, headers: dict[str, str], needles: list[str], endpoint: str, tmp_path: Path
) -> None:
    Hub.answers["some/model"] = (status, headers)
    message = refused("some/model", "some/model", *needles, cache_dir=tmp_path, token="hf_secret")
    assert "no network" not in message
    assert "not complete in the hub cache" not in message
    assert "hf_secret" not in message
    if status in (429, 503):  # a mirror is named: it is not the hub that everybody knows
        assert f"{endpoint} (HF_ENDPOINT)" in message


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    message = refused("some/model", "no connection to the hub at", "Connection refused", cache_dir=tmp_path)
    assert "offline was asked for" not in message


def test_a_name_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    refused("some/model", "no network, or no such host", "Temporary failure in name", cache_dir=tmp_path)


def test_offline_that_was_asked_for_is_no_lack_of_network(tmp_path: Path) -> None:
    message = refused("some/model", "offline was asked for (--offline)", cache_dir=tmp_path, offline=True)
    assert "no network" not in message


def test_no_home_for_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("edgepack.checkpoint.hub.home_folder", lambda: None)
    refused("some/model", "no home folder for downloads", "set HF_HOME")


@pytest.mark.parametrize(
    ("files", "needles"),
    [
        (
            {"adapter_config.json": b'{"base_model_name_or_path": "org/base"}', "adapter_model.safetensors": b"x"},
            ["only adapter_model.safetensors, an adapter of org/base: merge it"],
        ),
        (
            {"adapter_config.json": b'{"base_model_name_or_path": "org/base"}', "adapter_model.bin": b"x"},
            ["an adapter of org/base: merge it"],
        ),
        ({"config.json": b"{}", "gemma-Q4_K_M.gguf": b"GGUF"}, ["only gemma-Q4_K_M.gguf: GGUF weights"]),
        ({"README.md": b"", "BF16/gemma-BF16.gguf": b"GGUF"}, ["only gemma-BF16.gguf: GGUF weights"]),
        ({"gemma-int4.litertlm": b""}, ["only gemma-int4.litertlm, a LiteRT model"]),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, ["pickle files can run code"]),
        ({"config.json": b"{}", "original/model.safetensors": b"x"}, ["in a folder of their own (original/model.sa"]),
    ],
)
@pytest.mark.usefixtures("endpoint")
def test_a_repository_that_is_no_checkpoint(files: dict[str, bytes], needles: list[str], tmp_path: Path) -> None:
    Hub.files["some/other"] = files
    try:
        refused("some/other", *needles, cache_dir=tmp_path)
    finally:
        del Hub.files["some/other"]
