"""Products with weights of 8 and 4 bits: the very bits of the product with the same weights as floats."""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.cuda import products
from flashdraft.cuda.layers import ClampedSparse
from flashdraft.cuda.products import gated_product, product
from flashdraft.cuda.weights import Product
from flashdraft.models.gpt_oss import GptOssMLP
from flashdraft.ops import quantized as quantized_ops
from flashdraft.ops.quantized import (
    CHUNK,
    LARGEST_SCALE,
    LARGEST_SYMMETRIC_SCALE,
    LONG_SUM,
    QuantizedLinear,
    QuantizedWeight,
    arranged,
    in_order,
    joined,
    kind_of,
    packed,
    unpacked,
)
from flashdraft.ops.triton import long_sums
from flashdraft.ops.triton.dequantized import dequantize
from flashdraft.ops.triton.experts import NUM_EXACT, NUM_FEW, ClampedSwiGLU, experts
from flashdraft.ops.triton.fused import silu_mul
from flashdraft.ops.triton.linear import few_tokens_linear
from flashdraft.ops.triton.long_sums import has_long_sums, long_sums_linear
from flashdraft.ops.triton.tiling import Tiling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def quantized(kind, num_outputs, num_inputs, dtype=torch.bfloat16):
    torch.manual_seed(num_outputs)
    groups = num_inputs // 128 if num_inputs % 128 == 0 else 1
    scales = (torch.rand(groups, num_outputs, device=DEVICE) + 0.5) * 0.01
    if kind.startswith("fp8"):
        scales = scales[:1].T.contiguous().T if kind == "fp8 by rows" else scales
        counted = torch.bfloat16 if kind == "fp8 in bfloat16" else torch.float32
        codes = torch.randn(num_outputs, num_inputs, device=DEVICE).mul(40).to(torch.float8_e4m3fn)
        return QuantizedWeight(arranged(codes), scales.to(counted).float(), None, dtype, counted)
    codes = torch.randint(16, (num_outputs, num_inputs), device=DEVICE)
    zeros = torch.randint(16, scales.shape, device=DEVICE).float() if kind == "int4 with zeros" else None
    counted = torch.float16 if zeros is not None else dtype
    return QuantizedWeight(packed(codes), scales.to(counted).float(), zeros, dtype, counted)


