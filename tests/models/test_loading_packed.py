"""Matrices that are quantized when they are loaded, or stay as the file has packed them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from helpers_gguf import write_llama
from helpers_models import PagedDriver, load_tiny, make_tiny
from helpers_parallel import Ring
from helpers_quantized import awq as awq_writer
from helpers_quantized import write_quantized
from octavo.config import EngineConfig
from octavo.errors import ModelError, OutOfMemoryError
from octavo.execution.build import build_runner, choose_packing
from octavo.kernels.packed import BlockWeight, Int4Weight, Int8Weight, PackedWeight, StackedWeight
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.reference.quantized import dequantize
from octavo.layers.build import Build, Packing
from octavo.layers.embedding import LMHead
from octavo.layers.weight import Matrix, Weight
from octavo.models.loading import init_dummy, load_weights, pack_weights, param_bytes
from octavo.models.packing import describe_packing, loaded_bytes, num_params
from octavo.models.registry import build_model
from octavo.parallel import Shard
from octavo.quantization.pack import quantize
from octavo.quantization.schemes import SCHEMES
from octavo.weights.gguf import GGUFCheckpoint
from octavo.weights.quantized.awq import Awq
from octavo.weights.safetensors import SafetensorsCheckpoint

KEPT = Packing(keeps=lambda kind: True, must_keep=True)
TOKENS = {0: list(range(2, 20)), 1: [9, 5]}


def load(checkpoint, packing=None, shard=None, tensors=None):
    build = Build(ReferenceOps(), shard or Shard(), packing=packing or Packing())
    model = build_model(checkpoint.config, build, 64)
    load_weights(model, tensors or checkpoint.tensors())
    return model


def logits(model):
    return torch.cat(list(PagedDriver(model).step(TOKENS).values()))


def matrices(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Matrix)}


def make_plain(model):
    """The packed matrices as plain ones of the same values."""
    for module in matrices(model).values():
        if isinstance(module.packed, PackedWeight):
            module.packed = dequantize(module.packed, torch.float32)
    return model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return SafetensorsCheckpoint.open(make_tiny("llama", tmp_path_factory.mktemp("tiny"))[1])


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return SafetensorsCheckpoint.open(make_tiny("llama-tied", tmp_path_factory.mktemp("tied"))[1])


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return GGUFCheckpoint.open(write_llama(path, "Q4_0", feed_forward_length=128)[0])


# ---------------------------------------------------------------- by a scheme


def scheme_of(name, path, hidden):
    fitted = SCHEMES[name].fitted(hidden)
    if path == "lm_head":
        return fitted.for_head
    return fitted.for_sensitive if path.endswith(("qkv_proj", "down_proj")) else fitted


@pytest.mark.parametrize("name", SCHEMES)
def test_a_fused_matrix_is_its_parts_quantized(tiny, name):
    model, plain = load(tiny, Packing(SCHEMES[name])), load(tiny)
    for path, module in matrices(model).items():
        whole = plain.get_submodule(path).weight.data
        scheme = scheme_of(name, path, tiny.config.hidden_size)
        if scheme.group_for(whole.shape[1]) is None:
            assert module.packed is None
            assert torch.equal(module.weight.data, whole)
        else:
            expected = quantize(whole, scheme)
            for key, tensor in expected.tensors().items():
                assert torch.equal(module.packed.tensors()[key].view(torch.uint8), tensor.view(torch.uint8))
            assert module.weight.numel() == 0


@pytest.mark.parametrize("name", ["int8", "int8-g32", "fp8-block", "int4-g32"])
@pytest.mark.parametrize("checkpoint", ["tiny", "tied"])
def test_the_model_computes_with_the_rounded_weights(checkpoint, name, request):
    checkpoint = request.getfixturevalue(checkpoint)
    model = load(checkpoint, Packing(SCHEMES[name]))
    pack_weights(model)
    actual = logits(model)
    torch.testing.assert_close(actual, logits(make_plain(model)), rtol=1e-4, atol=1e-4)
    difference = (actual - logits(load(checkpoint))).abs().max()
    assert 0 < difference < 5


def test_int4_does_not_fit_all_and_says_so(tiny):
    model = load(tiny, Packing(SCHEMES["int4-g32"]))
    note = describe_packing(model, SCHEMES["int4-g32"])
    assert note.startswith(
        "int4-g32 does not fit matrices with 84 inputs: 3 stay as they are (model.layers.0.mlp.down_proj"
    )
    assert describe_packing(load(tiny, Packing(SCHEMES["int8"])), SCHEMES["int8"]) == ""


def test_a_tied_head_has_its_own_copy(tied):
    model = load(tied, Packing(SCHEMES["int8"]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight.data, load(tied).lm_head.weight.data)
    assert isinstance(model.lm_head.packed, Int8Weight)


def test_the_head_of_int4_has_8_bits(tiny):
    model = load(tiny, Packing(SCHEMES["int4"]))
    assert isinstance(model.lm_head.packed, Int8Weight)
    assert isinstance(model.model.layers[0].mlp.gate_up_proj.packed, Int4Weight)


@pytest.mark.parametrize(("small", "form"), [(True, Int8Weight), (False, Int4Weight)])
def test_sensitive_matrices_of_small_models_have_8_bits(gguf, small, form, monkeypatch):
    monkeypatch.setitem(SCHEMES, "int4", replace(SCHEMES["int4"], fine_below=2048 if small else 0))
    for layer in load(gguf, Packing(SCHEMES["int4"])).model.layers:
        assert isinstance(layer.self_attn.qkv_proj.packed, form)
        assert isinstance(layer.self_attn.o_proj.packed, Int4Weight)
        assert isinstance(layer.mlp.gate_up_proj.packed, Int4Weight)
        assert isinstance(layer.mlp.down_proj.packed, form)


@pytest.mark.parametrize("name", ["int8", "int4-g32", "fp8-tensor"])
def test_what_is_quantized_never_has_plain_memory(tiny, name, monkeypatch):
    model = build_model(tiny.config, Build(ReferenceOps(), packing=Packing(SCHEMES[name])), 64)
    quantized = {id(module.weight) for module in matrices(model).values() if module.scheme is not None}
    allocate = Weight.allocate

    def counted(weight):
        assert id(weight) not in quantized
        allocate(weight)

    monkeypatch.setattr(Weight, "allocate", counted)
    load_weights(model, sorted(tiny.tensors(), key=lambda tensor: tensor.name))
    assert all(module.packed is not None for module in matrices(model).values() if module.scheme is not None)


def test_each_matrix_is_packed_before_the_next_ones_are_there(tiny):
    """What is in another form already, and what has no piece yet, when each matrix is packed."""
    seen = []

    class Watching(ReferenceOps):
        def pack_linear(self, weight):
            seen.append(sum(module.is_whole for module in matrices(model).values()))
            return weight

    model = build_model(tiny.config, Build(Watching()), 64)
    load_weights(model, list(tiny.tensors()), pack=True)
    assert seen == list(range(1, len(matrices(model)) + 1))


@pytest.mark.parametrize("name", [None, "int8", "int4", "int4-g32", "fp8-block"])
@pytest.mark.parametrize("checkpoint", ["tiny", "tied"])
def test_bytes_before_and_after(checkpoint, name, request):
    checkpoint = request.getfixturevalue(checkpoint)
    packing = Packing(SCHEMES[name] if name else None)
    model = load(checkpoint, packing)
    build = Build(ReferenceOps(), device=torch.device("meta"), packing=packing)
    estimate, actual = loaded_bytes(build_model(checkpoint.config, build, 1), packing), param_bytes(model)
    largest = max(module.operand.nbytes for module in matrices(model).values())
    if name is None:
        assert estimate == actual
    else:
        assert actual < param_bytes(load(checkpoint))
        assert actual <= estimate <= 1.05 * actual + largest


def test_parameters_are_counted_whatever_they_became(tiny):
    expected = sum(parameter.numel() for parameter in load(tiny).parameters())
    assert num_params(load(tiny, Packing(SCHEMES["int4"]))) == num_params(load(tiny)) == expected


# ---------------------------------------------------------------- random weights


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("checkpoint", ["tiny", "tied"])
def test_dummy_weights_have_the_same_forms(checkpoint, name, request):
    checkpoint = request.getfixturevalue(checkpoint)
    packing = Packing(SCHEMES[name])
    model = build_model(checkpoint.config, Build(ReferenceOps(), packing=packing), 64)
    init_dummy(model, 1)
    for path, real in matrices(load(checkpoint, packing)).items():
        dummy = model.get_submodule(path)
        forms = [(type(m.packed), getattr(m.packed, "shape", None), m.weight.shape) for m in (real, dummy)]
        assert forms[0] == forms[1]
    assert param_bytes(model) == param_bytes(load(checkpoint, packing))
    assert logits(model).isfinite().all()


# ---------------------------------------------------------------- as the file has them


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_packed_weights_of_a_file_give_the_same(kind, tmp_path):
    checkpoint = GGUFCheckpoint.open(write_llama(tmp_path / "a.gguf", kind)[0])
    kept, plain = load(checkpoint, KEPT), load(checkpoint)
    for path, module in matrices(kept).items():
        assert isinstance(module.packed, BlockWeight)
        assert module.packed.kind == kind
        assert torch.equal(dequantize(module.packed, torch.float32), plain.get_submodule(path).weight.data)
    torch.testing.assert_close(logits(kept), logits(plain), rtol=1e-4, atol=1e-3)
    assert param_bytes(kept) < param_bytes(plain)


def test_one_tensor_is_the_files_own_pages(gguf):
    tensors = {tensor.name: tensor for tensor in gguf.tensors()}
    model = load(gguf, KEPT)
    pages = tensors["model.layers.1.self_attn.o_proj.weight"].packed().blocks
    assert model.model.layers[1].self_attn.o_proj.packed.blocks.data_ptr() == pages.data_ptr()


def test_plain_files_have_nothing_packed(tiny, tmp_path):
    assert all(tensor.packed() is None for tensor in tiny.tensors())
    plain = GGUFCheckpoint.open(write_llama(tmp_path / "a.gguf", "F16")[0])
    assert all(tensor.packed() is None for tensor in plain.tensors())
    assert all(module.packed is None for module in matrices(load(plain, KEPT)).values())


class Mixed:
    """A tensor of a file, packed or not."""

    def __init__(self, tensor, packed):
        self.name, self.shape, self.nbytes, self.read = tensor.name, tensor.shape, tensor.nbytes, tensor.read
        self.packed = tensor.packed if packed else lambda: None
        self.release = tensor.release
        self.packed_kind = tensor.packed_kind if packed else None


@pytest.mark.parametrize("plain", ["q_proj", "k_proj", "v_proj"])
def test_fused_parts_of_several_kinds(gguf, plain):
    model = load(gguf, KEPT, tensors=[Mixed(t, plain not in t.name) for t in gguf.tensors()])
    qkv = model.model.layers[0].self_attn.qkv_proj
    assert isinstance(qkv.packed, StackedWeight)
    expected = load(gguf)
    assert torch.equal(dequantize(qkv.packed, torch.float32), expected.model.layers[0].self_attn.qkv_proj.weight.data)
    assert qkv.weight.numel() == 0
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-3)


def test_only_kinds_that_are_wanted_stay(gguf):
    model = load(gguf, Packing(keeps=lambda kind: kind == "Q8_0"))
    assert all(module.packed is None for module in matrices(model).values())


@pytest.fixture(scope="module")
def awq(tmp_path_factory):
    folder = tmp_path_factory.mktemp("awq")
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    write_quantized(folder, awq_writer(32), config)
    return SafetensorsCheckpoint.open(folder)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_matrix_is_unpacked_once(awq, keeps, monkeypatch):
    unpacked, unpack = [], Awq.unpack
    monkeypatch.setattr(Awq, "unpack", lambda self, parts: unpacked.append(parts.module) or unpack(self, parts))
    load(awq, Packing(keeps=lambda kind: keeps))
    assert len(unpacked) == len(set(unpacked)) == 7 * awq.config.num_layers


def needed(checkpoint, packing, tensors=None):
    """What `loaded_bytes` says before anything is loaded."""
    build = Build(ReferenceOps(), device=torch.device("meta"), packing=packing)
    return loaded_bytes(build_model(checkpoint.config, build, 1), packing, tensors or checkpoint.tensors())


@pytest.mark.parametrize("name", ["gguf", "awq", "tiny", "tied"])
def test_bytes_of_what_stays_packed(name, request):
    checkpoint = request.getfixturevalue(name)
    model = load(checkpoint, KEPT)
    kept = [module.packed.nbytes for module in matrices(model).values() if module.packed is not None]
    wider = 0.04 if name == "awq" else 0  # zeros have 4 bits in the file
    assert needed(checkpoint, KEPT) == pytest.approx(param_bytes(model) + max(kept, default=0), rel=wider)
    assert needed(checkpoint, Packing(keeps=lambda kind: False)) == param_bytes(load(checkpoint))


def test_bytes_of_a_tied_head_and_its_table(gguf):
    """The table stays plain beside the packed head."""
    head_only = [Mixed(tensor, "embed_tokens" in tensor.name) for tensor in gguf.tensors()]
    head = next(tensor.nbytes for tensor in gguf.tensors() if "embed_tokens" in tensor.name)
    assert needed(gguf, KEPT, head_only) == param_bytes(load(gguf)) + 2 * head


def test_bytes_of_a_matrix_that_is_kept_in_part(gguf):
    """It is plain as a whole before it is joined."""
    tensors = [Mixed(tensor, "q_proj" in tensor.name) for tensor in gguf.tensors()]
    actual, whole = param_bytes(load(gguf, KEPT, tensors=tensors)), load(gguf).model.layers[0].self_attn.qkv_proj
    assert needed(gguf, KEPT, tensors) == actual + whole.weight.nbytes


class CopyingOps(ReferenceOps):
    def pack_linear(self, weight):
        return weight.detach().clone()


def test_bytes_of_a_plain_tied_head_that_the_ops_copy(tied):
    model = build_model(tied.config, Build(CopyingOps()), 64)
    estimate = loaded_bytes(model, Packing())
    load_weights(model, tied.tensors())
    pack_weights(model)
    assert estimate == param_bytes(model) > param_bytes(load(tied))


@pytest.mark.parametrize("name", ["gguf", "awq"])
def test_a_model_that_fits_only_as_it_is_packed_is_not_refused(name, request, monkeypatch):
    checkpoint = request.getfixturevalue(name)
    room = param_bytes(load(checkpoint)) + 4 * 16 * checkpoint.config.head_dim * 4 - 1
    monkeypatch.setattr("octavo.execution.build.free_memory", lambda: room)
    options = {"device": "cpu", "dtype": "float32", "max_model_len": 16, "kv_cache_memory": 1 << 14}
    config = EngineConfig.from_kwargs(str(checkpoint.path), max_num_batched_tokens=256, **options)
    build_runner(replace(config, quantization="file"), checkpoint, ops=ReferenceOps())
    with pytest.raises(OutOfMemoryError, match="the weights need"):
        build_runner(replace(config, quantization="none"), checkpoint, ops=ReferenceOps())


def test_a_tied_table_is_looked_up_plain_and_multiplied_packed(gguf):
    model = load(gguf, KEPT)
    assert gguf.config.tie_word_embeddings
    assert torch.equal(model.model.embed_tokens.weight.data, load(gguf).model.embed_tokens.weight.data)
    assert isinstance(model.lm_head.packed, BlockWeight)


# ---------------------------------------------------------------- over shards


BY_SCHEME = [Packing(SCHEMES[name]) for name in ("int8-g32", "int4")]


@pytest.mark.parametrize("packing", [KEPT, *BY_SCHEME], ids=["file", "int8-g32", "int4"])
def test_shards_together_are_the_whole(gguf, packing):
    ring = Ring(2)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda rank: logits(load(gguf, packing, ring.shard(rank))), range(2)))
    for part in parts:
        torch.testing.assert_close(part, logits(load(gguf, packing)), rtol=1e-4, atol=1e-3)


def test_a_shard_cannot_cut_a_block(tmp_path):
    checkpoint = GGUFCheckpoint.open(write_llama(tmp_path / "a.gguf", "Q4_0", feed_forward_length=96)[0])
    with pytest.raises(ModelError, match=r"down_proj.weight: .*cannot be cut at 0:48 of 96.*multiples of 32.*none"):
        load(checkpoint, KEPT, Shard(0, 2))
    load(checkpoint, shard=Shard(0, 2))


def test_what_a_shard_cannot_cut_is_expanded_where_it_need_not_stay_packed(tmp_path):
    checkpoint = GGUFCheckpoint.open(write_llama(tmp_path / "a.gguf", "Q4_0", feed_forward_length=96)[0])
    packing = choose_packing(EngineConfig(model="m"), KeepingOps())
    for rank in range(2):
        layer, plain = (load(checkpoint, p, Shard(rank, 2)).model.layers[0] for p in (packing, None))
        assert layer.mlp.down_proj.packed is None
        assert torch.equal(layer.mlp.down_proj.weight.data, plain.mlp.down_proj.weight.data)
        assert isinstance(layer.self_attn.qkv_proj.packed, BlockWeight)


def test_a_padded_vocabulary_is_expanded(tmp_path):
    checkpoint = GGUFCheckpoint.open(write_llama(tmp_path / "a.gguf", "Q4_0", 41, feed_forward_length=128)[0])
    assert load(checkpoint, KEPT, Shard(1, 2)).lm_head.packed is None
    assert isinstance(load(checkpoint, KEPT).lm_head.packed, BlockWeight)
    assert isinstance(LMHead(Build(ReferenceOps()), 41, 64).weight, Weight)


# ---------------------------------------------------------------- what is asked for


class KeepingOps(ReferenceOps):
    def multiplies(self, kind: str) -> bool:
        return True


class FastOps(ReferenceOps):
    def multiplies(self, kind: str) -> bool:
        return kind == "Q4_K"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"Q4_K"}),
        ({"quantization": "none"}, set()),
        ({"quantization": "file"}, {"Q4_K", "Q2_K", "int4"}),
        ({"dtype": "float32"}, set()),
        ({"dtype": "float32", "quantization": "file"}, {"Q4_K", "Q2_K", "int4"}),
        ({"deterministic": True, "device": "cuda"}, set()),
        ({"quantization": "int8"}, set()),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_what_stays_packed(options, kept):
    packing = choose_packing(EngineConfig(model="m", **options), FastOps())
    assert {kind for kind in ("Q4_K", "Q2_K", "int4") if packing.keeps and packing.keeps(kind)} == kept
    assert packing.scheme is (SCHEMES["int8"] if options.get("quantization") == "int8" else None)


def test_the_reference_expands_what_files_have_packed():
    assert choose_packing(EngineConfig(model="m"), ReferenceOps()).keeps("Q8_0") is False


def test_load_tiny_is_plain(tiny):
    assert all(module.packed is None for module in matrices(load_tiny(tiny.path)).values())
