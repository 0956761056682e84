"""The two configurations: what a model is, and how an engine is to run it. Validated values, no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from octavo.errors import ModelError, UsageError, reject_unknown

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Names of the floating-point types that a model can run in, and their bytes."""

KV_DTYPES = {**DTYPES, "fp8": 1, "int8": 1}
"""Names of the types that keys and values can be kept in: fp8 is e4m3; int8 has a scale for each token and head."""

QUANTIZATIONS = (
    *("int8", "int8-channel", "int8-g128", "int8-g64", "int8-g32", "w8a8"),
    *("fp8", "fp8-tensor", "fp8-block", "fp8-w8a8"),
    *("int4", "int4-g128", "int4-g64", "int4-g32"),
)
"""Schemes of `octavo.quantization.schemes`, by name."""

MAX_LAYERS = 4096
"""Far more than any model has: a file that claims more is damaged or means harm."""


MAX_EXPERTS = 1 << 17
"""In all layers together, for the same reason."""

MAX_NUM_SEQS = 1 << 16
"""Requests in one step: each has a row in several tables."""

BATCHED_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens in one step, unless asked for: enough for the matrix products to reach their best rate."""

SERVED_TOKENS = {"cpu": 256, "cuda": 1536}
"""Tokens in one step where others wait for their next token meanwhile: as few as still come near that rate."""

MAX_LORAS = 256
"""LoRA adapters on the device at once."""

LOADED_PER_PLACE = 4
"""LoRA adapters in host memory for each place on the device, unless asked for."""

MAX_LORA_RANK = 512

NOT_ON_A_CPU = "deterministic=True is for GPUs: on a CPU the last bits of results depend on the rest of the batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the model was trained on.

    ``kind`` is "linear", "dynamic" (NTK-aware), "llama3" (arXiv:2407.21783), "yarn" (arXiv:2309.00071), "longrope"
    (arXiv:2402.13753), or "factors": the i-th inverse frequency is divided by ``factors[i]``, of which there is one
    for each pair of rotated dimensions. "longrope" has two sets: ``factors`` for engines whose requests stay within
    ``original_max_position`` tokens, ``long_factors`` for others. Fields that a kind does not use are None.
    """

    kind: str
    factor: float = 1.0
    original_max_position: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None


ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
"""Of feed-forward layers; "gelu_tanh" is GELU's approximation by tanh (arXiv:1606.08415)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts (arXiv:1701.06538): each token goes to ``per_token`` of ``count`` feed-forward layers.

    Attributes:
        size: intermediate size of one expert.
        normalise: whether the weights of a token's experts are scaled to sum up to 1.
        dense_layers: layers that have one ordinary feed-forward layer instead.
    """

    count: int
    per_token: int
    size: int
    normalise: bool = True
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1 or not 1 <= self.per_token <= self.count:
            raise ModelError(
                f"{self.per_token} of {self.count} experts of size {self.size}; positive numbers were expected, and no"
                " more experts for a token than there are"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only transformer, from whichever file format it came.

    Attributes:
        rms_norm_eps: of all norms, LayerNorm too.
        rotary_dim: how many dimensions of a head are rotated, the first ones; None: all.
        local_rope_theta: the base of layers with a sliding window, which are then not scaled; None: as the others'.
        no_rope_layers: layers whose queries and keys are not rotated.
        sliding_windows: for each layer, how many positions a token sees, itself included; None: all.
        attention_scale: factor of the scores; None: ``head_dim ** -0.5``.
        attention_soft_cap, logit_soft_cap: scores and logits x become ``cap * tanh(x / cap)`` (arXiv:2408.00118).
        experts: None for a dense model.
        dtype: the checkpoint's own floating-point type, or the one its quantized weights are best expanded to.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | None = None
    local_rope_theta: float | None = None
    no_rope_layers: tuple[int, ...] = ()
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    experts: ExpertsConfig | None = None
    dtype: str = "float32"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        positive = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        )
        for name in (*positive, "max_position_embeddings"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**31 - 1:
                raise ModelError(f"the model's {name} is {value!r}; a positive whole number was expected")
        if self.num_layers > MAX_LAYERS:
            raise ModelError(f"the model has {self.num_layers} layers; at most {MAX_LAYERS} are accepted")
        if self.experts is not None and self.experts.count * self.num_layers > MAX_EXPERTS:
            raise ModelError(
                f"the model has {self.experts.count} experts in each of {self.num_layers} layers; at most {MAX_EXPERTS}"
                " in all are accepted"
            )
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly")
        if self.head_dim % 2:
            raise ModelError(f"head_dim is {self.head_dim}; rotary embeddings need an even number")
        if self.rotary_dim is not None and (self.rotary_dim % 2 or not 2 <= self.rotary_dim <= self.head_dim):
            raise ModelError(f"rotary_dim is {self.rotary_dim}; an even number up to {self.head_dim} was expected")
        if self.hidden_act not in ACTIVATIONS:
            raise ModelError(f"hidden_act {self.hidden_act!r} is not supported; accepted: {', '.join(ACTIVATIONS)}")
        for name in ("local_rope_theta", "attention_scale", "attention_soft_cap", "logit_soft_cap"):
            number = getattr(self, name)
            if number is not None and not (math.isfinite(number) and number > 0):
                raise ModelError(f"the model's {name} is {number!r}; a positive number was expected")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0 and 0 <= self.rms_norm_eps < 1):
            raise ModelError(f"rope_theta={self.rope_theta}, rms_norm_eps={self.rms_norm_eps} are not usable numbers")
        if self.dtype not in DTYPES:
            raise ModelError(f"dtype {self.dtype!r} is not supported; accepted: {', '.join(DTYPES)}")
        windows = self.sliding_windows or (None,) * self.num_layers
        if len(windows) != self.num_layers or any(w is not None and w < 1 for w in windows):
            raise ModelError(f"{len(windows)} sliding windows for {self.num_layers} layers, or one below 1")
        object.__setattr__(self, "sliding_windows", tuple(windows))

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of keys and values that one token adds to the KV cache, over all layers."""
        scale = 4 if dtype == "int8" else 0  # of a token and head
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * KV_DTYPES[dtype] + scale)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How to run a model: the arguments of ``LLM``. Names follow vLLM's.

    Attributes:
        model: an alias, a hub repository, a folder or a file.
        tokenizer: where the tokenizer is, if not with the model; the same kinds of place.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ….
        dtype: "auto" (the checkpoint's, or what the device computes best), "float32", "bfloat16", "float16".
        max_model_len: longest prompt plus output, in tokens; None: what the model and the memory allow.
        max_num_seqs: most requests in one step.
        max_num_batched_tokens: most tokens in one step (prefill chunks and decode together); None: 16384 on a GPU, 2048
            on a CPU; of an engine in a process of its own (``octavo serve``, ``AsyncLLM``) 1536 and 256, so that a long
            prompt does not hold up others.
        block_size: tokens in a KV block.
        gpu_memory_utilization: share of the device's memory that may be used, weights included. On a CPU: share of
            half the memory that is free when the weights are loaded, less the workspace, that goes to the KV cache.
        kv_cache_memory: bytes for the KV cache; None: from the memory that is free.
        kv_cache_dtype: "auto" (the model's dtype), a dtype's name, "fp8" or "int8": half the memory of 16 bits.
        num_threads: threads that compute on a CPU; None: one for each physical core that the process may use, or what
            OCTAVO_NUM_THREADS or OMP_NUM_THREADS in the environment says.
        quantization: quantize the model's matrices when they are loaded: "int8", "w8a8", "fp8", "int4", and others: see
            `QUANTIZATIONS`. "file" keeps packed what the checkpoint has packed, "none" expands it; None keeps it packed
            where the device multiplies that form well and no dtype is asked for.
        scheduling_policy: "fcfs", "priority" (of requests), or "fair": equal shares of the computed tokens for all keys
            that have requests waiting, and by priority within a key.
        async_scheduling: plan step n + 1 while step n runs; None: where the device leaves a core free for that.
        enable_prefix_caching: reuse the KV blocks of equal prompt beginnings.
        enforce_eager: launch each kernel of a step on a GPU by itself, without CUDA graphs: to debug.
        deterministic: on a GPU, a request's tokens and log-probabilities are the same, to the bit, alone and in any
            batch, however its prompt is cut, cached or recomputed. Slower. A CPU cannot do it.
        enable_lora: requests may have LoRA adapters.
        max_loras: adapters of one step at most; so many have their place on the device.
        max_lora_rank: the largest rank of an adapter; each place takes memory for it.
        max_cpu_loras: adapters that are loaded at once at most; None: four times ``max_loras``.
        load_format: "auto", or "dummy" for random weights from a config alone.
        revision: branch, tag or commit of a hub repository.
        chat_template: a Jinja template instead of the model's own.
        seed: of the engine: requests without a seed draw theirs from it.
        debug: check the pool's invariants and both sides' checksums after each step.
    """

    model: str
    tokenizer: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    kv_cache_memory: int | None = None
    kv_cache_dtype: str = "auto"
    num_threads: int | None = None
    quantization: str | None = None
    tensor_parallel_size: int = 1
    scheduling_policy: str = "fcfs"
    async_scheduling: bool | None = None
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    deterministic: bool = False
    enable_lora: bool = False
    max_loras: int = 4
    max_lora_rank: int = 16
    max_cpu_loras: int | None = None
    load_format: str = "auto"
    revision: str | None = None
    chat_template: str | None = None
    seed: int = 0
    debug: bool = False

    @classmethod
    def from_kwargs(cls, model: str, **kwargs: Any) -> EngineConfig:
        """Build from ``LLM``'s keyword arguments; an unknown one is a ``UsageError`` that names the nearest."""
        reject_unknown("LLM", kwargs, (f.name for f in fields(cls)))
        return cls(model=str(model), **kwargs)

    @property
    def lora_places(self) -> int:
        """LoRA adapters that can be on the device at once; 0 without ``enable_lora``."""
        return self.max_loras if self.enable_lora else 0

    def on(self, device: str, *, serving: bool = False) -> EngineConfig:
        """This configuration with what depends on the device, "cpu" or "cuda:0", say, filled in; ``serving``: for an
        engine that many ask at any time.
        """
        default = (SERVED_TOKENS if serving else BATCHED_TOKENS)[device.partition(":")[0]]
        tokens = self.max_num_batched_tokens or max(default, self.max_num_seqs)
        return replace(self, device=device, max_num_batched_tokens=tokens)

    def __post_init__(self) -> None:
        _device(self.device)
        _one_of("dtype", self.dtype, ("auto", *DTYPES))
        _one_of("kv_cache_dtype", self.kv_cache_dtype, ("auto", *KV_DTYPES))
        _one_of("quantization", self.quantization, (None, "none", "file", *QUANTIZATIONS))
        _one_of("tensor_parallel_size", self.tensor_parallel_size, (1,))
        _one_of("scheduling_policy", self.scheduling_policy, ("fcfs", "priority", "fair"))
        _one_of("load_format", self.load_format, ("auto", "dummy"))
        _whole("max_model_len", self.max_model_len, optional=True)
        _whole("max_num_seqs", self.max_num_seqs, most=MAX_NUM_SEQS)
        _whole("max_num_batched_tokens", self.max_num_batched_tokens, optional=True)
        _whole("block_size", self.block_size)
        _whole("kv_cache_memory", self.kv_cache_memory, optional=True)
        _whole("num_threads", self.num_threads, optional=True)
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_num_seqs:
            raise UsageError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than max_num_seqs={self.max_num_seqs}: "
                "each running request needs one token of a step"
            )
        _whole("max_loras", self.max_loras, most=MAX_LORAS)
        _whole("max_lora_rank", self.max_lora_rank, most=MAX_LORA_RANK)
        _whole("max_cpu_loras", self.max_cpu_loras, optional=True)
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise UsageError(f"max_cpu_loras={self.max_cpu_loras} is less than max_loras={self.max_loras}")
        for name in ("enable_prefix_caching", "enforce_eager", "deterministic", "enable_lora", "debug"):
            _one_of(name, getattr(self, name), (True, False))
        _one_of("async_scheduling", self.async_scheduling, (None, True, False))
        if not isinstance(self.gpu_memory_utilization, int | float) or not 0 < self.gpu_memory_utilization <= 1:
            raise UsageError(f"gpu_memory_utilization={self.gpu_memory_utilization!r}; accepted: above 0, at most 1")
        if not isinstance(self.seed, int):
            raise UsageError(f"seed={self.seed!r}; accepted: a whole number")
        if self.deterministic and self.quantization not in (None, "none"):
            raise UsageError(f"deterministic=True with quantization={self.quantization!r}; accepted: None, none")
        if self.deterministic and self.device == "cpu":
            raise UsageError(NOT_ON_A_CPU)


def _device(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"device={name!r} is not supported; accepted: auto, cpu, cuda, cuda:0, cuda:1, …")


def _one_of(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        raise UsageError(f"{name}={value!r} is not supported; accepted: {', '.join(map(str, accepted))}")


def _whole(name: str, value: object, *, optional: bool = False, most: int = 2**53) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        limit = f" up to {most}" if most < 2**53 else ""
        raise UsageError(f"{name}={value!r}; accepted: a positive whole number{limit}{' or None' if optional else ''}")
