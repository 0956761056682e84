"""The tokenizer's files of an exported Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from octavo.errors import ModelError
from octavo.export.gguf_tokenizer import adds_bos
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.spm_tokenizer import SentencePieceTokenizer
from octavo.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a folder may have of a tokenizer."""


def write_tokenizer(source: Path, folder: Path) -> list[str]:
    """Copy the tokenizer's files of the model at ``source``, or write them; sentences on what could not be written."""
    if source.is_dir() and any((source / name).is_file() for name in FILES[:2]):
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return []
    if not has_tokenizer(source):
        return ["the model has no tokenizer, so none was written"]
    try:
        _write(load_tokenizer(source), folder)
    except ModelError as error:
        return [f"the tokenizer was not written: {error}"]
    return []


def _write(tokenizer: Tokenizer, folder: Path) -> None:
    match tokenizer:
        case HFTokenizer():
            (folder / "tokenizer.json").write_text(_with_bos(tokenizer), encoding="utf-8")
            config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        case SentencePieceTokenizer():
            (folder / "tokenizer.model").write_bytes(tokenizer.model_proto)
            config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": adds_bos(tokenizer)}
        case _:
            raise ModelError(f"a {type(tokenizer).__name__} has no files in a Hugging Face folder")
    config |= {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    config |= {"chat_template": tokenizer.chat_template, "clean_up_tokenization_spaces": False}
    known = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _with_bos(tokenizer: HFTokenizer) -> str:
    """The library's JSON, in which a post-processor adds the BOS that the tokenizer adds by itself."""
    if not adds_bos(tokenizer):
        return tokenizer.to_json()
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    if backend.encode("").ids[:1] == [tokenizer.bos_token_id]:
        return backend.to_str()
    bos = str(tokenizer.bos_token)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return backend.to_str()
