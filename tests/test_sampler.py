"""Sampling: each cut against its definition, the law of the samples, and noise as a function of seed and place."""

import pytest
import torch

from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.ops.noise import gumbel_noise
from flashdraft.sampler import SharedNoise, log_probs, sample
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash, toy_target

LOGITS = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 3


def test_temperature_and_cuts_equal_their_definitions() -> None:
    probs = (LOGITS / 0.7).softmax(-1)
    torch.testing.assert_close(log_probs(LOGITS, SamplingParams(temperature=0.7)).exp(), probs)
    for row, cut in zip(probs, log_probs(LOGITS, SamplingParams(temperature=0.7, top_k=5)), strict=True):
        kept = cut.isfinite().nonzero().flatten().tolist()
        assert sorted(kept) == sorted(row.topk(5).indices.tolist())
    for row, cut in zip(probs, log_probs(LOGITS, SamplingParams(temperature=0.7, min_p=0.1)), strict=True):
        assert cut.isfinite().tolist() == (row >= 0.1 * row.max()).tolist()
    for row, cut in zip(probs, log_probs(LOGITS, SamplingParams(temperature=0.7, top_p=0.8)), strict=True):
        kept = cut.isfinite()
        smallest = row[kept].min()
        assert row[kept].sum() >= 0.8 > row[kept].sum() - smallest
        torch.testing.assert_close(cut.exp().sum(), torch.tensor(1.0))


def test_a_nucleus_of_any_size_is_its_definition_and_does_not_depend_on_the_batch() -> None:
    spread = torch.tensor([[5.0], [0.1], [3.0], [0.0]])  # a few tokens to nearly all; the last: all alike
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(1)) * spread
    params = SamplingParams(temperature=1.0, top_p=0.9)
    together = log_probs(logits, params)
    sizes = together.isfinite().sum(-1).tolist()
    assert sizes[0] < 512 < sizes[1]
    assert sizes[3] == 3000  # tokens that are as likely are kept or cut together
    for row, cut in zip(logits, together, strict=True):
        assert torch.equal(cut, log_probs(row[None], params)[0])
    for row, cut in zip(logits[:3].double().softmax(-1), together, strict=False):
        kept = cut.isfinite()
        assert row[kept].min() > row[~kept].max()
        assert row[kept].sum() >= 0.9 - 1e-6
        assert row[kept].sum() - row[kept].min() < 0.9 + 1e-6


def test_noise_depends_on_seed_and_position_alone() -> None:
    device = torch.device("cpu")
    together = gumbel_noise(5, [3, 4, 9], 100, device)
    assert torch.equal(together[1], gumbel_noise(5, [4], 100, device)[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], gumbel_noise(6, [3], 100, device)[0])


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> tuple[float, int]:
    """The statistic and its degrees of freedom, cells of less than 5 expected put together."""
    expected = probs * counts.sum()
    rare = expected < 5
    seen = torch.cat((counts[~rare], counts[rare].sum().view(1)))
    wanted = torch.cat((expected[~rare], expected[rare].sum().view(1)))
    wanted, seen = wanted[wanted > 0], seen[wanted > 0]
    return float(((seen - wanted) ** 2 / wanted).sum()), len(wanted) - 1


def is_far(statistic: float, freedom: int) -> bool:
    """Wilson-Hilferty: beyond 5 standard deviations, a false alarm in about 3.5 million."""
    spread = (2 / (9 * freedom)) ** 0.5
    return ((statistic / freedom) ** (1 / 3) - (1 - spread**2)) / spread > 5


def test_samples_follow_the_law_and_a_bias_is_seen() -> None:
    params = SamplingParams(temperature=0.8, top_k=12)
    logits = LOGITS[:1]
    counts = torch.zeros(50)
    for seed in range(20_000):
        counts[sample(logits, params, SharedNoise(seed), 7)] += 1
    law = log_probs(logits, params)[0].exp()
    assert not is_far(*chi_square(counts, law))
    biased = law.clone()
    biased[law.argmax()] *= 0.8
    assert is_far(*chi_square(counts, biased / biased.sum()))


def test_the_joint_law_within_a_block_is_the_targets() -> None:
    """Three tokens of one block, 300 seeds, against the target's own law by enumeration (false alarm 3.5e6)."""
    target = toy_target(vocab_size=4, eos_token_id=None)
    drafter = DFlashDrafter(toy_dflash(target, block_size=4), target)
    params = [SamplingParams(temperature=1.5, max_tokens=3, seed=seed) for seed in range(300)]
    counts = torch.zeros(4, 4, 4)
    for one in params:
        counts[tuple(generate(target, drafter, [1, 0, 3], one).token_ids)] += 1
    law = joint_law(target, [1, 0, 3], 1.5)
    assert not is_far(*chi_square(counts.flatten(), law.flatten()))
    # What rejection without a fresh sample would do: the middle token drawn at another temperature.
    assert is_far(*chi_square(counts.flatten(), joint_law(target, [1, 0, 3], 1.0).flatten()))


@torch.no_grad()
def joint_law(target: object, prompt: list[int], temperature: float) -> torch.Tensor:
    from flashdraft.batch import ForwardBatch

    def next_probs(ids: list[int]) -> torch.Tensor:
        hidden = target.forward(ForwardBatch.of_row(ids, 0), target.new_cache(1, 16)).hidden  # type: ignore[attr-defined]
        return (target.logits(hidden[0, -1]) / temperature).softmax(-1)  # type: ignore[attr-defined]

    law = torch.zeros(4, 4, 4)
    first = next_probs(prompt)
    for a in range(4):
        second = next_probs([*prompt, a])
        for b in range(4):
            law[a, b] = first[a] * second[b] * next_probs([*prompt, a, b])
    return law


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -2), ("min_p", 2.0), ("max_tokens", 0)],
)
def test_a_value_out_of_range_is_told(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"{field} is {value}; expected"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]