def float4(num_outputs, num_inputs):
    """MXFP4 of every code, in rows that may end within a chunk."""
    torch.manual_seed(num_outputs)
    padding = -num_inputs % CHUNK
    codes = torch.nn.functional.pad(torch.randint(16, (num_outputs, num_inputs)), (0, padding))
    exponents = torch.randint(116, 122, ((num_inputs + padding) // 32, num_outputs), dtype=torch.uint8)
    weight = QuantizedWeight(packed(codes), exponents, None, torch.bfloat16, torch.float32, padding)
    return weight.to(torch.device(DEVICE))


KINDS = ("fp8", "fp8 in bfloat16", "fp8 by rows", "int4", "int4 with zeros")


def test_codes_lie_in_words():
    codes = torch.randint(16, (3, 256))
    assert torch.equal(unpacked(packed(codes)), codes)
    assert packed(codes).shape == (3, 64)


@pytest.mark.parametrize("kind", ["fp8", "int4 with zeros"])
def test_codes_of_eight_outputs_lie_side_by_side(kind):
    """64 bytes each, as a warp loads them."""
    rows = quantized(kind, 40, 256)
    tiled = rows.in_tiles()
    lie = tiled.codes.view(torch.uint8).view(5, -1, 8, 64)
    expected = rows.codes.view(torch.uint8).view(5, 8, -1, 64)
    assert torch.equal(lie[3, 1, 2], expected[3, 2, 1])
    assert torch.equal(tiled.in_rows().codes, rows.codes)
    assert torch.equal(tiled.dequantized(), rows.dequantized())
    assert tiled[8:24].codes.data_ptr() == tiled.codes[8:].data_ptr()
    for some in (slice(8, 24), slice(24, None), slice(3, 20)):
        assert torch.equal(tiled[some].dequantized(), rows[some].dequantized())
    for other in (tiled, rows, rows[:3]):
        both = joined([tiled, other])
        assert both.tiled == other.tiled
        assert torch.equal(both.dequantized(), torch.cat([rows.dequantized(), other.dequantized()]))
    assert not rows[:36].in_tiles().tiled, "they are no whole tiles"


def test_two_scales_in_a_word():
    """Of single chunks in bfloat16, where sums are not long; the bits are those without."""
    weight = quantized("int4", 88, 512)
    paired = weight.in_tiles().in_pairs()
    assert paired.scales.shape == (2, 88)
    assert (paired.is_paired, paired.group) == (True, CHUNK)
    low, high = weight.scales[2:, 5].bfloat16().view(torch.int16).tolist()
    assert int(paired.scales[1, 5]) & 0xFFFFFFFF == (high & 0xFFFF) << 16 | low & 0xFFFF
    floats = weight.dequantized()
    assert torch.equal(paired.dequantized(), floats)
    assert torch.equal(paired[8:24].dequantized(), floats[8:24])
    assert torch.equal(joined([paired, paired[:8]]).dequantized(), torch.cat([floats, floats[:8]]))
    assert torch.equal(dequantize(paired, torch.empty_like(floats)), floats)
    # Groups twice as long have as many rows of scales, one a row.
    assert kind_of(paired) != kind_of(replace(weight, scales=weight.scales[::2]))
    x = torch.randn(20, 512, device=DEVICE).bfloat16()
    expected = few_tokens_linear(x, floats, TILINGS[0])
    for tiling in TILINGS:  # tiles of one chunk and of two
        for count in (1, 20):
            assert torch.equal(few_tokens_linear(x[:count], paired, tiling), expected[:count])
    for kind, num_inputs in (("int4 with zeros", 512), ("fp8", 512), ("int4", 384), ("int4", LONG_SUM)):
        assert not quantized(kind, 8, num_inputs).in_pairs().is_paired


def test_a_threads_codes_lie_side_by_side():
    """Those that PTX's mma.m16n8k16 wants of its first thread, of the first 16 inputs and of the second."""
    codes = torch.arange(128).expand(2, -1)
    words = packed(codes % 16)[0, :2].tolist()  # of inputs 0, 8, 16, 24 and of 1, 9, 17, 25
    assert [word & 0xFFFF for word in words] == [0x8080, 0x9191]
    codes = (codes + 128).to(torch.uint8).view(torch.float8_e4m3fn)  # input i has the code 128 + i
    assert torch.equal(in_order(arranged(codes)).view(torch.uint8), codes.view(torch.uint8))
    words = arranged(codes)[1, :8].view(torch.int16).tolist()  # of inputs 0, 8, then 1, 9, 16, 24 and 17, 25
    assert [word & 0xFFFF for word in words] == [0x9808, 0x9819, 0x8908, 0x8919]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_float8_as_a_float(dtype):
    """With a scale of 1, subnormal ones too."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(4, 64)
    finite = torch.where(codes.float().isfinite(), codes.float(), 0.0)
    codes, scales = arranged(finite.to(codes.dtype)).to(DEVICE), torch.ones(1, 4, device=DEVICE)
    weight = QuantizedWeight(codes, scales, None, dtype, torch.bfloat16)
    floats = torch.empty(4, 64, dtype=dtype, device=DEVICE)
    assert torch.equal(dequantize(weight, floats).float().cpu(), finite)


# Of four warps together, and of each warp alone: see Tiling.
TILINGS = [Tiling(64, 128, 2, 4), Tiling(16, 128, 2, 1), Tiling(32, 256, 2, 1), Tiling(64, 128, 2, 2, 8)]


@pytest.mark.parametrize("tiling", TILINGS, ids=lambda one: f"{one.outputs}x{one.warps}")
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_the_product_with_floats(kind, tiling):
    """The weights are those that PyTorch makes of the codes."""
    weight = quantized(kind, 88, 384)
    floats = weight.dequantized()
    assert floats.float().abs().max() > 0
    for one in (weight, weight.in_tiles()):
        assert torch.equal(dequantize(one, torch.empty_like(floats)), floats)
    x = torch.randn(20, 384, device=DEVICE).bfloat16()
    expected = few_tokens_linear(x, floats, TILINGS[0])
    for count, one in ((1, weight.in_tiles()), (20, weight), (20, weight.in_tiles())):
        assert torch.equal(few_tokens_linear(x[:count], one, tiling), expected[:count])


# A warp of a chain, of two and of all; of one tile of outputs and of two; of one round of chunks and of two; four warps
# that share all chains; and programs that have one.
OF_CHAINS = [Tiling(16, 512, 2, 4, 8), Tiling(32, 512, 2, 2), Tiling(16, 1024, 2, 1), Tiling(64, 512, 2, 4)]
OF_CHAINS += [Tiling(64, 128, 2, 4), Tiling(32, 256, 2, 2)]


def inputs_of_long_sums(num_tokens, num_inputs):
    """Of a chunk one input alone is there on a CPU, whose libraries add its products as the tile's size lets them.

    Magnitudes differ so much that each order of the chunks has its own bits.
    """
    x = torch.randn(num_tokens, num_inputs, device=DEVICE)
    if DEVICE == "cpu":
        x *= 2.0 ** torch.randint(-12, 12, x.shape)
        x = torch.where(torch.arange(num_inputs) % CHUNK == 77, x, 0.0)
    return x.bfloat16()


@pytest.mark.parametrize("tiling", OF_CHAINS, ids=lambda one: f"{one.outputs}x{one.inputs}x{one.warps}")
@pytest.mark.parametrize("kind", KINDS)
def test_long_sums_have_the_bits_of_floats(kind, tiling):
    """Chains of unequal length; 88 outputs are no whole tiles."""
    weight = quantized(kind, 88, 128 * 6)
    floats = weight.dequantized()
    x = inputs_of_long_sums(20, 128 * 6)
    bias = torch.randn(88, device=DEVICE).bfloat16()
    expected = long_sums_linear(x, floats, Tiling(64, 64, 2, 4, 16), bias)
    error = expected.double() - torch.nn.functional.linear(x.double(), floats.double(), bias.double())
    assert error.abs().max() < 1e-2 * expected.abs().max()
    for count, one in ((1, weight.in_tiles()), (20, weight), (20, weight.in_tiles())):
        assert torch.equal(long_sums_linear(x[:count], one, tiling, bias), expected[:count])
    assert not bool(long_sums.counters(x.device).any())  # as the next launch has to find them


@pytest.mark.parametrize("num_tokens", [1, 17, 64, 70])
def test_chains_in_programs_of_their_own(num_tokens):
    """Some tiles of tokens and of outputs, twice: whoever arrives last counts from zero again."""
    weight = quantized("int4", 136, CHUNK * 9).in_tiles()
    x = inputs_of_long_sums(num_tokens, CHUNK * 9)
    expected = long_sums_linear(x, weight, Tiling(64, 512, 2, 4))
    assert all(torch.equal(long_sums_linear(x, weight, Tiling(64, 128, 2, 4)), expected) for _ in "12")


def test_chains_have_every_fourth_chunk():
    """Small beside large numbers are lost but where a chain has none of the large."""
    x = torch.zeros(1, 128 * 8, device=DEVICE)
    x[:, 0], x[:, 128 * 4], x[:, 128 * 5] = 1e8, 1.0, 1.0
    found = long_sums_linear(x, torch.ones(16, 128 * 8, device=DEVICE), Tiling(64, 64, 2, 4, 16))
    x[:, 0] = -1e8
    less = long_sums_linear(x, torch.ones(16, 128 * 8, device=DEVICE), Tiling(64, 64, 2, 4, 16))
    assert set((found + less).flatten().tolist()) == {0.0}
    x[:, 0], x[:, 128 * 4] = 1e8, -1e8
    found = long_sums_linear(x, torch.ones(16, 128 * 8, device=DEVICE), Tiling(64, 64, 2, 4, 16))
    assert set(found.flatten().tolist()) == {1.0}


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_many_tokens_have_the_bits_of_few_in_long_sums(kind):
    weight = quantized(kind, 40, 128 * 48)
    assert has_long_sums(weight)
    assert not has_long_sums(quantized(kind, 40, 128 * 47))
    x = inputs_of_long_sums(70, 128 * 48)
    by = Product((weight,))
    assert torch.equal(product(x, by)[:3], product(x[:3], by))


def test_scales_too_large_to_leave_zeros_out():
    """Kernels multiply bfloat16's scales of 4 bits by 2 ** 129."""
    weight = quantized("int4", 32, 256)
    assert weight.for_kernels() is weight
    large = replace(weight, scales=weight.scales * 64)
    assert large.scales.max() >= LARGEST_SYMMETRIC_SCALE
    told = large.for_kernels()
    assert torch.equal(told.dequantized(), large.dequantized())
    assert torch.equal(dequantize(told, torch.empty_like(large.dequantized())), large.dequantized())


@pytest.mark.parametrize(
    ("change", "counted"),
    [
        (lambda scales: torch.exp2(scales.mul(100).floor() - 7), torch.bfloat16),
        (lambda scales: scales, torch.float32),  # of more bits than bfloat16 has
        (lambda scales: torch.full_like(scales, LARGEST_SCALE), torch.float32),
    ],
)
def test_scales_that_bfloat16_has_count_as_such(change, counted):
    """Powers of 2, as float8_e8m0fnu are: the same values, for half the instructions."""
    weight = quantized("fp8", 32, 256)
    weight = replace(weight, scales=change(weight.scales))
    told = weight.for_kernels()
    assert told.scale_dtype == counted
    assert torch.equal(told.dequantized(), weight.dequantized())
    assert told.is_finite()
    in_float16 = replace(weight, dtype=torch.float16)
    assert in_float16.for_kernels() is in_float16


def test_scales_of_rows_need_no_whole_chunks():
    weight, x = quantized("fp8", 64, 192), inputs_of_long_sums(3, 192)
    tiling = Tiling(64, 128, 2, 4)
    floats = weight.dequantized()
    assert torch.equal(few_tokens_linear(x, weight, tiling), few_tokens_linear(x, floats, tiling))
    in_chains = long_sums_linear(x, floats, Tiling(64, 64, 2, 4, 16))
    assert torch.equal(long_sums_linear(x, weight, Tiling(16, 512, 2, 4, 8)), in_chains)


@pytest.mark.parametrize("kind", KINDS)
def test_some_and_all_of_the_outputs(kind):
    weight = quantized(kind, 64, 256)
    both = joined([weight, weight[32:]])
    assert torch.equal(both.dequantized(), torch.cat((weight.dequantized(), weight.dequantized()[32:])))
    x, tiling = torch.randn(2, 256, device=DEVICE).bfloat16(), Tiling(64, 128, 2, 4)
    whole = few_tokens_linear(x, both, tiling)
    assert torch.equal(whole[:, 64:], few_tokens_linear(x, both[64:], tiling))


@pytest.mark.parametrize("num_tokens", [3, NUM_FEW // 2 + 1, NUM_EXACT + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_experts(kind, num_tokens):
    """Whichever way blocks of pairs are found and tiles are cut."""
    made = [quantized(kind, num_outputs, 128) for num_outputs in (3 * 256, 3 * 128)]
    floats = [weight.dequantized().unflatten(0, (3, -1)) for weight in made]
    x = torch.randn(num_tokens, 128, device=DEVICE).bfloat16()
    chosen = torch.randint(3, (num_tokens, 2), device=DEVICE)
    weights = torch.rand(num_tokens, 2, device=DEVICE).bfloat16()
    found, expected = (experts(x, *both, chosen, weights) for both in (made, floats))
    if made[0].is_packed and num_tokens > NUM_EXACT:  # sums of whole chunks there, of half ones with floats
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("num_tokens", [3, NUM_FEW // 2 + 1])
def test_experts_in_mxfp4(num_tokens):
    """Inputs of a chunk and a quarter, as gpt-oss' 2,880 are of 22 and a half."""
    made = [float4(3 * 2 * 160, 160), float4(3 * 160, 160)]
    assert made[0].shape == (960, 160)
    floats = [weight.dequantized().unflatten(0, (3, -1)) for weight in made]
    assert all(one.isfinite().all() for one in floats)
    x = torch.randn(num_tokens, 160, device=DEVICE).bfloat16()
    chosen = torch.randint(3, (num_tokens, 2), device=DEVICE)
    weights = torch.rand(num_tokens, 2, device=DEVICE).bfloat16()
    biases = [torch.randn(3, len(one) // 3, device=DEVICE).bfloat16() for one in made]
    clamped = ClampedSwiGLU(*biases, 1.702, 7.0)
    found, expected = (experts(x, *both, chosen, weights, clamped=clamped) for both in (made, floats))
    assert torch.equal(found, expected)


@pytest.mark.skipif(DEVICE == "cpu", reason="about the order in which a matrix unit sums")
@pytest.mark.parametrize("kind", KINDS)
def test_experts_sum_in_the_order_of_floats(kind):
    """Another order shows in one of some 60,000 outputs: a million of them, of four groups."""
    made = [quantized(kind, 4 * 1024, 512), quantized(kind, 4 * 512, 512)]
    floats = [weight.dequantized().unflatten(0, (4, -1)) for weight in made]
    x = torch.randn(NUM_EXACT, 512, device=DEVICE).bfloat16()
    chosen = torch.randint(4, (NUM_EXACT, 2), device=DEVICE)
    weights = torch.rand(NUM_EXACT, 2, device=DEVICE).bfloat16()
    assert torch.equal(experts(x, *made, chosen, weights), experts(x, *floats, chosen, weights))


@pytest.mark.parametrize("num_tokens", [3, 300])
def test_maps_of_codes_and_floats_are_one_product(num_tokens, monkeypatch):
    """Two in codes lie in one piece, which their modules see parts of; many tokens meet floats, some at a time."""
    torch.manual_seed(0)
    monkeypatch.setattr(quantized_ops, "_MOST_FLOATS", 16 * 128)
    monkeypatch.setattr(quantized_ops, "_FLOAT_ROWS", 16)
    held = [QuantizedLinear(quantized(kind, 24, 128), None) for kind in ("fp8", "fp8")]
    plain = torch.nn.Linear(128, 5, device=DEVICE, dtype=torch.bfloat16).requires_grad_(False)
    by = Product.of([*held, plain])
    assert [len(weight) for weight in by.weights] == [48, 5]
    assert held[1].weight.codes.data_ptr() == by.weights[0].codes[24:].data_ptr()
    x = torch.randn(num_tokens, 128, device=DEVICE).bfloat16()
    expected = torch.cat([held[0](x), held[1](x), plain(x)], dim=1)
    torch.testing.assert_close(product(x, by), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(product(x, by.last(21)), expected[:, -21:], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("num_tokens", "num_floats", "launches"), [(1, 37, 1), (20, 37, 1), (20, 513, 2)])
def test_small_floats_behind_codes_are_no_launch_of_their_own(
    num_tokens, num_floats, launches, has_bias, monkeypatch
):
    """Gates of gated delta layers: each output has the bits of its own product; nothing is written beside them."""
    made, launch = [], products.few_tokens_linear
    monkeypatch.setattr(products, "few_tokens_linear", lambda *given: made.append(given) or launch(*given))
    codes = quantized("int4", 88, 256)
    floats = torch.randn(num_floats, 256, device=DEVICE).bfloat16()
    bias = torch.randn(88 + num_floats, device=DEVICE).bfloat16() if has_bias else None
    biases = (None, None) if bias is None else (bias[:88], bias[88:])
    x = torch.randn(num_tokens, 256, device=DEVICE).bfloat16()
    expected = [product(x, Product((one,), its)) for one, its in zip((codes, floats), biases, strict=True)]
    del made[:]
    buffer = torch.full((num_tokens, 8 + 88 + num_floats + 8), 7.0, dtype=x.dtype, device=DEVICE)
    product(x, Product((codes, floats), bias), buffer[:, 8:-8])
    assert len(made) == launches
    assert torch.equal(buffer[:, 8:-8], torch.cat(expected, 1))
    assert bool((buffer[:, :8] == 7).all())
    assert bool((buffer[:, -8:] == 7).all())


@pytest.mark.parametrize("kind", [None, "int4", "int4 with zeros"])
def test_free_memory_is_given_back_without_what_a_product_is_made_of(kind, monkeypatch):
    """While an old weight is held its memory cannot be; later, smaller tensors may lie in it."""
    plain = [torch.nn.Linear(256, 64, device=DEVICE).requires_grad_(False) for _ in range(2)]
    modules = [QuantizedLinear(quantized(kind, 64, 256), None) for _ in plain] if kind else plain
    weights = [one.weight for one in modules]
    tensors = [part for one in weights for part in ((one.codes, one.scales, one.zeros) if kind else (one,))]
    old = [weakref.ref(one.untyped_storage()) for one in tensors if one is not None]
    assert all(one() is not None for one in old)
    del weights, tensors
    held = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append([one() for one in old]))
    Product.of(modules[:1])
    assert not held, "a weight alone stays where it lies"
    Product.of(modules)
    assert held == [[None] * len(old)]


def test_so_it_is_of_experts_that_are_laid_out_anew(monkeypatch):
    """gpt-oss' floats, which are stored with inputs first."""
    config = SimpleNamespace(num_local_experts=2, hidden_size=64, intermediate_size=32, num_experts_per_tok=1)
    module = GptOssMLP(config).requires_grad_(False)
    stacked = module.experts
    old = [weakref.ref(one.untyped_storage()) for one in (stacked.gate_up_proj, stacked.down_proj)]
    held = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append([one() is None for one in old]))
    laid_out = ClampedSparse(module)
    assert held == [[True, False], [True, True]]
    assert stacked.down_proj.data_ptr() == laid_out.down.data_ptr()


@pytest.mark.parametrize("num_tokens", [1, 20, 65])
@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_gates_within_their_product(kind, num_tokens):
    """The bits of the product with the gating behind it, of outputs that are no whole tiles."""
    weight = quantized(kind, 88, 256)
    x = torch.randn(num_tokens, 256, device=DEVICE).bfloat16()
    expected = silu_mul(product(x, Product((weight,))))
    assert torch.equal(gated_product(x, Product((weight.in_tiles(),))), expected)
