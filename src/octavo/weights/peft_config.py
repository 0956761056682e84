"""``adapter_config.json`` of a LoRA adapter in PEFT's format: what it says, and which layers it means.

What would change the result and is not supported is refused by name; a key that PEFT adds later, and that is set, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from octavo.errors import ModelError
from octavo.weights.hf_json import Positive, convert, read_json

T = TypeVar("T")

CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 4 << 20

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
"""Keys whose values must be one of these. Other ways to initialise change the base model's weights, too."""

IGNORED = frozenset(
    {
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
        *("lora_dropout", "fan_in_fan_out", "megatron_config", "megatron_core", "loftq_config", "eva_config"),
        *("qalora_group_size", "runtime_config"),
    }
)
"""Keys that say how the adapter was trained, or that only mean something together with another key."""

MAX_REPEATS = 2
"""Of "*" and "+" in a pattern: a search with many, or with one inside another, could take for ever."""
MAX_CHOICES = 6
"""Of "?" and "|" in a pattern: each may double what a search takes."""
MAX_PATTERNS = 1024
"""In one dictionary: each layer is compared with each pattern."""
MAX_SEARCHES = 16
"""Of these, patterns with any of "*", "+", "?" and "|"; the others are compared at once."""

Size = Annotated[int, Meta(ge=1, le=1 << 16)]


class AdapterConfigJson(msgspec.Struct):
    """``adapter_config.json``, as far as Octavo reads it."""

    peft_type: str
    r: Size
    lora_alpha: Positive
    target_modules: str | list[str]
    use_rslora: bool = False
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, Size] = {}
    alpha_pattern: dict[str, Positive] = {}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an adapter's configuration says about modules, by their names ("model.layers.0.self_attn.q_proj").

    Attributes:
        rank, alpha: of modules that no pattern means.
        ranks, alphas: patterns and what holds for modules that they mean; the first one counts.
        stabilised: A's rank counts by its root (arXiv:2312.03732).
        targets: names of modules, or ends of names; None: they are not listed. Expressions for whole names are not
            searched for: some take for ever, and the tensors tell the same.
        excluded: likewise; these are not meant.
        layers: the numbers of the layers that ends of names mean; None: all.
        layer_patterns: what stands in front of a layer's number.
    """

    rank: int
    alpha: float
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    stabilised: bool
    targets: frozenset[str] | None
    excluded: frozenset[str]
    layers: frozenset[int] | None
    layer_patterns: tuple[re.Pattern[str], ...]

    def rank_of(self, module: str) -> int:
        """Rows of A."""
        return next((rank for pattern, rank in self.ranks if pattern.match(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """By which the product with A and B is multiplied."""
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)

    def wants(self, module: str) -> bool:
        """Whether the module is one that the adapter was made for, where ``targets`` are listed."""
        ends = set(_ends(module))
        if self.targets is None or ends & self.excluded:
            return False
        return module in self.targets or (bool(ends & self.targets) and self._is_its_layer(module))

    def _is_its_layer(self, module: str) -> bool:
        if self.layers is None:
            return True
        found = (pattern.match(module) for pattern in self.layer_patterns)
        return next((int(match["layer"]) for match in found if match), None) in self.layers


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read ``adapter_config.json``.

    Raises:
        ModelError: it is missing or damaged, or asks for what is not supported.
    """
    path = folder / CONFIG
    fields = read_json(path, dict[str, Any], MAX_CONFIG_BYTES)
    if fields.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {fields.get('peft_type')!r:.80}; accepted: LORA")
    _refuse_unsupported(path, fields)
    given = {name: value for name, value in fields.items() if value is not None}
    return _interpret(path, convert(str(path), given, AdapterConfigJson))


def _refuse_unsupported(path: Path, fields: Mapping[str, Any]) -> None:
    for name, accepted in NEUTRAL.items():
        if name in fields and fields[name] not in accepted:
            values = ", ".join(map(str, accepted))
            raise ModelError(f"{path}: {name}={fields[name]!r:.80} is not supported; accepted: {values}")
    known = {*AdapterConfigJson.__struct_fields__, *NEUTRAL, *IGNORED}
    for name, value in fields.items():
        if name not in known and value:
            raise ModelError(f"{path}: {name!r:.80} is {value!r:.80}, which is not supported; accepted: without it")


def _interpret(path: Path, json: AdapterConfigJson) -> AdapterConfig:
    listed = isinstance(json.target_modules, list) and not isinstance(json.exclude_modules, str)
    layers = [json.layers_to_transform] if isinstance(json.layers_to_transform, int) else json.layers_to_transform
    in_front = _as_list(json.layers_pattern) or [r"[^.]*"]
    return AdapterConfig(
        rank=json.r,
        alpha=json.lora_alpha,
        ranks=tuple(_patterns(path, json.rank_pattern)),
        alphas=tuple(_patterns(path, json.alpha_pattern)),
        stabilised=json.use_rslora,
        targets=frozenset(json.target_modules) if listed else None,
        excluded=frozenset(json.exclude_modules or ()) if listed else frozenset(),
        layers=frozenset(layers) if layers else None,
        layer_patterns=tuple(_compiled(path, in_front, r"(?:^|.*?\.){}\.(?P<layer>\d+)\.")),
    )


def _patterns(path: Path, patterns: Mapping[str, T]) -> Iterator[tuple[re.Pattern[str], T]]:
    """PEFT's rule: a pattern means the names that end with it, from a dot on."""
    return zip(_compiled(path, patterns, r"(?:.*\.)?{}$"), patterns.values(), strict=True)


def _compiled(path: Path, patterns: Collection[str], frame: str) -> Iterator[re.Pattern[str]]:
    """All ``patterns`` in ``frame``."""
    searches = sum(re.search(r"[*+?|]", pattern) is not None for pattern in patterns)
    if len(patterns) > MAX_PATTERNS:
        raise ModelError(f"{path} has {len(patterns)} patterns; at most {MAX_PATTERNS} are accepted")
    if searches > MAX_SEARCHES:
        raise ModelError(f"{path} has {searches} patterns with *, +, ? or |; at most {MAX_SEARCHES} are accepted")
    return (_compile(path, pattern, frame) for pattern in patterns)


def _compile(path: Path, pattern: str, frame: str) -> re.Pattern[str]:
    """The pattern in ``frame``; refused if it does not compile, or could be searched for ever."""
    repeats, choices = (len(re.findall(signs, pattern)) for signs in (r"[*+]", r"[?|]"))
    if re.search(r"\)[*+]|\{", pattern) or repeats > MAX_REPEATS or choices > MAX_CHOICES:
        raise ModelError(
            f"{path}: the pattern {pattern!r:.80} is not supported; accepted: names, and patterns with at most "
            f"{MAX_REPEATS} of * and +, none of them behind a group, and {MAX_CHOICES} of ? and |"
        )
    try:
        re.compile(pattern)  # by itself, so that none of its brackets closes one of the frame's
        return re.compile(frame.format(f"(?:{pattern})"))
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelError(f"{path}: the pattern {pattern!r:.80} cannot be used: {error}") from None


def _as_list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _ends(module: str) -> Iterator[str]:
    """The name, and what of it follows each dot."""
    parts = module.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))
