"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo.config import DTYPES, KV_DTYPES, LOADED_PER_PLACE, QUANTIZATIONS, EngineConfig
from octavo.errors import UsageError
from octavo.large_imports import large_imports

if TYPE_CHECKING:
    from octavo.llm import LLM

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class ByteSize(click.ParamType):
    """A number of bytes: ``4G``, ``512M``, ``1.5GiB``, ``1000000``."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(value).strip(), re.IGNORECASE)
        size = 0 if match is None else int(float(match[1]) * _UNITS[match[2].upper()])
        if size == 0:
            self.fail(f"{value!r} is not a number of bytes; accepted: 4G, 512M, 1000000, …", param, ctx)
        return size


_ENGINE: list[Decorator] = [
    click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N."),
    click.option("--dtype", type=click.Choice(["auto", *DTYPES]), help="Floating-point type to compute in."),
    click.option(
        *("--quantize", "quantization"),
        type=click.Choice(["none", "file", *QUANTIZATIONS]),
        metavar="SCHEME",
        help=f"Quantize on load: {', '.join(QUANTIZATIONS)}; file: keep what the file has packed; none: expand it.",
    ),
    click.option("--tokenizer", metavar="PLACE", help="Where the tokenizer is, if not with the model."),
    click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub repository."),
    click.option("--max-model-len", type=int, metavar="N", help="Longest prompt plus output, in tokens."),
    click.option("--max-num-seqs", type=int, metavar="N", help="Most requests in one step."),
    click.option("--max-num-batched-tokens", type=int, metavar="N", help="Most tokens in one step."),
    click.option("--block-size", type=int, metavar="N", help="Tokens in a KV block."),
    click.option("--gpu-memory-utilization", type=float, metavar="SHARE", help="Of the memory, up to 1."),
    click.option("--kv-cache-memory", type=ByteSize(), help="Memory for the KV cache (4G); else from what is free."),
    click.option("--kv-cache-dtype", type=click.Choice(["auto", *KV_DTYPES]), help="Type of cached keys and values."),
    click.option("--threads", "num_threads", type=int, metavar="N", help="Of a CPU; one for each core."),
    click.option("--enable-prefix-caching/--no-prefix-caching", default=None, help="Reuse equal prompt beginnings."),
    click.option("--async-scheduling/--no-async-scheduling", default=None, help="Plan a step while another runs."),
    click.option("--scheduling-policy", type=click.Choice(["fcfs", "priority", "fair"]), help="Who comes first."),
    click.option("--deterministic", is_flag=True, default=None, help="Same bits in any batch, slower; GPUs only."),
    click.option("--enforce-eager", is_flag=True, default=None, help="No CUDA graphs: to debug."),
    click.option("--max-loras", type=int, metavar="N", help="Most LoRA adapters in one step."),
    click.option("--max-cpu-loras", type=int, metavar="N", help="Most LoRA adapters loaded at once."),
    click.option("--max-lora-rank", type=int, metavar="N", help="Largest rank of a LoRA adapter."),
    click.option("--load-format", type=click.Choice(["auto", "dummy"]), help="dummy: random weights, config only."),
    click.option("--debug", is_flag=True, default=None, help="Check all invariants after each step."),
]
ENGINE_NAMES = (
    *("device", "dtype", "quantization", "tokenizer", "revision", "max_model_len", "max_num_seqs"),
    *("max_num_batched_tokens", "block_size", "gpu_memory_utilization", "kv_cache_memory", "kv_cache_dtype"),
    *("num_threads", "enable_prefix_caching", "async_scheduling", "scheduling_policy", "deterministic"),
    *("enforce_eager", "max_loras", "max_cpu_loras", "max_lora_rank", "load_format", "debug"),
)
"""Their names, which are those of ``EngineConfig``'s fields."""


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that go to the engine; `split_engine_options` takes them out again."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


def split_engine_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the engine's options from ``options`` and return those that were given."""
    taken = {name: options.pop(name) for name in ENGINE_NAMES if name in options}
    return {name: value for name, value in taken.items() if value is not None}


class NamedPath(click.ParamType):
    """A name and a place: ``sql=adapters/sql``."""

    name = "name=path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, sign, path = str(value).partition("=")
        if not (name and sign and path):
            self.fail(f"{value!r} is not a name and a folder; accepted: NAME=PATH", param, ctx)
        return name, path


def lora_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--lora``, the adapters to load; `load` takes them."""
    help = "Load a LoRA adapter (a folder in PEFT's format) under a name; may be given several times."
    return click.option("--lora", "loras", multiple=True, type=NamedPath(), metavar="NAME=PATH", help=help)(command)


def with_room_for(loras: Sequence[tuple[str, str]], given: dict[str, Any], more: bool = False) -> dict[str, Any]:
    """The engine's options, with room for adapters that were named: the more, the more places. ``more``: others may
    come later; they find as much room as without those.
    """
    if not loras and not more:
        return given
    most = EngineConfig.max_loras
    places = given.get("max_loras", most if more else min(len(loras), most))
    loaded = len(loras) + LOADED_PER_PLACE * places if more else max(places, len(loras))
    return {"max_cpu_loras": loaded, **given, "enable_lora": True, "max_loras": places}


def check_adapters(loras: Sequence[tuple[str, str]], own: Sequence[str] = ()) -> None:
    """Look at adapters before the model is loaded.

    Args:
        loras: names and folders.
        own: names of the model itself, which no adapter may have.

    Raises:
        UsageError: a name is taken. ModelError: a folder has no adapter that can be used.
    """
    from octavo.weights.peft import read_adapter

    taken = {*own}
    for name, path in loras:
        if name in taken:
            raise UsageError(f"--lora {name}={path}: the name is taken; accepted: another one")
        taken.add(name)
        read_adapter(Path(path))


def load(model: str, given: dict[str, Any], loras: Sequence[tuple[str, str]] = ()) -> LLM:
    """Check the options, then load the model: the import of torch takes longer than most mistakes deserve. ``loras``:
    names and folders of LoRA adapters, which are loaded, too.
    """
    given = with_room_for(loras, given)
    EngineConfig.from_kwargs(model, **given)
    check_adapters(loras)
    with large_imports():
        from octavo.llm import LLM

    llm = LLM(model, **given)
    for name, path in loras:
        llm.engine.add_lora(name, path)
    return llm


def read_text_file(what: str, path: str) -> str:
    """The text of a small file that the user named; ``UsageError`` if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {what} {path!r}: {getattr(error, 'strerror', None) or error}") from None
