"""Models from the Hugging Face hub, with ``huggingface_hub``'s cache, tokens and resumed downloads."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from octavo.errors import ModelError
from octavo.weights.shards import INDEX, safetensors_files

FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt"]
IGNORED = ["*/*", "consolidated*"]
"""What a model needs of a repository, and what looks like it but holds the same weights once more."""

_NAME = r"[A-Za-z0-9][\w.-]*"
_REFERENCE = re.compile(rf"({_NAME}/{_NAME})(?:[:/](.+\.gguf))?")


def parse_hub_id(model: str) -> tuple[str, str | None] | None:
    """``owner/name``, ``owner/name:file.gguf`` or ``owner/name/file.gguf`` -> repository, file."""
    match = _REFERENCE.fullmatch(model)
    return (match[1], match[2]) if match else None


def fetch_hub(
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    progress: bool = True,
    file: str | None = None,
) -> Path:
    """Return a local folder with the model, or the path of one GGUF ``file``; download what is not cached.

    ``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_ENDPOINT`` are honoured. Raises ``ModelError`` for
    whatever keeps the model from coming.
    """
    # A file's name is taken as it is, whatever wildcards it seems to have.
    wanted = [glob.escape(file)] if file else FILES
    folder = _snapshot(repo_id, revision, token, progress, wanted, None if file else IGNORED)
    if file is None:
        if not safetensors_files(folder) and not (folder / INDEX).exists():
            raise ModelError(_without_weights(repo_id, revision, token))
        return folder
    if not (folder / file).is_file():
        raise ModelError(f"{repo_id} has no file {file}; {_choices(repo_id, revision, token)}")
    return folder / file


def _snapshot(
    repo_id: str,
    revision: str | None,
    token: str | None,
    progress: bool,
    wanted: list[str],
    ignored: list[str] | None,
) -> Path:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            tqdm_class=_bar(progress),
            allow_patterns=wanted,
            ignore_patterns=ignored,
        )
    except Exception as error:  # what a transport raises differs between the library's versions
        raise ModelError(f"{repo_id}: {_reason(error, revision)}") from error
    return Path(folder)


def _bar(progress: bool) -> Any:
    """None for the library's own progress bars, or a class that shows nothing."""
    if progress:
        return None
    from tqdm.auto import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def _reason(error: Exception, revision: str | None) -> str:
    """One line for what went wrong, and what can be done about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the hub gives it only to accounts that accepted its terms; accept them there and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository on the hub, or it is private and HF_TOKEN has no right to it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it; accepted: a branch, a tag or a commit"
    if isinstance(error, errors.HFValidationError):
        return f"not a valid repository name ({_first_line(error)})"
    if (status := _status(error)) in (401, 403):
        return f"the hub refuses access (HTTP {status}); set HF_TOKEN to a token that may read it"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _not_cached(error)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"cannot be stored in {error.filename} ({error.strerror}); set HF_HOME to a folder with room"
    if isinstance(error, OSError) and error.errno == 28:  # ENOSPC; a write has no file name to tell
        return "the disk is full; set HF_HOME to a folder with room"
    what = f"{type(error).__name__}: {_first_line(error)}"
    return f"the download failed ({what}); run it again to go on where it stopped"


def _not_cached(error: Exception) -> str:
    if _offline():
        return "not (or not wholly) in the local cache; HF_HUB_OFFLINE is set, unset it to download"
    cause = error.__cause__ or error.__context__
    detail = f" ({_first_line(cause)})" if cause is not None else ""
    return f"not (or not wholly) in the local cache, and the hub cannot be reached{detail}; check the network"


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _without_weights(repo_id: str, revision: str | None, token: str | None) -> str:
    return f"{repo_id} has no .safetensors files; {_choices(repo_id, revision, token)}"


def _choices(repo_id: str, revision: str | None, token: str | None) -> str:
    """Which GGUF files of the repository could be named instead."""
    import huggingface_hub

    try:
        files = huggingface_hub.list_repo_files(repo_id, revision=revision, token=token)
    except Exception:  # it only makes the message better
        return "and the hub cannot be asked which .gguf files it has"
    ggufs = sorted(name for name in files if name.endswith(".gguf"))
    if not ggufs:
        return "nor any .gguf files; accepted: a repository with either"
    more = f" and {len(ggufs) - 8} more" if len(ggufs) > 8 else ""
    return f"accepted: {', '.join(f'{repo_id}:{name}' for name in ggufs[:8])}{more}"
