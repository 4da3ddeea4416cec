"""Text in, text out: tokenizer, chat template, streaming detokenizer and stop tokens of a package folder.

Needs `tokenizers`, and `jinja2` for chat; both are imported when first used. No torch, no transformers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import EdgepackError, PackageError, TextFileError
from edgepack.shown import one_line, shown
from edgepack.system.libraries import import_library, no_panic
from edgepack.text.files import MOST_TOKENIZER_BYTES, require_file
from edgepack.text.special_tokens import read_special_tokens
from edgepack.text.start_token import read_start_token
from edgepack.text.stop_tokens import read_eos_token_ids, read_stop_token_ids
from edgepack.text.templates import ChatTemplates, compile_template, one_template, template_sources

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A UTF-8 character is at most 4 bytes long: at most 3 can be waiting for the last one.
_MAX_UNFINISHED_BYTES = 3
# Only a run of tokens that each end inside a character gets this long, in practice noise: do not decode it for ever.
_MAX_PENDING_TOKENS = 64
_MAX_CONTEXT_TOKENS = 8


class TextCodec:
    """The tokenizer and chat template of one package folder.

    Attributes:
        folder: the package folder.
        bos_token_id: id of the start token; None where there is none. Which one it is: `edgepack.text.start_token`.
        eos_token_ids: ids that end an answer: those of generation_config.json and config.json, the tokenizer's own
            `eos_token`, and Gemma's `<end_of_turn>`.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the tokenizer of `folder`: tokenizer.json, and the configs beside it where there are any.

        Raises:
            EdgepackError: the `tokenizers` library is not installed.
            PackageError: the folder has no tokenizer.json, or a file of it cannot be read.
        """
        self.folder = Path(folder)
        self._tokenizer = _open_tokenizer(self.folder)
        self._chat = ChatTemplates(self.folder)
        self._start = read_start_token(self.folder)
        self._silent_ids = frozenset(
            token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self.bos_token_id = self._start.token_id
        self.eos_token_ids = read_stop_token_ids(self.folder)

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the tokenizer; a model's logits are often padded to more."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Return the token ids of `text`; special tokens written in it count as such.

        With `add_bos` the result starts with the start token, where plain texts of this tokenizer do. A `text` (a
        rendered chat) that starts with it already gets no second one.

        Raises:
            EdgepackError: `text` is not valid Unicode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise EdgepackError(f"the text is not valid Unicode (character {error.start}): expected UTF-8") from None
        with no_panic(self.folder / "tokenizer.json"):
            ids: list[int] = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        bos = self.bos_token_id
        if not add_bos or bos is None or not self._start.before_texts or ids[:1] == [bos]:
            return ids
        return [bos, *ids]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of `token_ids`, without special tokens; ids that the tokenizer does not know are left out."""
        spoken = [int(token_id) for token_id in token_ids if int(token_id) not in self._silent_ids]
        with no_panic(self.folder / "tokenizer.json"):
            return str(self._tokenizer.decode(spoken, skip_special_tokens=False))

    def stream(self, context_ids: Sequence[int] = (), stop_strings: Sequence[str] = ()) -> StreamDecoder:
        """Return a decoder for tokens that arrive one at a time and continue `context_ids` (the prompt)."""
        return StreamDecoder(self, context_ids, stop_strings)

    def is_silent(self, token_id: int) -> bool:
        """Whether `token_id` is a special token, which has no text."""
        return token_id in self._silent_ids

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the text of a conversation, see `ChatTemplates.render`; `encode` takes it as it is."""
        return self._chat.render(messages, add_generation_prompt, tools)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` has a template."""
        return self._chat.exist


