"""From a hub id such as ``google/gemma-3n-E2B-it`` to a local folder, through `huggingface_hub` and its cache."""

from __future__ import annotations

import re
from pathlib import Path

from edgepack.errors import CheckpointError
from edgepack.text_files import TEMPLATE_FOLDER

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
        CheckpointError: not found, no access, no network, or not in the cache when offline; with the way out.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{repo_id}: no such folder, and downloading it needs huggingface_hub: pip install huggingface_hub"
        ) from error
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
        raise CheckpointError(_explain(repo_id, revision, error)) from error
    if not Path(folder).is_dir():
        raise CheckpointError(f"{repo_id}: the repository has no safetensors and no config.json; is it a model?")
    return Path(folder)


def _explain(repo_id: str, revision: str | None, error: Exception) -> str:
    """One line that says what went wrong with `repo_id` and what to do. Order matters: gated is a kind of not found."""
    from huggingface_hub import errors

    at = f"{repo_id} at revision {revision!r}" if revision else repo_id
    if isinstance(error, errors.GatedRepoError):
        return f"{at}: access is gated; accept the licence at https://huggingface.co/{repo_id}, then `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{at}: the hub has no such revision; expected a branch, tag or commit of that repository"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{at}: neither a folder here nor a model on the hub; a private model needs `hf auth login` or a token"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{at}: no folder here, not complete in the hub cache, and no network (or offline was asked for); "
            "download it once with network, or give the path of a local folder"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{at}: download failed: {reason}"
