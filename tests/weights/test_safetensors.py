"""Folders of safetensors files, whole and damaged."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers_hf import TINY, write_folder, write_json
from octavo.errors import ModelError
from octavo.weights.safetensors import SafetensorsCheckpoint
from octavo.weights.shards import INDEX


def read_all(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {tensor.name: tensor.read(dtype) for tensor in SafetensorsCheckpoint.open(folder).tensors()}


def write_shards(folder: Path, weight_map: dict[str, str], files: dict[str, dict[str, torch.Tensor]]) -> Path:
    write_json(folder / "config.json", TINY)
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    write_json(folder / INDEX, {"metadata": {"total_size": 1}, "weight_map": weight_map})
    return folder


def raw_file(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_values_come_back_in_any_dtype(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    values = torch.randn(5, 7, dtype=torch.float64).to(stored)
    read = read_all(write_folder(tmp_path, {"w": values}), wanted)["w"]
    assert read.dtype == wanted
    assert torch.equal(read, values.to(wanted))


def test_names_shapes_kinds_and_bytes(tmp_path: Path) -> None:
    tensors = {
        "b": torch.zeros(3, 4, dtype=torch.bfloat16),
        "a": torch.zeros(5),
        "s": torch.tensor(1.0),
        "e": torch.zeros(0, 2),
    }
    found = {
        t.name: (t.shape, t.kind, t.nbytes)
        for t in SafetensorsCheckpoint.open(write_folder(tmp_path, tensors)).tensors()
    }
    assert found == {
        "b": ((3, 4), "BF16", 24),
        "a": ((5,), "F32", 20),
        "s": ((), "F32", 4),
        "e": ((0, 2), "F32", 0),
    }


def test_tensors_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    body = b"\0" * 12
    header = {n: {"dtype": "F32", "shape": [1], "data_offsets": [o, o + 4]} for n, o in (("a", 8), ("b", 0), ("c", 4))}
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(raw_file(header, body))
    assert [t.name for t in SafetensorsCheckpoint.open(tmp_path).tensors()] == ["b", "c", "a"]


def test_reading_without_conversion_copies_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"w": torch.randn(64, 64)})
    tensor = next(SafetensorsCheckpoint.open(folder).tensors())
    assert tensor.read(torch.float32).data_ptr() == tensor.read(torch.float32).data_ptr()


def test_a_tensor_outlives_its_checkpoint(tmp_path: Path) -> None:
    values = torch.randn(256, 256)
    read = read_all(write_folder(tmp_path, {"w": values}))["w"]
    assert torch.equal(read, values)


def test_shards(tmp_path: Path) -> None:
    first, second = {"a": torch.randn(3), "b": torch.randn(2, 2)}, {"c": torch.randn(4)}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"a": names[0], "b": names[0], "c": names[1]}
    read = read_all(write_shards(tmp_path, index, dict(zip(names, (first, second), strict=True))))
    assert read.keys() == {"a", "b", "c"}
    assert all(torch.equal(read[name], value) for name, value in (first | second).items())


def test_links_lead_to_the_weights_as_in_the_hubs_cache(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    write_folder(blobs, {"w": torch.ones(2)})
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(blobs / name)
    assert torch.equal(read_all(folder)["w"], torch.ones(2))


def test_one_file_of_any_name_will_do_but_an_adapter_is_no_model(tmp_path: Path) -> None:
    write_folder(tmp_path, {"w": torch.ones(2)})
    os.rename(tmp_path / "model.safetensors", tmp_path / "weights.safetensors")
    save_file({"lora": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert read_all(tmp_path).keys() == {"w"}
    os.remove(tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="no weights"):
        SafetensorsCheckpoint.open(tmp_path)


def test_the_weights_dtype_is_taken_where_the_config_names_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"w": torch.ones(2, dtype=torch.bfloat16)}, torch_dtype=None)
    assert SafetensorsCheckpoint.open(folder).config.dtype == "bfloat16"


def test_a_config_alone_opens_when_no_weights_are_wanted(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", TINY)
    assert SafetensorsCheckpoint.open(tmp_path, weights=False).config.num_layers == 2
    with pytest.raises(ModelError, match="no weights"):
        SafetensorsCheckpoint.open(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_other_kinds_are_listed_but_not_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = next(SafetensorsCheckpoint.open(write_folder(tmp_path, {"w": torch.zeros(3, dtype=dtype)})).tensors())
    assert tensor.nbytes == 3 * dtype.itemsize
    with pytest.raises(ModelError, match="accepted: F64, F32, F16, BF16"):
        tensor.read(torch.float32)


def test_the_headers_are_read_without_torch(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    code = (
        "import sys; from octavo.weights import open_checkpoint; "
        f"print([t.shape for t in open_checkpoint({str(folder)!r}).tensors()], 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[(2, 3)] False\n"


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
ENTRY = json.dumps(ONE).encode()
DAMAGED = {
    "empty": b"",
    "three bytes": b"abc",
    "zeros": b"\0" * 64,
    "absurd header length": struct.pack("<Q", 2**60) + b"{}",
    "no JSON": raw_file(b"hello"),
    "a list": raw_file(b"[1]"),
    "bad UTF-8": raw_file(b"\xff\xff"),
    "deep": raw_file(b'{"a":' + b"[" * 100_000),
    "truncated": raw_file({"a": ONE}, b"\0" * 4),
    "bytes to spare": raw_file({"a": ONE}, b"\0" * 12),
    "overflow": raw_file({"a": ONE | {"shape": [2**40, 2**40]}}, b"\0" * 8),
    "negative": raw_file({"a": ONE | {"shape": [-2]}}, b"\0" * 8),
    "wrong length": raw_file({"a": ONE | {"shape": [3]}}, b"\0" * 8),
    "overlap": raw_file({"a": ONE, "b": ONE}, b"\0" * 8),
    "unknown kind": raw_file({"a": ONE | {"dtype": "F7"}}, b"\0" * 8),
    "backwards": raw_file({"a": ONE | {"data_offsets": [8, 0]}}, b"\0" * 8),
    "a name twice": raw_file(b'{"a":%b,"a":%b}' % (ENTRY, ENTRY), b"\0" * 8),
    "a key twice": raw_file(b'{"a":%b}' % ENTRY.replace(b"}", b',"dtype":"I32"}'), b"\0" * 8),
    "a pickle": b"\x80\x02}q\x00.",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors (is not a whole|has .* twice)") as caught:
        SafetensorsCheckpoint.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_random_damage_gives_values_or_a_model_error(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": torch.randn(3, 5), "b": torch.randn(7).half()})
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(500):
        data = bytearray(whole[: rng.choice((len(whole), rng.randrange(len(whole))))])
        for _ in range(rng.randrange(1, 4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        os.remove(file)  # a mapped file must not shrink
        file.write_bytes(data)
        message = ""
        try:
            read_all(tmp_path)
        except ModelError as error:
            message = str(error)
        assert "\n" not in message


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0b"])
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    with pytest.raises(ModelError, match="files of the same folder"):
        SafetensorsCheckpoint.open(write_shards(tmp_path / "model", {"a": name}, {}))


@pytest.mark.parametrize("index", [{}, [], *({"weight_map": value} for value in ({}, [], {"a": 1}, None))], ids=str)
def test_a_damaged_index_is_refused(tmp_path: Path, index: Any) -> None:
    write_shards(tmp_path, {}, {})
    write_json(tmp_path / INDEX, index)
    with pytest.raises(ModelError, match=INDEX):
        SafetensorsCheckpoint.open(tmp_path)


def test_an_index_that_has_a_name_twice_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {}, {"a.safetensors": {"x": torch.ones(1)}, "b.safetensors": {"x": torch.zeros(1)}})
    (tmp_path / INDEX).write_text('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}')
    with pytest.raises(ModelError, match=f"{INDEX} has 'x' twice"):
        SafetensorsCheckpoint.open(tmp_path)


def test_an_index_whose_other_names_hold_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Names are looked at in all of it, not only in what is used."""
    write_shards(tmp_path, {}, {"a.safetensors": {"x": torch.ones(1)}})
    (tmp_path / INDEX).write_text('{"metadata": {"n": %s}, "weight_map": {"x": "a.safetensors"}}' % ("9" * 5000))
    with pytest.raises(ModelError, match=f"{INDEX} cannot be used"):
        SafetensorsCheckpoint.open(tmp_path)


