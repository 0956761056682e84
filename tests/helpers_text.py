"""Small tokenizers trained on the spot: byte-level BPE and SentencePiece BPE with byte fallback."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind: it's 1234 o'clock.",
    "def add(a, b):\n    return a + b  # sums\n\n\nprint(add(1, 22))\t\n",
    "Über den Wolken muß die Freiheit wohl grenzenlos sein; naïve café, déjà vu, œuvre.",
    "Съешь ещё этих мягких французских булок, да выпей же чаю.",
    "敏捷的棕色狐狸跳过了懒狗。 こんにちは世界、さようなら。",
    "Emoji 😀 😃 👩‍👩‍👧 🏳️‍🌈 are fun 🎉🎉 and so are ﬁne ligatures and a\u0301 marks.",
] * 4

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]

TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(" ".join(CORPUS).split(" ")), max_size=12).map(" ".join)
"""Any Unicode (no surrogates) and text of the kind that the small tokenizers were trained on."""


@lru_cache
def byte_level_bpe(special: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2 and Llama 3 have it: special tokens, and BOS added by a post-processor. ``special`` are
    more of these tokens.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([tokenizers.AddedToken("<tool_call>", normalized=False), "你好呀"])
    backend.add_special_tokens(list(special))
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return backend


@lru_cache
def spm_model(**options: Any) -> bytes:
    """A serialized SentencePiece model with Llama's settings, but for ``options``."""
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.98,
        "minloglevel": 2,
        **options,
    }
    model = io.BytesIO()
    sentences = [line for text in CORPUS for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=model, **settings)
    return model.getvalue()


def bpe_metadata(**changes: Any) -> dict[str, Any]:
    """The small byte-level BPE as a GGUF file has it. ``changes``: None takes a key out."""
    model = json.loads(byte_level_bpe().to_str())
    size = byte_level_bpe().get_vocab_size()
    tokens = [byte_level_bpe().id_to_token(i) for i in range(size)]
    special = {t["content"]: 3 if t["special"] else 4 for t in model["added_tokens"]}
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [special.get(t, 1) for t in tokens],
        "merges": [" ".join(pair) for pair in model["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in fields.items() if v is not None}


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """The small SentencePiece model as a GGUF file has it."""
    spm = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
    size = spm.get_piece_size()
    fields = {
        "model": "llama",
        "tokens": [spm.id_to_piece(i) for i in range(size)],
        "scores": [spm.get_score(i) for i in range(size)],
        "token_type": [2 if i == 0 else 3 if i < 3 else 6 if spm.is_byte(i) else 1 for i in range(size)],
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in fields.items() if v is not None}


def save_bpe(folder: Path, special: Sequence[str] = (), **config: Any) -> Path:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    byte_level_bpe(special).save(str(folder / "tokenizer.json"))
    return write_config(folder, bos_token="<s>", eos_token="</s>", **config)


def save_spm(folder: Path, **config: Any) -> Path:
    """Write ``tokenizer.model``, and ``tokenizer_config.json`` if there is something to put in."""
    (folder / "tokenizer.model").write_bytes(spm_model())
    return write_config(folder, **config) if config else folder


def write_config(folder: Path, **config: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
