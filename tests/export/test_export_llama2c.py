"""llama2.c's layouts, byte by byte against an independent writer."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers_export import export
from helpers_llama2c import write_llama2c
from helpers_models import make_tiny
from helpers_text import CORPUS, save_spm
from octavo.errors import ModelError, UsageError
from octavo.text.tokenizer import load_tokenizer


@pytest.mark.parametrize("name", ["llama", "llama-mha", "llama-tied"])
@pytest.mark.parametrize(("quantize", "version"), [(None, 1), ("int8", 2)])
def test_the_same_bytes(name: str, quantize: str | None, version: int, tmp_path: Path) -> None:
    model, path = make_tiny(name, tmp_path)
    group = 4  # the largest half of 64 that divides 48 and 84
    write_llama2c(tmp_path / "expected.bin", model, version, group)
    report = export(path, tmp_path / "out.bin", format="llama2c", quantize=quantize)
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "expected.bin").read_bytes()
    errors = {tensor.relative_rms > 0 for tensor in report.tensors if len(tensor.shape) == 2}
    assert errors == {version == 2}
    assert "SentencePiece" in report.notes[0]


def test_the_tokenizer_is_beside_it(tmp_path: Path) -> None:
    import helpers_models

    helpers_models.TINY["words"] = helpers_models._llama(vocab_size=640)
    _, path = make_tiny("words", tmp_path)
    save_spm(path)
    (tmp_path / "out").mkdir()
    report = export(path, tmp_path / "out" / "model.bin", format="llama2c")
    assert sorted(report.files) == ["model.bin", "tokenizer.bin"]
    before, after = load_tokenizer(path), load_tokenizer(tmp_path / "out" / "model.bin")
    assert [after.encode(text) for text in CORPUS[:6]] == [before.encode(text) for text in CORPUS[:6]]
    with pytest.raises(UsageError, match=r"tokenizer\.bin' is there already"):
        export(path, tmp_path / "out" / "other.bin", format="llama2c")
    for name in ("tokenizer.bin", "Tokenizer.bin"):
        with pytest.raises(UsageError, match="is where the tokenizer goes"):
            export(path, tmp_path / "out" / name, format="llama2c", force=True)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["model.bin", "tokenizer.bin"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qwen2", "architecture is Qwen2ForCausalLM"),
        ("llama-bias", "biases"),
        ("llama-linear", "rope_scaling is linear"),
        ("llama-head-dim", "head_dim is 20"),
        ("mistral", "sliding_window is 9"),
    ],
)
def test_other_models_are_refused(name: str, reason: str, tmp_path: Path) -> None:
    _, path = make_tiny(name, tmp_path)
    with pytest.raises(ModelError, match=reason):
        export(path, tmp_path / "out.bin", format="llama2c")
    assert not (tmp_path / "out.bin").exists()


def test_other_numbers_are_refused(tmp_path: Path) -> None:
    _, path = make_tiny("llama", tmp_path)
    with pytest.raises(UsageError, match="accepted: int8, or none"):
        export(path, tmp_path / "out.bin", format="llama2c", quantize="int4")
    with pytest.raises(UsageError, match="accepted: float32"):
        export(path, tmp_path / "out.bin", format="llama2c", dtype="bfloat16")
