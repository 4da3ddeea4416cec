"""From a hub id such as ``google/gemma-3n-E2B-it`` to a local folder, through `huggingface_hub` and its cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgepack.checkpoint.hub_errors import explain
from edgepack.checkpoint.kind import read_object, what_is_named
from edgepack.errors import CheckpointError, broken_library
from edgepack.shown import printable
from edgepack.text.files import TEMPLATE_FOLDER
from edgepack.user_folders import home_folder

# Only what an export reads. Patterns also match inside subfolders, which hold other formats: IGNORED drops those.
WANTED = ("*.safetensors", "*.json", "tokenizer*", "*.jinja")
# Every folder but the one of chat templates: its name cut short, with another letter somewhere, or longer.
IGNORED = (
    *(f"{TEMPLATE_FOLDER[:i]}/*" for i in range(1, len(TEMPLATE_FOLDER))),
    *(f"{TEMPLATE_FOLDER[:i]}[!/{TEMPLATE_FOLDER[i]}]*/*" for i in range(len(TEMPLATE_FOLDER))),
    f"{TEMPLATE_FOLDER}[!/]*/*",
    f"{TEMPLATE_FOLDER}/*/*",
    *(f"{TEMPLATE_FOLDER}/*{ending}" for ending in (".safetensors", ".json")),
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Any of them tells the hub library where its cache is.
_CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(source: str) -> bool:
    """Tell whether `source` is spelled like ``org/name``; a folder of that spelling may exist all the same."""
    return _HUB_ID.fullmatch(source) is not None


def snapshot_origin(folder: Path) -> tuple[str | None, str | None]:
    """Return repository id and commit of a snapshot in the hub cache, (None, None) of any other folder."""
    real = folder.resolve()
    repo = real.parent.parent.name
    if real.parent.name != "snapshots" or not repo.startswith("models--") or not _COMMIT.fullmatch(real.name):
        return None, None
    return repo.removeprefix("models--").replace("--", "/", 1), real.name


def download(repo_id: str, *, revision: str | None, token: str | None, cache_dir: Path | None, offline: bool) -> Path:
    """Return the snapshot folder of `repo_id`, downloading what the cache lacks.

    Raises:
        CheckpointError: not found, refused by the hub, no network, not in the cache when offline, a cache that cannot
            be written, or a repository without safetensors; with the way out.
        EdgepackError: huggingface_hub is installed and cannot be loaded.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{repo_id}: no such folder, and downloading it needs huggingface_hub: pip install huggingface_hub"
        ) from error
    except ImportError as error:
        raise broken_library(error, "huggingface_hub") from error
    if cache_dir is None:
        _require_cache_folder(repo_id)
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=offline,
            allow_patterns=list(WANTED),
            ignore_patterns=list(IGNORED),
        )
    except Exception as error:  # the library lets errors of its HTTP client through, whichever that is
        raise CheckpointError(explain(repo_id, revision, error, offline=offline)) from error
    snapshot = Path(folder)
    if not any(snapshot.glob("*.safetensors")):
        _refuse_repository(repo_id, snapshot, [] if offline else _names_on_hub(repo_id, revision, token))
    return snapshot


def _require_cache_folder(repo_id: str) -> None:
    """Without a home the library would make a folder called ``~`` where the user stands."""
    known = any(os.environ.get(name) for name in _CACHE_VARIABLES)
    if not known and home_folder() is None:
        raise CheckpointError(
            f"{repo_id}: no such folder here, and no home folder for downloads (HOME is not set): set HF_HOME to a "
            "folder, or give the path of a local checkpoint"
        )


def _names_on_hub(repo_id: str, revision: str | None, token: str | None) -> list[str]:
    """All files of a repository, to tell what it is; none where the hub does not answer any more."""
    from huggingface_hub import HfApi

    try:
        return list(HfApi(token=token).list_repo_files(repo_id, revision=revision))
    except Exception:  # noqa: BLE001 - as in `download`; what is told then is only less
        return []


def _refuse_repository(repo_id: str, snapshot: Path, names: list[str]) -> None:
    """Refuse a repository without safetensors by what else it holds; a folder that is left is refused when opened."""
    if said := what_is_named({name.rpartition("/")[2] for name in names}, lambda name: read_object(snapshot / name)):
        raise CheckpointError(f"{repo_id}: no safetensors in that repository, {said}")
    if inside := next((name for name in sorted(names) if name.endswith(".safetensors")), None):
        raise CheckpointError(
            f"{repo_id}: its safetensors are in a folder of their own ({printable(inside)}): download the repository "
            "and give that folder"
        )
    if not snapshot.is_dir():
        raise CheckpointError(f"{repo_id}: the repository has no safetensors and no config.json; is it a model?")
