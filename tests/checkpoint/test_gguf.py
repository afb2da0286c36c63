"""The container: header and tensors as gguf's own reader sees them, and every way a file can be spoiled."""

import gguf
import numpy as np
import pytest

from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.errors import CheckpointError

KINDS = [
    gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_same_as_the_library_reads(make_llama, write_gguf, kind):
    path = write_gguf(make_llama(), {"general.alignment": 64, "x.list": [1, 2, 3], "x.float": 0.1}, kind=kind)
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    assert ours.fields.keys() == {key for key in theirs.fields if not key.startswith("GGUF.")}
    for key, value in ours.fields.items():
        expected = theirs.fields[key].contents()
        if isinstance(value, float):
            assert np.float32(value) == np.float32(expected)
        else:
            assert value == expected
    assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        values = ours.read(tensor.name)
        assert tuple(values.shape) == ours.tensors[tensor.name].shape == tuple(tensor.shape[::-1].tolist())
        assert np.array_equal(values.numpy(), gguf.quants.dequantize(tensor.data, tensor.tensor_type))


def test_values_own_their_memory(make_llama, write_gguf, recwarn):
    file = GGUFFile(write_gguf(make_llama()))
    file.read("output_norm.weight").zero_()
    assert file.read("output_norm.weight").abs().max() > 0
    assert not recwarn.list


@pytest.mark.parametrize("share", [0.0005, 0.005, 0.05])
def test_truncated_header(make_llama, write_gguf, share):
    path = write_gguf(make_llama())
    whole = path.read_bytes()
    kept = int(len(whole) * share)
    path.write_bytes(whole[:kept])
    pattern = rf"truncated or damaged: its header does not end within its {kept} bytes .* fetch it again"
    if share == 0.05:
        pattern = rf"is truncated: found {kept} bytes, expected \d+"
    with pytest.raises(CheckpointError, match=pattern):
        GGUFFile(path)


def test_truncated_data(make_llama, write_gguf):
    path = write_gguf(make_llama())
    whole = path.read_bytes()
    file = GGUFFile(path)
    end = file._start + max(tensor.offset + tensor.num_bytes for tensor in file.tensors.values())
    assert len(whole) - end < 32  # padding
    path.write_bytes(whole[: end - 1])
    with pytest.raises(
        CheckpointError, match=rf"truncated: found {end - 1} bytes, expected {end}; fetch it again"
    ):
        GGUFFile(path)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 and more"])
def test_no_gguf(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"no GGUF file \(it begins with .*, expected b'GGUF'\)"):
        GGUFFile(path)


def test_only_the_magic(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"does not end within its 4 bytes"):
        GGUFFile(path)


def test_other_version(make_llama, write_gguf):
    path = write_gguf(make_llama())
    whole = bytearray(path.read_bytes())
    whole[4:8] = (9).to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"has GGUF version 9; expected one of \(2, 3\)"):
        GGUFFile(path)


def test_damaged_header(make_llama, write_gguf):
    path = write_gguf(make_llama())
    whole = bytearray(path.read_bytes())
    whole[24:32] = (2**60).to_bytes(8, "little")  # the length of the first key
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"truncated or damaged"):
        GGUFFile(path)


def test_tensors_that_cannot_be_dequantized(make_llama, write_gguf):
    path = write_gguf(make_llama(), extra_tensors={"odd": np.arange(32, dtype=np.int32)})
    with pytest.raises(CheckpointError, match=r"holds I32 tensors, which cannot be dequantized"):
        GGUFFile(path)


@pytest.mark.parametrize("alignment", [0, 2**32 - 1])
def test_absurd_alignment(make_llama, write_gguf, alignment):
    path = write_gguf(make_llama(), {"general.alignment": 64})
    whole = path.read_bytes()
    place = whole.index(b"general.alignment") + len(b"general.alignment") + 4
    path.write_bytes(whole[:place] + alignment.to_bytes(4, "little") + whole[place + 4 :])
    with pytest.raises(CheckpointError, match=r"truncated"):
        GGUFFile(path)
