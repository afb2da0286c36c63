"""Products of packed weights, of every kind that a path of the C++ part has."""

import pytest
import torch

from flashdraft.native.library import library
from flashdraft.native.packing import Kind, PackedWeights

pytestmark = pytest.mark.usefixtures("cpu_path")


@pytest.mark.parametrize("num_rows", [1, 7])
@pytest.mark.parametrize("value", [3.0, -3.0])
def test_the_largest_products_do_not_overflow(num_rows: int, value: float) -> None:
    lib = library()
    assert lib
    rows, out = torch.full((num_rows, 1536), 5.0).bfloat16(), torch.empty(num_rows, 32)
    for kind in (Kind(lib.bf16_kind()), Kind(lib.byte_kind()), Kind.INT8, Kind.INT4):
        packed = PackedWeights([(torch.full((32, 1536), value), kind)])
        lib.linear(packed.linears[0], rows.data_ptr(), num_rows, out.data_ptr(), 1)
        rtol = 1e-5 if kind in (Kind.BF16, Kind.INT16) else 5e-4  # a scale in float16
        assert torch.allclose(out, torch.tensor(value * 5.0 * 1536), rtol=rtol)


@pytest.mark.parametrize("num_rows", [1, 4, 7])
def test_products_of_bytes_are_those_of_the_rounded_numbers(num_rows: int) -> None:
    lib = library()
    assert lib
    weight, blocks = torch.randn(32, 96), torch.randint(-127, 128, (num_rows, 3, 32))
    blocks[..., 5] = 127  # so that these are the very numbers that rows are rounded to
    rows = (blocks.view(num_rows, 96) / 32).bfloat16()
    for kind in {Kind.INT8, Kind(lib.byte_kind())}:
        largest = {Kind.INT8: 127, Kind.INT7: 63}[kind]
        packed, out = PackedWeights([(weight, kind)]), torch.empty(num_rows, 32)
        lib.linear(packed.linears[0], rows.data_ptr(), num_rows, out.data_ptr(), 1)
        kept = weight.view(32, 3, 32)
        scale = (kept.abs().amax(-1, keepdim=True) / largest).half().float()
        wanted = rows.float() @ ((kept / scale).round() * scale).view(32, 96).T
        assert torch.allclose(out, wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("num_rows", range(2, 18))
def test_a_row_has_the_bits_of_itself_alone_beside_any_number_of_rows(num_rows: int) -> None:
    lib = library()
    assert lib
    rows = torch.randn(num_rows, 96).bfloat16()
    for kind in {Kind(lib.bf16_kind()), Kind(lib.byte_kind()), Kind.BF16, Kind.INT8, Kind.INT4}:
        packed = PackedWeights([(torch.randn(48, 96), kind)])  # three tiles: two go together, one by itself
        together, alone = torch.empty(num_rows, 48), torch.empty(num_rows, 48)
        lib.linear(packed.linears[0], rows.data_ptr(), num_rows, together.data_ptr(), 1)
        for row, out in zip(rows, alone, strict=True):
            lib.linear(packed.linears[0], row.data_ptr(), 1, out.data_ptr(), 1)
        assert torch.equal(together, alone), kind
