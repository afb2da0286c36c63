"""The likeliest tokens of logits and their log-probabilities, against PyTorch's argmax and log_softmax."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.cuda.drafter import CudaDrafter
from flashdraft.ops.triton import likeliest
from flashdraft.ops.triton.likeliest import likeliest_of
from flashdraft.spec_decode.candidates import likeliest_tokens
from toys import toy_dflash, toy_target

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [5, 1024, 2500])
def test_the_first_of_the_likeliest_and_its_share(vocab_size, dtype, monkeypatch):
    """Rows apart in memory; pieces of 1,024: the last one is not whole, and the best of two of them may be alike."""
    monkeypatch.setattr(likeliest, "_PIECE", 1024)
    torch.manual_seed(vocab_size)
    logits = (torch.randn(6, vocab_size + 3) * 4).to(dtype)[:, 1 : vocab_size + 1]
    logits[1] = 2.0
    logits[2, [1, vocab_size - 1]] = 90.0
    logits[3, : vocab_size - 1] = float("-inf")
    token_ids, log_probs = likeliest_of(logits.to(DEVICE), True)
    assert torch.equal(token_ids.cpu(), logits.argmax(-1))
    expected = logits.float().log_softmax(-1).amax(-1)
    torch.testing.assert_close(log_probs.cpu(), expected, rtol=1e-5, atol=1e-5)
    alone, nothing = likeliest_of(logits.to(DEVICE), False)
    assert torch.equal(alone, token_ids)
    assert nothing is None


def test_what_is_no_number_is_taken():
    logits = torch.randn(2, 40, device=DEVICE)
    logits[0, 17] = float("nan")
    token_ids, log_probs = likeliest_of(logits, True)
    assert token_ids.tolist() == [17, logits[1].argmax().item()]
    assert log_probs.isnan().tolist() == [True, False]
    assert likeliest_of(logits, False)[0].tolist() == [-1, token_ids[1].item()], "a target's choice is none"


def test_nothing_is_likely_where_nothing_can_be(monkeypatch):
    """Its share is no number, as by PyTorch: 0 and above would be a sure draft."""
    monkeypatch.setattr(likeliest, "_PIECE", 16)
    logits = torch.full((1, 40), float("-inf"), device=DEVICE)
    token_ids, log_probs = likeliest_of(logits, True)
    assert token_ids.tolist() == [0]
    assert log_probs.isnan().all()
    assert likeliest_of(logits, False)[0].tolist() == [-1]


@pytest.mark.parametrize("changes", [{}, {"output_multiplier": 0.5, "final_logit_softcapping": 3.0}])
def test_a_drafters_likeliest_tokens(changes):
    """As candidates_of finds them from logits in float32; ``hidden`` are slots behind anchors, so not in one piece."""
    target = toy_target(num_hidden_layers=2).to(DEVICE)
    model = toy_dflash(target, num_hidden_layers=1, **changes).to(DEVICE)
    network = CudaDrafter(model, num_pages=2, page_size=4, num_rows=1)
    torch.manual_seed(0)
    hidden = torch.randn(2, 4, target.config.hidden_size, device=DEVICE)[:, 1:]
    with torch.inference_mode():
        found = network.likeliest(hidden, target.head_weight())
        expected = [one.squeeze(-1) for one in likeliest_tokens(model, target, hidden, 1)]
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
