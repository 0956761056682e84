from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers_text import save_bpe, save_spm, write_config
from octavo.errors import ModelError
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.spm_tokenizer import SentencePieceTokenizer
from octavo.text.tokenizer import has_tokenizer, load_tokenizer
from octavo.text.tokenizer_config import MAX_CONFIG_BYTES


def test_tokenizer_json_comes_before_tokenizer_model(tmp_path: Path) -> None:
    save_spm(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)
    save_bpe(tmp_path)
    assert isinstance(load_tokenizer(str(tmp_path)), HFTokenizer)


def test_no_tokenizer(tmp_path: Path) -> None:
    other = tmp_path / "stories.txt"
    other.write_bytes(b"abc")
    for path in (tmp_path, tmp_path / "missing", other):
        assert not has_tokenizer(path)
        with pytest.raises(ModelError, match=r"accepted: a folder with tokenizer\.json"):
            load_tokenizer(path)


def test_has_tokenizer(tmp_path: Path) -> None:
    save_bpe(tmp_path)
    assert has_tokenizer(tmp_path)
    assert has_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({}, None),
        ({"chat_template": "A"}, "A"),
        ({"chat_template": None}, None),
        (
            {"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]},
            "D",
        ),
        ({"chat_template": [{"name": "tool_use", "template": "T"}]}, "T"),
        ({"chat_template": []}, None),
    ],
)
def test_chat_template(tmp_path: Path, config: dict[str, object], template: str | None) -> None:
    save_bpe(tmp_path, **config)
    assert load_tokenizer(tmp_path).chat_template == template
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert load_tokenizer(tmp_path).chat_template == "from the file"


def test_tokens_may_be_objects_or_come_from_the_special_tokens_map(tmp_path: Path) -> None:
    save_bpe(tmp_path)
    write_config(tmp_path, bos_token={"content": "<s>", "lstrip": False})
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "bos_token": "</s>"}')
    ours = load_tokenizer(tmp_path)
    assert (ours.bos_token, ours.eos_token) == ("<s>", "<|im_end|>")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "[" * 100_000,
        '{"bos_token": 5}',
        '{"add_bos_token": "yes"}',
        '{"chat_template": 5}',
        '{"added_tokens_decoder": []}',
        '{"added_tokens_decoder": {"x": {"content": "a"}}}',
        '{"added_tokens_decoder": {"-5": {"content": "a"}}}',
        '{"added_tokens_decoder": {"5": {"content": ""}}}',
        '{"added_tokens_decoder": {"5": {}}}',
        " " * (MAX_CONFIG_BYTES + 1),
    ],
)
@pytest.mark.parametrize("save", [save_bpe, save_spm])
def test_damaged_config_gives_one_line(tmp_path: Path, text: str, save: object) -> None:
    save(tmp_path)  # type: ignore[operator]
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ModelError, match="accepted") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_text_needs_no_torch_and_no_transformers(tmp_path: Path) -> None:
    save_bpe(tmp_path)
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from octavo.text import chat, detokenizer, gguf_tokenizer, spm_tokenizer, stop, tokenizer\n"
        "print(tokenizer.load_tokenizer(sys.argv[1]).encode('the'))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[")