class StreamDecoder:
    """Turns tokens into text one at a time; the pieces, joined, are the text of the whole.

    A token alone has no right text: a character may be spread over several byte tokens, and some tokenizers drop a
    leading space at the start of a text. So each step decodes the pending tokens behind those before them, and shows
    what came to it. An unfinished character decodes to replacement characters: these are held back, and their tokens
    stay pending, until the bytes that follow have settled what they are.

    Attributes:
        stopped: a stop string was met; the text before it has been returned, nothing follows.
    """

    def __init__(self, codec: TextCodec, context_ids: Sequence[int] = (), stop_strings: Sequence[str] = ()) -> None:
        stop_strings = (stop_strings,) if isinstance(stop_strings, str) else stop_strings  # one, not its letters
        if not all(stop_strings):
            raise EdgepackError(f"stop strings {shown(list(stop_strings))}: expected texts that are not empty")
        self.stopped = False
        self._codec = codec
        self._stops = tuple(stop_strings)
        self._before = self._tail(context_ids)
        self._pending: list[int] = []
        self._shown_chars = 0  # of the text of the pending tokens
        self._held = ""  # what may become a stop string

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes, often empty."""
        if self.stopped or self._codec.is_silent(token_id):
            return ""
        self._pending.append(token_id)
        text = self._new_text(self._pending)
        unsettled = min(len(text) - len(text.rstrip(_REPLACEMENT)), _MAX_UNFINISHED_BYTES)
        if unsettled and len(self._pending) < _MAX_PENDING_TOKENS:
            settled = len(text) - unsettled
            piece = text[self._shown_chars : settled]
            self._shown_chars = max(self._shown_chars, settled)
        else:
            piece = text[self._shown_chars :]
            self._before = (self._pending if text else self._before + self._pending)[-_MAX_PENDING_TOKENS:]
            self._pending, self._shown_chars = [], 0
        return self._release(piece, last=False)

    def flush(self) -> str:
        """Return what is still held back; call it once, after the last token."""
        if self.stopped:
            return ""
        piece = self._new_text(self._pending)[self._shown_chars :] if self._pending else ""
        self._pending, self._shown_chars = [], 0
        return self._release(piece, last=True)

    def _new_text(self, ids: list[int]) -> str:
        before = self._codec.decode(self._before)
        after = self._codec.decode(self._before + ids)
        # A stray byte can turn the bytes before it, already shown, into replacement characters: then start afresh.
        return after[len(before) :] if after.startswith(before) else self._codec.decode(ids)

    def _tail(self, context_ids: Sequence[int]) -> list[int]:
        """The end of the prompt, as context of the first token: cut where no character is cut."""
        spoken = [int(i) for i in context_ids[-4 * _MAX_CONTEXT_TOKENS :] if not self._codec.is_silent(int(i))]
        for count in range(min(_MAX_CONTEXT_TOKENS, len(spoken)), 0, -1):
            if _REPLACEMENT not in self._codec.decode(spoken[-count:]):
                return spoken[-count:]
        return []

    def _release(self, piece: str, last: bool) -> str:
        """Return what of the text so far can be shown: up to a stop string, and not what may become one."""
        text = self._held + piece
        found = [position for position in (text.find(stop) for stop in self._stops) if position >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def read_tokenizer(folder: str | Path, name: str = "tokenizer.json") -> bytes | None:
    """Return the content of tokenizer.json, or of another tokenizer file; None where there is none.

    Raises:
        PackageError: it is no file, too large, or cannot be read.
    """
    path = Path(folder) / name
    try:
        require_file(path, MOST_TOKENIZER_BYTES)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TextFileError(f"{path}: cannot be read: {error.strerror}") from error


def read_chat_template(folder: str | Path) -> str | None:
    """Return the source of the chat template, see `one_template`; None where there is none."""
    return one_template(template_sources(Path(folder)))


def check_text_files(folder: str | Path) -> None:
    """Check what can be checked of tokenizer, chat template and stop tokens in `folder` without opening the tokenizer.

    Opening Gemma's takes 0.4 GB. Its file is only looked at for the usual damage, a download that stopped early.
    Templates are compiled where `jinja2` is installed.

    Raises:
        EdgepackError: a file is no JSON or no text, or holds a wrong stop token or a template that is not Jinja.
    """
    folder = Path(folder)
    read_eos_token_ids(folder)
    read_special_tokens(folder)
    sources = template_sources(folder)
    if importlib.util.find_spec("jinja2"):
        for source in sources.values():
            compile_template(folder, source)
    _check_ends(folder / "tokenizer.json")


def _check_ends(path: Path) -> None:
    """Refuse a JSON object that does not begin or end as one. A file that is not there is none."""
    try:
        size = require_file(path, MOST_TOKENIZER_BYTES)
        with path.open("rb") as file:
            head = file.read(64).lstrip()
            file.seek(max(0, size - 64))
            tail = file.read().rstrip()
    except FileNotFoundError:
        return
    except OSError as error:
        raise TextFileError(f"{path}: cannot be read: {error.strerror}") from error
    if not (head.startswith(b"{") and tail.endswith(b"}")):
        raise TextFileError(f"{path}: expected a JSON object, got a file that is cut or something else: fetch it again")


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a true beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _open_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        require_file(path, MOST_TOKENIZER_BYTES)
    except FileNotFoundError as error:
        raise PackageError(
            f"{folder}: this package has no tokenizer (tokenizer.json): text cannot be read or written, "
            "pass token ids instead"
        ) from error
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror}") from error
    tokenizers = import_library("tokenizers")
    try:
        with no_panic(path):
            tokenizer: Tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except PackageError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise PackageError(f"{path}: not a tokenizer that can be read: {one_line(error)}") from error
    # Settings of the training run that may have been saved along: they would cut or pad prompts without a word.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
