"""One line for whatever the hub library raises: who refused, why, and what to do.

The library turns many refusals into "not in the cache", with the true one as their cause: the whole chain is read.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.request import getproxies

from edgepack.shown import one_line, printable, shown

PUBLIC_HUB = "https://huggingface.co"
# Names of classes, because the HTTP client below the library has changed and will again.
_TIMEOUTS = frozenset({"TimeoutException", "Timeout", "TimeoutError"})
_NO_CONNECTION = frozenset({"ConnectError", "ConnectionError", "TransportError", "NetworkError"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})
_LOCAL = "or give the path of a local folder"


def explain(repo_id: str, revision: str | None, error: Exception, *, offline: bool) -> str:
    """One line that says what went wrong with `repo_id` and what to do."""
    at = f"{repo_id} at revision {shown(revision)}" if revision else repo_id
    chain = list(_chain(error))
    # Answers of the hub first: what the library makes of them is raised later.
    for reason in (_answer(repo_id, chain), _disk(chain), _network(chain), _cache(chain, offline=offline)):
        if reason is not None:
            return f"{at}: {reason}"
    return f"{at}: download failed: {_words(error, 500)}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what it came from, each once."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop(0)
        if found is not None and found not in seen:
            seen.append(found)
            yield found
            waiting += [found.__cause__, found.__context__]


def _answer(repo_id: str, chain: list[BaseException]) -> str | None:
    """What the hub said, if it said anything. Order matters: gated is a kind of not found."""
    from huggingface_hub import errors

    def among(kind: type[BaseException]) -> bool:
        return any(isinstance(error, kind) for error in chain)

    if among(errors.GatedRepoError):
        return f"access is gated; accept the licence at {_hub()}/{repo_id}, then `hf auth login`"
    if among(errors.RevisionNotFoundError):
        return "the hub has no such revision; expected a branch, tag or commit of that repository"
    if among(errors.RepositoryNotFoundError):
        return "neither a folder here nor a model on the hub; a private model needs `hf auth login` or a token"
    if among(errors.DisabledRepoError):
        return f"the hub has disabled this repository; see {_hub()}/{repo_id}"
    for error in chain:
        if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
            return _status(error)
    return None


def _status(error: Any) -> str:
    """A refusal by its number, with the hub's own words."""
    status = int(error.response.status_code)
    words = one_line(str(error.server_message or ""), 400)
    said = f"{_named_hub()} refused with {status}" + (f": {words}" if words else "")
    if status == 401:
        return f"{said}; the token is not valid (any more): `hf auth login`, or pass another one"
    if status == 403:
        return f"{said}; the token lacks a permission: see {_hub()}/settings/tokens"
    if status == 429:
        after = error.response.headers.get("Retry-After")
        wait = f"{printable(str(after), 20)} seconds" if after else "some minutes"
        return f"{said}, too many requests; wait {wait}, or pass a token, which has a higher limit"
    if status >= 500:
        return f"{said}, a fault or maintenance there; try again later, {_LOCAL}"
    return f"{said}; {_LOCAL}"


def _disk(chain: list[BaseException]) -> str | None:
    for error in chain:
        # Sockets have EACCES as well, and no name of a file.
        if isinstance(error, OSError) and (error.errno in _FULL or (error.errno in _UNWRITABLE and error.filename)):
            where = f" ({printable(os.fsdecode(error.filename))})" if error.filename else ""
            return (
                f"the hub cache cannot be written{where}: {error.strerror}; free some space, or set HF_HOME to another "
                "folder and try again: what is there already stays"
            )
    return None


def _network(chain: list[BaseException]) -> str | None:
    """Why there is no connection: the name, the proxy, the certificate, the time, or the refusal of a machine."""
    names = {base.__name__ for error in chain for base in type(error).__mro__}
    start, offline = "no folder here, and", "; download it once with network, " + _LOCAL
    if "OfflineModeIsEnabled" in names:
        return None
    # A failed look-up, a refused connection and a certificate stand in the chain with the words of the system.
    for error in chain:
        if isinstance(error, ssl.SSLError):
            return f"{start} the certificate of {_named_hub()} is not accepted: {_words(error)}; is a proxy in between?"
        if isinstance(error, socket.gaierror):
            return f"{start} no network, or no such host as that of {_named_hub()}: {_words(error)}{offline}"
    last = _words(next((error for error in reversed(chain) if str(error)), chain[0]))
    if "ProxyError" in names:
        return f"{start} the proxy refuses: {last}; see HTTPS_PROXY and NO_PROXY"
    if names & _TIMEOUTS:
        return f"{start} no answer in time from {_named_hub()}: {last}; try again{offline}"
    if names & _NO_CONNECTION:
        return f"{start} no connection to {_named_hub()}{_proxy()}: {last}{offline}"
    return None


def _cache(chain: list[BaseException], *, offline: bool) -> str | None:
    from huggingface_hub import errors

    if not any(isinstance(error, errors.LocalEntryNotFoundError) for error in chain):
        return None
    asked = "offline was asked for (--offline)" if offline else "offline was asked for (HF_HUB_OFFLINE)"
    given = offline or any(isinstance(error, errors.OfflineModeIsEnabled) for error in chain)
    why = asked if given else "the hub did not answer"
    return f"no folder here, not complete in the hub cache, and {why}; download it once with network, {_LOCAL}"


def _words(error: BaseException, most: int = 300) -> str:
    """The first line of what `error` says: the library goes on with addresses and advice."""
    text = getattr(error, "strerror", None) or str(error)
    return one_line(text.strip().partition("\n")[0] or error, most)


def _proxy() -> str:
    return " through a proxy (HTTPS_PROXY)" if getproxies().get("https") else ""


def _hub() -> str:
    from huggingface_hub import constants

    return printable(constants.ENDPOINT.rstrip("/"), 200)


def _named_hub() -> str:
    """The hub, with its address where it is a mirror of the user's choice (HF_ENDPOINT)."""
    return "the hub" if _hub() == PUBLIC_HUB else f"the hub at {_hub()} (HF_ENDPOINT)"
