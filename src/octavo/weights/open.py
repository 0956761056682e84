"""Open a model on disk, choosing the reader by what is there."""

from __future__ import annotations

from pathlib import Path

from octavo.errors import ModelError
from octavo.weights.checkpoint import Checkpoint
from octavo.weights.llama2c import Llama2cCheckpoint, is_llama2c
from octavo.weights.shards import INDEX, safetensors_files

ACCEPTED = (
    "a .gguf file, a .bin file of llama2.c, or a folder with config.json and .safetensors files (or with one such file)"
)


def open_checkpoint(path: Path | str, weights: bool = True) -> Checkpoint:
    """Open the folder or file ``path``. ``weights=False`` is content with a folder that has a config alone.

    Raises ``ModelError`` for a path that does not exist, and for what is not a model that Octavo can read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path, weights)
        if not path.is_file():
            raise ModelError(f"{path}: no such file or folder; accepted: {ACCEPTED}")
        return _open_file(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        from octavo.weights.gguf import GGUFCheckpoint

        return GGUFCheckpoint.open(path)
    if is_llama2c(path):
        return Llama2cCheckpoint.open(path)
    if path.suffix == ".safetensors" and (path.parent / "config.json").exists():
        raise ModelError(f"{path} is one file of a model; accepted: its folder, {path.parent}")
    raise ModelError(f"{path} is not a model that can be opened; accepted: {ACCEPTED}")


def _open_folder(folder: Path, weights: bool) -> Checkpoint:
    ggufs = sorted(f for f in folder.glob("*.gguf") if f.is_file())
    if ggufs and not safetensors_files(folder) and not (folder / INDEX).exists():
        if len(ggufs) > 1:
            names = ", ".join(f.name for f in ggufs[:10])
            raise ModelError(f"{folder} has {len(ggufs)} .gguf files; accepted: the path of one of {names}")
        return _open_file(ggufs[0])
    if not (folder / "config.json").exists():
        models = [file for file in sorted(folder.glob("*.bin")) if file.is_file() and is_llama2c(file)]
        if len(models) == 1:
            return _open_file(models[0])
        raise ModelError(f"{folder} has no config.json; accepted: {ACCEPTED}")
    from octavo.weights.safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint.open(folder, weights)