def test_shards_that_contradict_the_index_are_refused(tmp_path: Path) -> None:
    a, b = {"x": torch.ones(1)}, {"y": torch.ones(1)}
    index = {"x": "a.safetensors", "y": "b.safetensors"}
    folder = write_shards(tmp_path, index, {"a.safetensors": a})
    with pytest.raises(ModelError, match=r"lacks 'b\.safetensors'"):
        SafetensorsCheckpoint.open(folder)
    write_shards(folder, index | {"z": "b.safetensors"}, {"b.safetensors": b})
    with pytest.raises(ModelError, match=r"'z' is in b\.safetensors, which does not"):
        SafetensorsCheckpoint.open(folder)
    write_shards(folder, index, {"b.safetensors": a | b})
    with pytest.raises(ModelError, match=r"'x' is both in a\.safetensors and b\.safetensors"):
        SafetensorsCheckpoint.open(folder)


def test_links_in_a_circle_and_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, {"x": "a.safetensors"}, {})
    (folder / "a.safetensors").symlink_to(folder / "b.safetensors")
    (folder / "b.safetensors").symlink_to(folder / "a.safetensors")
    with pytest.raises(ModelError, match=r"lacks 'a\.safetensors'"):
        SafetensorsCheckpoint.open(folder)
    os.remove(folder / "a.safetensors")
    os.mkfifo(folder / "a.safetensors")
    with pytest.raises(ModelError, match=r"lacks 'a\.safetensors'"):
        SafetensorsCheckpoint.open(folder)


def test_several_files_without_an_index_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", TINY)
    for name in ("a", "b"):
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match=f"2 safetensors files and no {INDEX}"):
        SafetensorsCheckpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_and_the_reason_given(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "config.json", TINY)
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelError, match=r"pickle .* refused; accepted: \.safetensors"):
        SafetensorsCheckpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["a\nb", "x" * 300, "\x1b[2J", ""])
def test_names_that_would_spoil_a_message(tmp_path: Path, name: str) -> None:
    """An empty name is only unknown; the loader says so."""
    folder = write_folder(tmp_path, {name: torch.ones(1)})
    if not name:
        assert [tensor.name for tensor in SafetensorsCheckpoint.open(folder).tensors()] == [""]
        return
    with pytest.raises(ModelError, match="accepted: names of up to 256 printable characters") as error:
        SafetensorsCheckpoint.open(folder)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_an_index_that_names_itself(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, {"x": INDEX}, {})
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        SafetensorsCheckpoint.open(folder)


def test_an_index_with_a_file_that_spoils_a_message(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, {"x": "a\nb.safetensors"}, {})
    with pytest.raises(ModelError, match="lacks") as error:
        SafetensorsCheckpoint.open(folder)
    assert str(error.value).isprintable()
