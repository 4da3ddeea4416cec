"""`edgepack generate`: run a package on a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgepack.api import load
from edgepack.cli.console import err, stdout_to_stderr, told_of_interruption
from edgepack.cli.options import JsonOption, PackageArgument, RuntimeOption, ThreadsOption
from edgepack.errors import EdgepackError
from edgepack.shown import shown


def command(
    package: PackageArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Text to continue.")] = None,
    token_ids: Annotated[
        str | None,
        typer.Option("--token-ids", metavar="2,818,...", help="Token ids to continue, in place of a prompt."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer the prompt through the package's chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, metavar="N")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", metavar="K", help="0 switches it off.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", metavar="P", help="1 switches it off.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="1 switches it off.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", metavar="S", help="Makes sampling repeatable.")] = None,
    runtime: RuntimeOption = None,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
) -> None:
    """Generate text with a package; streams to stdout, statistics go to stderr."""
    if (prompt is None) == (token_ids is None):
        raise EdgepackError("nothing to continue: pass either --prompt TEXT or --token-ids 2,818,...")
    if chat and prompt is None:
        raise EdgepackError("--chat answers a --prompt: token ids are continued as they are")
    ids = _parse_ids(token_ids) if token_ids is not None else None
    pieces: list[Any] = []
    with told_of_interruption(lambda: _cut_short(pieces, json_output)), _loaded(package, runtime, threads) as model:
        from edgepack_runtimes.sampling import SamplingParams

        sampling = SamplingParams(
            temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed
        )
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling}
        if ids is not None:
            stream: Any = model.generate(ids, **options)
        else:
            stream = model.generate_text(prompt or "", chat=chat, **options)
        for piece in stream:
            pieces.append(piece)
            if not json_output:
                typer.echo(piece if ids is None else f"{piece} ", nl=False)
    _finish(stream, {"text": "".join(pieces)} if ids is None else {"token_ids": pieces}, json_output)


def _loaded(package: Path, runtime: str | None, threads: int | None) -> Any:
    with stdout_to_stderr():  # what a library has to say would be read as the answer
        return load(package, runtime=runtime, threads=threads)


def _cut_short(pieces: list[Any], json_output: bool) -> str:
    """End the line of an answer that a signal cuts short, and say so."""
    if json_output or not pieces:
        return "no answer was printed"
    typer.echo()
    return "the answer is not complete"


def _finish(stream: Any, answer: dict[str, Any], json_output: bool) -> None:
    """Statistics after the last piece: on stderr, or with the answer in one JSON document."""
    stats = stream.stats
    if json_output:
        typer.echo(json.dumps({**answer, "finish_reason": stream.finish_reason, **stats.model_dump()}))
        return
    typer.echo()
    decode = f", decode {stats.decode_tokens_per_s:.1f} tok/s" if stats.decode_tokens_per_s else ""
    err.print(
        f"{stats.new_tokens} tokens ({stream.finish_reason}); prompt {stats.prompt_tokens} tokens, first token after "
        f"{stats.ttft_ms:.0f} ms, prefill {stats.prefill_tokens_per_s:.1f} tok/s{decode}"
    )


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise EdgepackError(
            f"token ids {shown(text)} are not understood: expected whole numbers such as 2,818,5279"
        ) from None
