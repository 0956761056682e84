"""What the engine asks of a tokenizer, and the way to find the right one for a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from octavo.errors import ModelError, RequestError
from octavo.text.tokenizer_config import TokenizerConfig

ACCEPTED = "a folder with tokenizer.json, tokenizer.model or tokenizer.bin, one of these files, or a .gguf file"


class Tokenizer(ABC):
    """Text to token ids and back.

    Every token writes a fixed sequence of bytes (``token_bytes``), and a text is the concatenation of what
    its tokens write, read as UTF-8. This one property makes ``decode`` short and the incremental detokenizer
    exact.

    Attributes:
        bos_token, eos_token: the texts of these tokens, or None.
        bos_token_id, eos_token_id: their ids, or None.
        special_ids: ids of the control tokens, which ``decode`` leaves out unless told otherwise.
        strips_leading_space: decoding from the start of a text drops one leading space (SentencePiece's dummy
            prefix).
        chat_template: the model's Jinja chat template, or None.
    """

    def __init__(self, config: TokenizerConfig, special_ids: Iterable[int], strips_leading_space: bool) -> None:
        self.bos_token = config.bos_token
        self.eos_token = config.eos_token
        self.chat_template = config.chat_template
        self.bos_token_id = self._optional_id(config.bos_token)
        self.eos_token_id = self._optional_id(config.eos_token)
        named = (i for i in (self.bos_token_id, self.eos_token_id) if i is not None)
        self.special_ids = frozenset((*special_ids, *named))
        self.strips_leading_space = strips_leading_space
        self._written: dict[int, bytes] = {}

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many tokens there are, the added ones included. A model may have more rows (padding)."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, or None."""

    @abstractmethod
    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>"); None for an unused id."""

    @abstractmethod
    def _encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    @abstractmethod
    def _write(self, token: str) -> bytes: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; ``add_special_tokens`` puts BOS (and EOS) where the model wants them.

        Special tokens that are spelled out in ``text`` become their ids either way.

        Raises:
            RequestError: ``text`` is no string, or holds half of a surrogate pair.
        """
        if not isinstance(text, str):
            raise RequestError(f"a prompt of type {type(text).__name__} cannot be tokenized; accepted: a string")
        if not text.isascii():
            _reject_surrogates(text)
        return self._encode(text, add_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token writes; none for an id that is not in use."""
        written = self._written.get(token_id)
        if written is None:
            token = self.id_to_token(token_id)
            written = self._written[token_id] = b"" if token is None else self._write(token)
        return written

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``; bytes that are no UTF-8 become U+FFFD."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        text = b"".join([self.token_bytes(i) for i in token_ids if i not in skipped]).decode("utf-8", "replace")
        return text[1:] if self.strips_leading_space and text.startswith(" ") else text

    def _optional_id(self, token: str | None) -> int | None:
        return None if token is None else self.token_to_id(token)


def has_tokenizer(path: Path | str) -> bool:
    """Whether the model at ``path`` brings a tokenizer, damaged or not."""
    path = Path(path)
    if path.is_dir():
        file = _file_in(path)
        return file is not None and has_tokenizer(file)
    if not path.is_file():
        return False
    if not _is_gguf(path):
        beside = _beside_llama2c(path)
        if beside is not None:
            return _file_in(beside) is not None
        return path.suffix in (".json", ".model") or path.name == "tokenizer.bin"
    from octavo.weights.gguf_file import open_gguf

    return "tokenizer.ggml.model" in open_gguf(path).metadata


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of the model at ``path``: a folder, a vocabulary's file, or a model's.

    A GGUF file has it inside, a checkpoint of llama2.c beside it.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _load_from_folder(path)
    if not path.is_file():
        raise ModelError(f"{path}: no tokenizer there; accepted: {ACCEPTED}")
    if _is_gguf(path):
        from octavo.text.gguf_tokenizer import load_gguf_tokenizer

        return load_gguf_tokenizer(path)
    beside = _beside_llama2c(path)
    return _load_single_file(path) if beside is None else _load_from_folder(beside)


def _load_from_folder(folder: Path) -> Tokenizer:
    file = _file_in(folder)
    if file is None:
        raise ModelError(f"{folder}: no tokenizer in this folder; accepted: {ACCEPTED}")
    return load_tokenizer(file)


def _file_in(folder: Path) -> Path | None:
    """The folder's vocabulary: of the usual names the first, else its only GGUF file."""
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer.bin"):
        if (folder / name).is_file():
            return folder / name
    ggufs = list(folder.glob("*.gguf"))
    return ggufs[0] if len(ggufs) == 1 and ggufs[0].is_file() else None


def _load_single_file(path: Path) -> Tokenizer:
    if path.suffix == ".json":
        from octavo.text.hf_tokenizer import load_hf_tokenizer

        return load_hf_tokenizer(path)
    if path.suffix == ".model":
        from octavo.text.spm_tokenizer import load_model_file

        return load_model_file(path)
    if path.suffix == ".bin":
        from octavo.text.llama2c_tokenizer import load_llama2c_tokenizer

        return load_llama2c_tokenizer(path)
    raise ModelError(f"{path}: not a tokenizer; accepted: {ACCEPTED}")


def _beside_llama2c(path: Path) -> Path | None:
    """The folder around a checkpoint of llama2.c; None for another file."""
    if path.suffix != ".bin":
        return None
    from octavo.weights.llama2c import is_llama2c

    return path.parent if is_llama2c(path) else None


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


def _reject_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at position {error.start}"
        raise RequestError(f"the text holds half of a surrogate pair ({found}); accepted: valid Unicode") from None
