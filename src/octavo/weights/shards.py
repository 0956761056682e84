"""Which files of a Hugging Face folder hold the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from octavo.errors import ModelError
from octavo.weights.hf_json import IndexJson, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True, slots=True)
class Shards:
    """The safetensors files of a model in order, and ``index``: tensor name -> file name (empty without an
    index)."""

    files: list[Path]
    index: dict[str, str] = field(default_factory=dict)


def find_shards(folder: Path) -> Shards:
    """Find the weights in ``folder``: ``model.safetensors``, the files of the index, or the only safetensors
    file.

    Raises ``ModelError`` when there are none, too many, or when the index points out of the folder or to
    nothing.
    """
    if (folder / SINGLE).is_file():
        return Shards([folder / SINGLE])
    if (folder / INDEX).exists():
        return _from_index(folder)
    files = safetensors_files(folder)
    if len(files) == 1:
        return Shards(files)
    if files:
        raise ModelError(f"{folder} has {len(files)} safetensors files and no {INDEX} to tell which belong together")
    raise ModelError(_no_weights(folder))


def safetensors_files(folder: Path) -> list[Path]:
    """The weights in ``folder`` by their names' ending; LoRA adapters are not weights of a model."""
    return sorted(f for f in folder.glob("*.safetensors") if not f.name.startswith("adapter") and f.is_file())


def _from_index(folder: Path) -> Shards:
    index = read_json(folder / INDEX, IndexJson, unique_names=True).weight_map
    names = sorted(set(index.values()))
    if not names:
        raise ModelError(f"{folder / INDEX} names no tensors")
    for name in names:
        # A shard may be a link (the hub's cache is made of them), but the index itself may not lead
        # elsewhere.
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ModelError(f"{folder / INDEX} names the file {name!r:.200}; accepted: files of the same folder")
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name!r:.200}, which {INDEX} names")
    return Shards([folder / name for name in names], index)


def _no_weights(folder: Path) -> str:
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLES)
    if pickles:
        return (
            f"{folder} has weights only as a pickle ({pickles[0]}), which can run any code when it is opened "
            f"and is refused; accepted: .safetensors, .gguf"
        )
    return f"{folder} has no weights; accepted: {SINGLE}, {INDEX} and its files, or one .gguf"
