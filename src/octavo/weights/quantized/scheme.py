"""What a folder's configuration says about the quantization of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ModelError
from octavo.weights.hf_json import read_json
from octavo.weights.quantized.awq import Awq
from octavo.weights.quantized.compressed_tensors import CompressedTensors
from octavo.weights.quantized.fp8 import Fp8
from octavo.weights.quantized.gptq import Gptq
from octavo.weights.quantized.parts import Scheme

METHODS: dict[str, type[Awq | Gptq | Fp8 | CompressedTensors]] = {
    "awq": Awq,
    "gptq": Gptq,
    "fp8": Fp8,
    "fbgemm_fp8": Fp8,
    "compressed-tensors": CompressedTensors,
}
"""``quant_method`` -> who understands it."""


def read_scheme(folder: Path) -> Scheme | None:
    """How the weights in ``folder`` are quantized; None: they are plain.

    Raises:
        ModelError: in a way that is not supported, which is named.
    """
    path = folder / "config.json"
    config = read_json(path, dict[str, Any])
    found = config.get("quantization_config", config.get("compression_config"))
    if found is None and (folder / "quantize_config.json").is_file():  # where AutoGPTQ put it first
        path = folder / "quantize_config.json"
        found = {"quant_method": "gptq", **read_json(path, dict[str, Any])}
    try:
        return None if found is None else parse_scheme(found)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def parse_scheme(config: Any) -> Scheme:
    """The same from the configuration's ``quantization_config``."""
    method = config.get("quant_method") if isinstance(config, dict) else None
    if not isinstance(method, str) or method not in METHODS:
        what = "an unnamed method" if method is None else f"{method!r:.40}"
        raise ModelError(f"weights quantized by {what} are not supported; accepted: {', '.join(METHODS)}")
    try:
        return METHODS[method].read(config)
    except msgspec.ValidationError as error:
        raise ModelError(f"quantization_config of {method} cannot be used: {error}") from None
