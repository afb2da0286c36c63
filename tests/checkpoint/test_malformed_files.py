"""Files from strangers: every malformed one is one FlashdraftError, soon, and before anything large is built.

``make fuzz`` runs many more cases than the tests do: FLASHDRAFT_FUZZ_CASES says how many of each kind.
"""

import json
import os
import random
import shutil
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from file_fuzz import spoil
from flashdraft.checkpoint.convert import convert_drafter
from flashdraft.checkpoint.load import (
    eos_token_ids,
    generation_defaults,
    load_drafter,
    load_target,
    load_tokenizer,
    outline_target,
    save_drafter,
    training_notes,
)
from flashdraft.errors import CheckpointError, DataError, FlashdraftError
from flashdraft.train.checkpoint import load_state, save_state
from flashdraft.train.ranks import Ranks
from quantized_files import quantize_folder
from toys import toy_dflash

CASES = int(os.environ.get("FLASHDRAFT_FUZZ_CASES", "40"))
LONGEST_S = 5


@contextmanager
def in_time() -> Iterator[None]:
    """Fail where the body does not end."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not over after {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def open_target(place: Path) -> None:
    for door in (outline_target, load_tokenizer, eos_token_ids, generation_defaults, load_target):
        try:
            door(place)
        except FlashdraftError as error:
            assert str(error)  # noqa: PT017


def open_drafter(place: Path, target: Any) -> None:
    for door in (
        lambda: training_notes(place),
        lambda: load_drafter(place, target),
        lambda: load_drafter(place),
    ):
        try:
            door()
        except FlashdraftError as error:
            assert str(error)  # noqa: PT017


@pytest.fixture
def whole(
    folder: Path, sharded_folder: Path, make_llama: Any, write_gguf: Any, tmp_path: Path
) -> dict[str, Path]:
    """A target in one file and in shards, as GGUF, and drafters: whole, with tokenizers."""
    for one in (folder, sharded_folder):
        backend = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, [], unk_token="a"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.add_special_tokens(["<end>"])
        backend.save(str(one / "tokenizer.json"))
        (one / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "<end>", "model_max_length": 512})
        )
        (one / "generation_config.json").write_text(
            json.dumps({"eos_token_id": [2, 3], "temperature": 0.6, "top_k": 5})
        )
    drafter = toy_dflash(load_target(folder, "float32"), draft_vocab_size=32, mask_token_id=5)
    save_drafter(drafter, tmp_path / "z-lab", notes={"chat_template_kwargs": {}})
    convert_drafter(tmp_path / "z-lab", "speculators", tmp_path / "speculators")
    write_gguf(make_llama(vocab_size=41), {"llama.vocab_size": 41})
    for kind in ("block-fp8", "gptq", "w4a16"):
        shutil.copytree(folder, tmp_path / kind)
        quantize_folder(tmp_path / kind, kind)
    return {
        **{kind: tmp_path / kind for kind in ("block-fp8", "gptq", "w4a16")},
        "folder": folder,
        "shards": sharded_folder,
        "gguf": tmp_path / "tiny.gguf",
        "z-lab": tmp_path / "z-lab",
        "speculators": tmp_path / "speculators",
    }


@pytest.mark.parametrize(
    "kind", ["folder", "shards", "gguf", "z-lab", "speculators", "block-fp8", "gptq", "w4a16"]
)
def test_spoiled_files(whole: dict[str, Path], tmp_path: Path, kind: str) -> None:
    target = load_target(whole["folder"], "float32")
    source = whole[kind]
    failed = []
    for seed in range(CASES):
        rng = random.Random(f"{kind} {seed}")
        place = tmp_path / f"spoiled{source.suffix}"
        if source.is_dir():
            shutil.copytree(source, place)
            file = rng.choice(sorted(place.iterdir()))
        else:
            file = Path(shutil.copyfile(source, place))
        done = spoil(file, rng)
        try:
            with in_time(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # transformers' own, of configs
                if kind in ("z-lab", "speculators"):
                    open_drafter(place, target)
                else:
                    open_target(place)
        except Exception as error:
            failed.append(f"{seed}: {file.name}, {done}: {type(error).__name__}: {str(error)[:200]}")
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert not failed, "\n".join(failed)


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            {"num_hidden_layers": 10_000_000},
            "num_hidden_layers is '10000000'; expected a whole number from 1 to 1024",
        ),
        ({"hidden_size": 10**12}, "hidden_size is"),
        ({"vocab_size": -1}, "vocab_size is"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is"),
        ({"rope_parameters": 7}, "rope_parameters|rope"),
    ],
)
def test_sizes_are_checked_before_anything_is_built(
    folder: Path, changes: dict[str, Any], pattern: str
) -> None:
    change_config(folder, **changes)
    for door in (outline_target, load_target):
        with in_time(), pytest.raises(CheckpointError, match=pattern):
            door(folder)


def test_a_drafters_sizes(whole: dict[str, Path]) -> None:
    for name in ("block_size", "num_hidden_layers"):
        folder = whole["z-lab"]
        kept = (folder / "config.json").read_text()
        change_config(folder, **{name: 10**9})
        with in_time(), pytest.raises(CheckpointError, match=f"{name} is '1000000000'"):
            load_drafter(folder)
        (folder / "config.json").write_text(kept)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "", 7, None])
def test_an_index_names_files_of_its_own_folder(sharded_folder: Path, name: Any) -> None:
    file = sharded_folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shard = next(iter(index["weight_map"].values()))
    shutil.copyfile(sharded_folder / shard, sharded_folder.parent / "outside.safetensors")
    index["weight_map"] = {k: name if v == shard else v for k, v in index["weight_map"].items()}
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="expected one of its own folder"):
        load_target(sharded_folder)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
)
def test_a_pipe_in_a_files_place(whole: dict[str, Path], name: str) -> None:
    (whole["folder"] / name).unlink(missing_ok=True)
    os.mkfifo(whole["folder"] / name)
    with (
        in_time(),
        pytest.raises(CheckpointError, match=f"{name} is a pipe, socket or device; expected a file"),
    ):
        load_tokenizer(whole["folder"])
    if name == "config.json":
        with in_time(), pytest.raises(CheckpointError, match="is a pipe"):
            load_target(whole["folder"])


@pytest.mark.parametrize("offsets", [[-8, 8], [16, 0], [0, 4], ["a", "b"], None])
def test_offsets_that_cannot_be(folder: Path, offsets: Any) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        load_target(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(folder: Path, value: float) -> None:
    """Every answer would be token 0 for ever."""
    file = folder / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"][3] = value
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"1 of 64 values of model\.norm\.weight are no finite numbers"):
        load_target(folder)


def test_large_values_are_numbers(folder: Path) -> None:
    """Their sum is none in float32, which is what is looked at first."""
    file = folder / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"][:] = 3e38
    save_file(state, file)
    assert load_target(folder, "float32").state_dict()["model.norm.weight"].isfinite().all()


def test_a_flipped_byte_in_a_training_state(tmp_path: Path) -> None:
    """Memory maps do not look at the files' checksums."""
    state = {"master": {"w": torch.arange(1000.0)}}
    save_state(tmp_path, {"step": 3}, state, Ranks())
    read = load_state(tmp_path)
    assert read is not None
    assert torch.equal(read[1]["master"]["w"], state["master"]["w"])
    part = next(tmp_path.glob("state-3-*.pt"))
    data = bytearray(part.read_bytes())
    place = data.index(np.float32(500.0).tobytes())
    data[place] ^= 1
    part.write_bytes(data)
    with pytest.raises(DataError, match=r"the checksum of .* is another.*delete state\.pt"):
        load_state(tmp_path)


@pytest.mark.parametrize("name", ["state.pt", "state-3-0-of-1.pt"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_training_state_that_was_cut(tmp_path: Path, name: str, share: float) -> None:
    save_state(tmp_path, {"step": 3}, {"master": {"w": torch.arange(1000.0)}}, Ranks())
    file = tmp_path / name
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(
        DataError, match=rf"{name}: cannot be read .*; delete state\.pt to start the run anew"
    ):
        load_state(tmp_path)


def test_a_state_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nat ...")

    saved: Callable[..., None] = torch.save
    save_state(tmp_path, {"step": 1}, {"master": {"w": torch.ones(3)}}, Ranks())
    monkeypatch.setattr("torch.save", full)
    with pytest.raises(DataError, match=r"cannot be written .*file write failed.; make room"):
        save_state(tmp_path, {"step": 2}, {"master": {"w": torch.zeros(3)}}, Ranks())
    monkeypatch.setattr("torch.save", saved)
    read = load_state(tmp_path)
    assert read is not None
    assert read[0]["step"] == 1
