"""Products on matrix units, emulated where the CPU has none, against the modules and against vectors."""

from ctypes import CDLL
from pathlib import Path

import pytest
import torch

from flashdraft.generate import generate
from flashdraft.native.accelerate import accelerate_drafter
from flashdraft.native.library import PATHS, compile_to, declare, library, runnable_paths
from flashdraft.native.packing import Kind
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from native_pair import draft_network, ids, logits_of, make

AVX512 = PATHS[0]

pytestmark = pytest.mark.skipif(
    AVX512 not in runnable_paths() or library() is None, reason="this CPU has no AVX-512 bf16 and VNNI"
)

EMULATED = Path(__file__).with_name("emulated_units.h")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> CDLL:
    place = tmp_path_factory.mktemp("native") / "emulated.so"
    compile_to(AVX512, place, "-O1", "-include", str(EMULATED))
    return declare(CDLL(str(place)))


@pytest.fixture(autouse=True)
def on_units(emulated: CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    assert emulated.matrix_units()
    monkeypatch.setattr("flashdraft.native.accelerate.library", lambda: emulated)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_match_the_modules_and_have_the_same_bits_in_any_chunk(threads: int) -> None:
    target, reference = make()
    target.native.num_threads = threads
    tokens = ids(70)
    one_by_one, wanted = logits_of(target, tokens, [1] * 70), logits_of(reference, tokens, [70])
    assert (one_by_one - wanted).abs().max() < 0.02 * wanted.abs().max()
    # Passes of one block of rows and of two, whole ones and parts.
    for chunks in ([70], [7, 16, 17, 30], [32, 33, 5], [1, 47, 22]):
        assert torch.equal(logits_of(target, tokens, chunks), one_by_one)


def test_weights_in_8_bits_stay_with_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ids(40)
    found = logits_of(make("int8")[0], tokens, [40])
    monkeypatch.setattr("flashdraft.native.accelerate.library", library)
    assert torch.equal(logits_of(make("int8")[0], tokens, [40]), found)


def test_the_drafter_is_held_in_bfloat16_and_answers_are_the_same_with_any_block() -> None:
    target, _ = make()
    network = draft_network(target)
    fast = accelerate_drafter(network, target.head_weight())
    assert fast
    assert fast.native.head.kind == fast.native.others[0].kind == Kind.BF16
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    drafter = DFlashDrafter(network, target, fast)
    for prompt in (ids(3), ids(37)):
        plain = generate(target, None, prompt, params).token_ids
        assert generate(target, drafter, prompt, params).token_ids == plain
