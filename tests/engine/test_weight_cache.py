"""Weights that are packed once: the second start takes them from a file, and nobody sees a difference."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from helpers_gguf import write_llama
from helpers_models import make_tiny
from octavo import LLM, SamplingParams
from octavo.execution import weight_cache
from octavo.execution.weight_cache import fingerprint, make_room
from octavo.kernels.cpu.build import load_library
from octavo.kernels.cpu.quantized import QuantizedProducts
from octavo.models.loading import weight_tensors

pytestmark = pytest.mark.skipif(load_library() is None, reason="no C compiler")

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
PROMPTS = [[1, 5, 9], list(range(30))]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(weight_cache, "MIN_BYTES", 1)
    monkeypatch.setattr(weight_cache, "LEFT_FREE", 0.0)
    monkeypatch.setenv("OCTAVO_WEIGHT_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    kinds = {kind: write_llama(folder / f"{kind}.gguf", kind)[0] for kind in ("Q4_0", "Q8_0")}
    return {**kinds, "llama": make_tiny("llama", folder)[1], "mixtral": make_tiny("mixtral", folder)[1]}


def start(path: Path, **options) -> tuple[list[object], int]:
    """What an engine says, and how many matrices it had to pack."""
    packed = []
    original = QuantizedProducts.pack
    try:
        QuantizedProducts.pack = lambda self, weight: packed.append(1) or original(self, weight)
        with LLM(str(path), kv_cache_memory=1 << 20, max_model_len=64, **options) as llm:
            outputs = [o.outputs[0] for o in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
    finally:
        QuantizedProducts.pack = original
    return [(o.token_ids, o.logprobs) for o in outputs], len(packed)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Q4_0", {}),
        ("Q8_0", {"dtype": "float32", "quantization": "file"}),
        ("llama", {"quantization": "int8"}),
        ("llama", {"quantization": "w8a8"}),
        ("llama", {"quantization": "fp8-w8a8"}),
        ("mixtral", {"quantization": "int8"}),
    ],
)
def test_the_second_start_packs_nothing_and_says_the_same(models, folder, monkeypatch, name, options):
    said, packed = start(models[name], **options)
    assert packed > 0
    assert len(files(folder)) == 1
    assert start(models[name], **options) == (said, 0)
    monkeypatch.setenv("OCTAVO_WEIGHT_CACHE", "0")
    assert start(models[name], **options) == (said, packed)


def test_each_way_to_pack_has_a_file_of_its_own(models, folder):
    ways = [{}, {"dtype": "float32"}, {"quantization": "int8"}, {"quantization": "file", "dtype": "float32"}]
    for count, way in enumerate(ways, 1):
        start(models["Q4_0"], **way)
        assert len([path for path in files(folder) if path.suffix == ".weights"]) <= count
    assert len(files(folder)) == 3  # a float32 engine expands what it is not told to keep: nothing is packed then


def test_weights_lie_in_the_file(models, folder, monkeypatch):
    """Where the system does not map files in huge pages, and has none, they are not copied either."""
    monkeypatch.setattr("octavo.execution.tensor_file.huge_pages_enabled", lambda: False)
    start(models["Q4_0"])
    with LLM(str(models["Q4_0"]), kv_cache_memory=1 << 20, max_model_len=64) as llm:
        tensors = {t.data_ptr(): t for t in weight_tensors(llm.engine._executor._runner.model)}
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    ranges = [tuple(int(text, 16) for text in line.split()[0].split("-")) for line in mapped]
    assert len(ranges) == 1
    assert all(ranges[0][0] <= address < ranges[0][1] for address in tensors)


def test_a_damaged_file_is_told_of_and_made_again(models, folder, caplog):
    said, packed = start(models["Q4_0"])
    (file,) = files(folder)
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 3] ^= 255
    file.write_bytes(whole)
    with caplog.at_level(logging.WARNING, "octavo"):
        assert start(models["Q4_0"]) == (said, packed)
    assert len([r for r in caplog.records if "cannot be used" in r.getMessage()]) == 1
    assert start(models["Q4_0"]) == (said, 0)


def test_a_file_of_another_model_is_not_believed(models, folder):
    """As if two had the same hash."""
    said, packed = start(models["Q4_0"])
    (file,) = files(folder)
    start(models["llama"], quantization="int8")
    other = next(path for path in files(folder) if path != file)
    shutil.copy(other, file)
    assert start(models["Q4_0"]) == (said, packed)


@pytest.mark.parametrize("problem", ["a file in its place", "a full disk", "no permission"])
def test_a_cache_that_cannot_be_written_is_no_failure(models, folder, monkeypatch, caplog, problem):
    if problem == "a file in its place":
        folder.write_text("")
    elif problem == "a full disk":
        monkeypatch.setattr(weight_cache, "LEFT_FREE", 2.0)
    else:
        monkeypatch.setattr(weight_cache.tempfile, "mkstemp", _refuse)
    with caplog.at_level(logging.WARNING, "octavo"):
        said, packed = start(models["Q4_0"])
    assert said
    assert packed
    assert len([r for r in caplog.records if "cannot be kept" in r.getMessage()]) == 1
    assert folder.is_file() or files(folder) == []


def _refuse(**_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_writer_that_fails_leaves_nothing(models, folder, monkeypatch):
    def fail(file, *_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_cache, "write_tensors", fail)
    start(models["Q4_0"])
    assert files(folder) == []


def test_it_can_be_switched_off(models, folder, monkeypatch):
    monkeypatch.setenv("OCTAVO_WEIGHT_CACHE", "0")
    start(models["Q4_0"])
    assert files(folder) == []


def test_small_models_are_not_kept(models, folder, monkeypatch):
    monkeypatch.setattr(weight_cache, "MIN_BYTES", 16 << 20)
    start(models["Q4_0"])
    assert files(folder) == []


def test_plain_weights_are_not_kept(models, folder):
    start(models["llama"])
    assert files(folder) == []


def test_a_fingerprint_is_of_the_content_not_of_the_path(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes(np.random.default_rng(0).bytes(3 << 20))
        (tmp_path / name / "config.json").write_text("{}")
        for file in (tmp_path / name).iterdir():
            os.utime(file, (7, 7))
    first = fingerprint(tmp_path / "a")
    assert fingerprint(tmp_path / "b") == first

    file = tmp_path / "a" / "w.safetensors"
    content = file.read_bytes()
    for change in (content[:-1], b"x" + content[1:], content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(change)
        os.utime(file, (7, 7))
        assert fingerprint(tmp_path / "a") != first
    file.write_bytes(content)
    os.utime(file, (7, 8))
    assert fingerprint(tmp_path / "a") != first


def test_what_was_not_used_for_the_longest_time_goes(tmp_path):
    names = [f"{i}.weights" for i in range(5)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (i, i))
    stale, fresh, foreign = (tmp_path / name for name in (".new-old", ".new-now", "a.txt"))
    for path in (stale, fresh, foreign):
        path.write_bytes(bytes(1000))
    os.utime(stale, (time.time() - 2 * weight_cache.STALE_SECONDS,) * 2)
    make_room(tmp_path, tmp_path / "0.weights", most=250)
    assert {path.name for path in tmp_path.iterdir()} == {"0.weights", "4.weights", ".new-now", "a.txt"}
    make_room(tmp_path, tmp_path / "0.weights", most=10)
    assert {path.name for path in tmp_path.iterdir()} == {"0.weights", ".new-now", "a.txt"}
