"""What a drafter drafts on a GPU, against its network in PyTorch: an answer is right whatever was drafted."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import DraftShape
from toys import toy_dflash, toy_dflash2, toy_target

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [DraftShape(5), DraftShape(2)]


def proposed(drafter, shapes):
    """Drafts of two rows behind a few tokens of a context each, and of the second row alone."""
    batch = drafter.open(num_rows=2, num_pages=8, page_size=4)
    rows = [CacheRow("a", [0, 1, 2], 0), CacheRow("b", [3, 4], 0)]
    counts = [6, 3]
    generator = torch.Generator().manual_seed(0)
    size = drafter.model.fc.in_features
    features = [torch.randn(count, size, generator=generator).to(DEVICE) for count in counts]
    for row in rows:
        batch.join(row, [], 12)
    batch.observe(rows, [[5] * count for count in counts], features)
    rows = [row._replace(start=count) for row, count in zip(rows, counts, strict=True)]
    found = batch.propose(rows, [7, 9], shapes)
    return found, batch.propose(rows[1:], [9], shapes[1:])[0]


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (toy_dflash2, {}),
        (toy_dflash2, {"selector_rank": 0}),
        (toy_dflash2, {"conv_kernel_size": 0}),
        (toy_dflash2, {"conv_kernel_size": 3, "draft_vocab_size": 40, "selector_top_k": 4}),
        (toy_dflash, {}),
        (toy_dflash, {"input_embedding_scale": 6.0}),
    ],
)
@pytest.mark.parametrize("shapes", [SHAPES, [DraftShape(4, 6), DraftShape(2)]], ids=["chains", "a tree"])
def test_drafts_are_those_of_the_network_in_pytorch(make, changes, shapes, monkeypatch):
    """Blocks of two lengths, one of which alone is the same draft."""
    target = toy_target(num_hidden_layers=2).to(DEVICE)
    model = make(target, num_hidden_layers=2, **changes).to(DEVICE)
    if model.candidate_selector:
        model.candidate_selector.freeze(target.head_weight())
    with torch.inference_mode():
        found, alone = proposed(DFlashDrafter(model, target), shapes)
        monkeypatch.setattr("flashdraft.spec_decode.dflash.cuda_drafter", lambda *_: None)
        expected, _ = proposed(DFlashDrafter(model, target), shapes)
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.parents == other.parents
        torch.testing.assert_close(
            torch.tensor(one.log_probs), torch.tensor(other.log_probs), rtol=1e-3, atol=1e-4
        )
    assert alone.token_ids == found[1].token_ids
    assert alone.log_probs == pytest.approx(found[1].log_probs, abs=1e-4)


@pytest.mark.parametrize("taps", [4, 5])
def test_convolutions_of_more_taps_than_compile_in_seconds_run_in_pytorch(taps):
    """With the same answer as of the target alone."""
    target = toy_target(num_hidden_layers=1).to(DEVICE)
    drafter = DFlashDrafter(
        toy_dflash2(target, num_hidden_layers=1, conv_kernel_size=taps).to(DEVICE), target
    )
    engine = Engine(target, drafter, EngineConfig(max_running=1, page_size=4, num_pages=24))
    assert engine.runner.drafts_in_rounds == (taps == 4)
    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    engine.add_request("0", [5, 6, 7], params, block_size=6)
    found = [token for output in engine.run() for token in output.token_ids]
    assert found == generate(target, None, [5, 6, 7], params).token_ids
