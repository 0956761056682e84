"""``octavo inspect``: what a model is, and how much of it fits here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from octavo.config import ModelConfig
    from octavo.inspect_model import Fit, ModelReport


@click.command()
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit of a hub repository.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(model: str, revision: str | None, as_json: bool) -> None:
    """Print what MODEL is, without loading it: its shape, its size on disk, and what fits in this machine's
    memory."""
    from octavo.execution.memory import free_memory
    from octavo.inspect_model import inspect_model, to_dict
    from octavo.weights.open import open_checkpoint
    from octavo.weights.source import resolve

    checkpoint = open_checkpoint(resolve(model, revision=revision))
    report = inspect_model(checkpoint, free_memory())
    click.echo(json.dumps(to_dict(report), indent=2) if as_json else "\n".join(lines(report)))


def lines(report: ModelReport) -> list[str]:
    """The report as aligned lines of text."""
    rows = [("path", report.path), *_config_rows(report.config), *_size_rows(report)]
    rows.append(("memory available", _bytes(report.memory_available)))
    rows += [(f"in {fit.dtype}", _fit_text(fit)) for fit in report.fits]
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}  {text}" for label, text in rows]


def _config_rows(config: ModelConfig) -> list[tuple[str, str]]:
    heads = f"{config.num_heads} query, {config.num_kv_heads} key/value, of {config.head_dim}"
    hidden = f"{config.hidden_size}, intermediate {config.intermediate_size}"
    return [
        ("architecture", config.architecture),
        ("layers", str(config.num_layers)),
        ("heads", heads),
        ("hidden size", hidden),
        ("vocabulary", f"{config.vocab_size:,} tokens{_tied(config)}"),
        ("context", f"{config.max_position_embeddings:,} tokens{_windows(config)}"),
        ("rope", _rope_text(config)),
        ("dtype", config.dtype),
        ("eos token ids", ", ".join(map(str, config.eos_token_ids)) or "none"),
    ]


def _size_rows(report: ModelReport) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{kind} {_bytes(size)}" for kind, size in report.bytes_by_kind.items())
    return [
        ("chat template", "yes" if report.chat_template else "no"),
        ("parameters", f"{report.num_parameters:,} in {report.num_tensors} tensors"),
        ("on disk", f"{_bytes(sum(report.bytes_by_kind.values()))}: {kinds}"),
    ]


def _tied(config: ModelConfig) -> str:
    return ", input and output embeddings tied" if config.tie_word_embeddings else ""


def _windows(config: ModelConfig) -> str:
    sliding = [window for window in config.sliding_windows if window is not None]
    return f", {len(sliding)} layers see the last {min(sliding):,}" if sliding else ""


def _rope_text(config: ModelConfig) -> str:
    scaling = config.rope_scaling
    return f"theta {config.rope_theta:g}" + (f", {scaling.kind} scaling" if scaling else "")


def _fit_text(fit: Fit) -> str:
    text = f"weights {_bytes(fit.weights_bytes)}, KV cache {_bytes(fit.kv_bytes_per_token)} a token"
    if not fit.kv_tokens:
        return f"{text}: does not fit"
    requests = ", ".join(f"{count:,} of {length:,}" for length, count in fit.requests.items())
    return f"{text}: {fit.kv_tokens:,} tokens fit, so many requests at once: {requests}"


def _bytes(count: int) -> str:
    """Bytes in the largest binary unit that leaves a whole part."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
