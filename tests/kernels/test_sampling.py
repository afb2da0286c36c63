"""The sampling kernel under Triton's interpreter, against sampler.log_probs and the noise of ops/noise.py."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.ops.noise import gumbel_noise
from flashdraft.ops.sampling_rule import GREEDY, SamplingRule
from flashdraft.ops.triton.sampling import noise_of, sampled_tokens
from flashdraft.sampler import log_probs
from flashdraft.sampling_params import SamplingParams

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CPU = torch.device("cpu")


def _told(rules):
    return torch.tensor(rules, dtype=torch.int32, device=DEVICE)


def _expected(logits, params, positions):
    """By sorting, with noise that was made beforehand; and how far the second best is."""
    noise = gumbel_noise(params.seed, positions, logits.shape[1], CPU)
    best = (log_probs(logits.float(), params) + noise).topk(2, -1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1]


@pytest.mark.parametrize("vocab_size", [5, 4999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "cuts",
    [{}, {"top_p": 0.95}, {"top_p": 1e-3}, {"top_k": 3}, {"min_p": 0.05}, {"top_k": 20, "top_p": 0.4, "min_p": 0.02}],
)  # fmt: skip
def test_the_tokens_that_sorting_gives(vocab_size, dtype, cuts):
    """Two rows of four places; of bfloat16 many logits are alike, and cuts keep or drop them together."""
    torch.manual_seed(vocab_size)
    logits = (torch.randn(8, vocab_size + 3) * 3).to(dtype)[:, 1 : vocab_size + 1]
    params = [SamplingParams(0.6, seed=7, **cuts), SamplingParams(1.7, seed=2**62 + 1, **cuts)]
    rules = [SamplingRule(one.temperature, one.seed, one.top_p, one.top_k, one.min_p).told for one in params]
    positions = [3, 4, 5, 6, 0, 1, 2, 70000]
    found = sampled_tokens(
        logits.to(DEVICE),
        _told([[9, *rule] for rule in rules])[:, 1:],
        torch.tensor(positions, device=DEVICE),
    ).cpu()
    for row, one in enumerate(params):
        own = slice(4 * row, 4 * row + 4)
        expected, distance = _expected(logits[own], one, positions[own])
        assert (distance > 1e-4).all(), "choose another seed: two tokens are as good"
        assert torch.equal(found[own], expected)


def test_greedy_rows_take_the_first_of_the_likeliest():
    logits = torch.zeros(2, 3, 50, device=DEVICE).bfloat16()
    logits[..., [31, 7]] = 2.0
    rules = _told([SamplingRule(0.6, 5).told, GREEDY])
    found = sampled_tokens(logits.flatten(0, 1), rules, torch.arange(6, device=DEVICE))
    assert found[3:].tolist() == [7] * 3
    assert len(set(found[:3].tolist())) > 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_row_without_numbers_is_told(wrong):
    """One logit that is no number, or nothing that may be chosen; the neighbour has its token."""
    logits = torch.randn(2, 40, device=DEVICE)
    logits[0, :] = wrong
    if wrong != float("-inf"):
        logits[0, 5:] = 1.0
    rules = _told([SamplingRule(1.0, 5).told])
    found = sampled_tokens(logits, rules, torch.arange(2, device=DEVICE)).tolist()
    assert found[0] == -1
    assert found[1] >= 0


def test_what_a_top_p_that_rounds_to_nothing_keeps():
    logits = torch.randn(1, 40, device=DEVICE)
    rules = _told([SamplingRule(1.0, 5, top_p=1e-60).told])
    assert sampled_tokens(logits, rules, torch.arange(1, device=DEVICE)).item() == logits.argmax().item()


def test_noise_of_some_tokens_is_the_noise_of_all():
    torch.manual_seed(0)
    token_ids = torch.randint(0, 3000, (2, 3, 5), device=DEVICE)
    rules = _told([SamplingRule(0.7, 11).told, GREEDY])
    found = noise_of(token_ids, rules, torch.tensor([6, 9], device=DEVICE)).cpu()
    expected = gumbel_noise(11, [6, 7, 8], 3000, CPU).gather(1, token_ids[0].cpu())
    torch.testing.assert_close(found[0], expected, atol=3e-5, rtol=1e-5)
    assert not found[1].any()
