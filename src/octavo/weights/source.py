"""From what the user calls a model to where it is on disk."""

from __future__ import annotations

import os
from pathlib import Path

from octavo.errors import ModelError, UsageError, nearest
from octavo.weights.bundled import BUNDLED, fetch_bundled
from octavo.weights.hub import fetch_hub, parse_hub_id

_MODEL_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pth", ".pt", ".json")


def resolve(model: str | os.PathLike[str], *, revision: str | None = None, progress: bool = True) -> Path:
    """Return the folder or file of ``model``, fetching it if need be.

    ``model`` is, in this order, the alias of a bundled model; a folder or file that exists; ``owner/name``
    on the hub, or ``owner/name:file.gguf``. ``revision`` is a branch, tag or commit, and only a hub
    repository has one. Raises ``ModelError``, or ``UsageError`` for a revision of something else.
    """
    name = os.fspath(model)
    path = os.path.expanduser(name)
    hub = parse_hub_id(name)
    if revision is not None and (name in BUNDLED or os.path.exists(path) or hub is None):
        raise UsageError(f"revision={revision!r} is for a hub repository (owner/name); {name!r} is none")
    if name in BUNDLED:
        return fetch_bundled(name, progress)
    if name and os.path.exists(path):
        return Path(path)
    if hub is None or _looks_like_path(name, hub[1]):
        raise ModelError(_unknown(name))
    return fetch_hub(hub[0], revision, progress=progress, file=hub[1])


def _looks_like_path(name: str, file: str | None) -> bool:
    """Whether a missing ``name`` was meant as a path, so that the hub is not asked for it."""
    return file is None and name.endswith(_MODEL_SUFFIXES)


def _unknown(name: str) -> str:
    if not name:
        return f"the model's name is empty; accepted: {_accepted()}"
    if os.sep in name or name.startswith((".", "~")) or name.endswith(_MODEL_SUFFIXES):
        return f"{name}: no such file or folder"
    return f"no model {name!r}{nearest(name, BUNDLED)}; accepted: {_accepted()}"


def _accepted() -> str:
    return f"an alias ({', '.join(BUNDLED)}), a folder, a .gguf file, or owner/name on the Hugging Face hub"
