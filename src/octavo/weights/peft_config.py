"""``adapter_config.json`` of a LoRA adapter in PEFT's format: what it says, and which layers it means.

What would change the result and is not supported is refused by name; a key that PEFT adds later, and that is set, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from octavo.errors import ModelError
from octavo.weights.hf_json import Positive, convert, read_json

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


class AdapterConfigJson(msgspec.Struct):
    """``adapter_config.json``, as far as Octavo reads it."""

    peft_type: str
    r: Annotated[int, Meta(ge=1, le=1 << 16)]
    lora_alpha: Positive
    target_modules: str | list[str]
    use_rslora: bool = False
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, Annotated[int, Meta(ge=1, le=1 << 16)]] = {}
    alpha_pattern: dict[str, Positive] = {}

    def rank_of(self, module: str) -> int:
        """Rows of A for a module ("model.layers.0.self_attn.q_proj")."""
        return self.rank_pattern.get(_key_for(self.rank_pattern, module), self.r)

    def scale_of(self, module: str) -> float:
        """By which the module's product with A and B is multiplied (rank-stabilised: arXiv:2312.03732)."""
        alpha = self.alpha_pattern.get(_key_for(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def lists_modules(self) -> bool:
        """Whether it names its modules. Expressions for whole names are not searched for: some take for ever, and the
        tensors tell the same.
        """
        return not isinstance(self.exclude_modules, str) and self.target_modules_listed is not None

    @property
    def target_modules_listed(self) -> list[str] | None:
        """The names in ``target_modules``, if it is a list."""
        return None if isinstance(self.target_modules, str) else self.target_modules

    def wants(self, module: str) -> bool:
        """Whether the module is one that the adapter was made for, where `lists_modules` is true."""
        targets, excluded = self.target_modules_listed or [], self.exclude_modules or []
        if _ends_with(module, excluded):
            return False
        return module in targets or (_ends_with(module, targets) and self._is_its_layer(module))

    def _is_its_layer(self, module: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == []:
            return True
        layers = self.layers_pattern or r"[^.]*"
        patterns = [layers] if isinstance(layers, str) else layers
        found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
        index = next((int(match[1]) for match in found if match), None)
        return index in ([wanted] if isinstance(wanted, int) else wanted)


def read_adapter_config(folder: Path) -> AdapterConfigJson:
    """Read ``adapter_config.json``.

    Raises:
        ModelError: it is missing or damaged, or asks for what is not supported.
    """
    path = folder / CONFIG
    fields = read_json(path, dict[str, Any], MAX_CONFIG_BYTES)
    if fields.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {fields.get('peft_type')!r:.80}; accepted: LORA")
    _refuse_unsupported(path, fields)
    config = convert(str(path), {name: value for name, value in fields.items() if value is not None}, AdapterConfigJson)
    _check_patterns(path, config)
    return config


def _refuse_unsupported(path: Path, fields: Mapping[str, Any]) -> None:
    for name, accepted in NEUTRAL.items():
        if name in fields and fields[name] not in accepted:
            values = ", ".join(map(str, accepted))
            raise ModelError(f"{path}: {name}={fields[name]!r:.80} is not supported; accepted: {values}")
    known = {*AdapterConfigJson.__struct_fields__, *NEUTRAL, *IGNORED}
    for name, value in fields.items():
        if name not in known and value:
            raise ModelError(f"{path}: {name:.80}={value!r:.80} is not supported; accepted: without it")


def _check_patterns(path: Path, config: AdapterConfigJson) -> None:
    """Refuse patterns that do not compile, or that could be searched for ever."""
    for pattern in (*config.rank_pattern, *config.alpha_pattern, *_as_list(config.layers_pattern)):
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(f"{path}: the pattern {pattern!r:.80} cannot be used: {error}") from None
        if re.search(r"\)[*+]|\{", pattern) or len(re.findall(r"[*+]", pattern)) > MAX_REPEATS:
            raise ModelError(
                f"{path}: the pattern {pattern!r:.80} is not supported; accepted: names, and patterns with at most "
                f"{MAX_REPEATS} of * and +, none of them behind a group"
            )


def _as_list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _ends_with(module: str, names: Iterable[str]) -> bool:
    """PEFT's rule for lists: names of modules, or ends of names."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def _key_for(patterns: Mapping[str, Any], module: str) -> str:
    """PEFT's rule: the first pattern that the name ends with, from a dot on; or the name itself."""
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", module)), module)
