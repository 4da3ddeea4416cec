"""The choice of `choice.choose` in a process of its own, which takes 0.2 GB of memory with it when it ends.

Run as ``python process.py``. It reads a JSON object with the sizes of tokenizer.json and tokenizer.model (null for
none) from the first line of stdin, and both behind that. It writes a JSON object with
``reason`` in one line, and a SentencePiece model behind that where one was chosen; or ``error`` alone.
It imports neither numpy nor anything of LiteRT.
"""

from __future__ import annotations

import json
import sys

from edgepack.errors import CheckpointError
from edgepack.system.child import run_python
from edgepack_converters.litert.tokenizer.choice import Choice, choose
from edgepack_converters.litert.tokenizer.tokenizer_json import respell

# A small one is done sooner than a process is started.
_LARGE_BYTES = 4_000_000


def choose_apart(tokenizer: bytes, model: bytes | None = None) -> Choice:
    """As `choose`; a large tokenizer leaves no memory behind.

    Raises:
        CheckpointError: tokenizer.json is no tokenizer, or the process failed.
    """
    if len(tokenizer) + len(model or b"") < _LARGE_BYTES:
        return choose(respell(tokenizer), model)
    sizes = {"tokenizer": len(tokenizer), "model": None if model is None else len(model)}
    # By its path: a name would import this package's room, and all of LiteRT with it.
    ended = run_python(__file__, said=(json.dumps(sizes).encode() + b"\n", tokenizer, model or b""))
    if ended.problem is not None:
        raise CheckpointError(
            f"tokenizer.json: expected a SentencePiece model or none, got a process that failed: {ended.problem}; "
            "is there half a gigabyte of free memory?"
        )
    line, _, content = ended.output.partition(b"\n")
    answer = json.loads(line)
    if "error" in answer:
        raise CheckpointError(answer["error"])
    return Choice(content or None, answer["reason"])


def main() -> None:
    """Answer what is on stdin."""
    sizes = json.loads(sys.stdin.buffer.readline())
    # No variable holds the bytes of the file, so `respell` frees them: they are as large as the vocabulary.
    tokenizer = respell(sys.stdin.buffer.read(sizes["tokenizer"]))
    model = None if sizes["model"] is None else sys.stdin.buffer.read()
    try:
        choice = choose(tokenizer, model)
    except CheckpointError as error:
        sys.stdout.buffer.write(json.dumps({"error": str(error)}).encode())
        return
    sys.stdout.buffer.write(json.dumps({"reason": choice.reason}).encode() + b"\n")
    sys.stdout.buffer.write(choice.model or b"")


if __name__ == "__main__":
    main()
