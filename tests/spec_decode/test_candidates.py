"""Candidates whose slots depend on each other: the walk and the trees against brute force, and served without loss."""

from itertools import product

import pytest
import torch

from flashdraft.generate import generate
from flashdraft.models.dflash_config import DFlashConfig
from flashdraft.sampler import SharedNoise, sample
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.candidates import Candidates, candidates_of, noise_of
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import DraftSampling
from flashdraft.spec_decode.tree import DraftTree
from toys import toy_dflash2, toy_target

SLOTS, COUNT = 3, 4


def dependent(rows: int) -> Candidates:
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.stack(
        [torch.randperm(20, generator=generator)[: SLOTS * COUNT].view(SLOTS, COUNT) for _ in range(rows)]
    )
    log_probs = torch.randn(rows, SLOTS, COUNT, generator=generator).sort(-1, descending=True).values
    pairs = 2 * torch.randn(rows, SLOTS, COUNT, COUNT, generator=generator)
    pairs[:, 0] = pairs[:, 0, :1]  # behind the anchor
    return Candidates(token_ids, log_probs, pairs)


def scored(candidates: Candidates, row: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every continuation, slot by slot."""
    assert candidates.pairs is not None
    found = {}
    for depth in range(1, SLOTS + 1):
        for path in product(range(COUNT), repeat=depth):
            total, before = 0.0, 0
            for slot, place in enumerate(path):
                scores = candidates.log_probs[row, slot] + candidates.pairs[row, slot, before]
                total += float(scores.log_softmax(-1)[place])
                before = place
            found[tuple(int(candidates.token_ids[row, s, p]) for s, p in enumerate(path))] = total
    return found


def continuations(tree: DraftTree) -> list[tuple[int, ...]]:
    texts: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.token_ids, tree.parents, strict=True):
        texts.append((*texts[parent], token))
    return texts[1:]


def test_the_walk_takes_the_best_candidate_behind_the_last_one() -> None:
    candidates = dependent(5)
    for row, draft in enumerate(candidates.chains([SLOTS] * 5)):
        values, text = scored(candidates, row), ()
        for token, log_prob in zip(draft.token_ids, draft.log_probs, strict=True):
            longer = {t: v for t, v in values.items() if t[:-1] == text}
            best = max(longer, key=longer.__getitem__)
            assert log_prob == pytest.approx(values[best] - values.get(text, 0.0), abs=1e-5)
            text = (*text, token)
            assert text == best
    alone = candidates.log_probs.argmax(-1)
    walked = candidates.walk().token_ids[..., 0]
    assert (walked != candidates.token_ids.gather(2, alone.unsqueeze(-1))[..., 0]).any()


@pytest.mark.parametrize("num_tokens", [1, 6, 40])
def test_trees_are_the_best_by_joint_scores(num_tokens: int) -> None:
    candidates = dependent(3)
    sizes = [num_tokens, 0, num_tokens]
    trees = candidates.trees([SLOTS] * 3, sizes, COUNT)
    assert trees[1] == candidates.chains([SLOTS] * 3)[1]
    for row in (0, 2):
        values = scored(candidates, row)
        assert continuations(trees[row]) == sorted(values, key=lambda text: -values[text])[:num_tokens]
        assert trees[row].first(3) == candidates.trees([SLOTS] * 3, [3] * 3, COUNT)[row].first(num_tokens)


@pytest.mark.parametrize("tree", [None, 12])
@pytest.mark.parametrize(("temperature", "scores_first"), [(0.0, True), (0.8, True), (0.8, False)])
def test_answers_are_the_targets_own(tree: int | None, temperature: float, scores_first: bool) -> None:
    target = toy_target(vocab_size=11)  # random drafts are right now and then
    drafter = DFlashDrafter(toy_dflash2(target, selector_anchor_sampled=scores_first), target)
    accepted = 0
    for seed in range(4):
        params = SamplingParams(temperature=temperature, seed=seed, max_tokens=40, ignore_eos=True)
        prompt = [seed + 1, 3, 5, 7]
        found = generate(target, drafter, prompt, params, draft_tree=tree)
        assert found.token_ids == generate(target, None, prompt, params).token_ids
        accepted += found.metrics.num_accepted
    assert accepted > 4


def test_drafts_that_share_the_targets_noise_are_kept_as_often_as_they_can_be() -> None:
    """Against the formula, and the final tokens against the target's distribution: a chi-square that a bias fails."""
    vocab_size, num_samples, temperature = 8, 20_000, 1.0
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, vocab_size, generator=generator)
    ids = torch.tensor([[[5, 0, 3, 6]]])
    scores = torch.randn(1, 1, 4, generator=generator).sort(-1, descending=True).values
    p = logits[0].softmax(-1)
    q = torch.zeros(vocab_size).scatter(0, ids[0, 0], scores[0, 0].softmax(-1))
    params = SamplingParams(temperature=temperature)
    tokens, drafts = torch.zeros(vocab_size), torch.zeros(vocab_size)
    num_kept = 0
    for seed in range(num_samples):
        noise = SharedNoise(seed)
        made = noise_of(ids, [DraftSampling(noise, temperature, 9)], vocab_size)
        sampled = Candidates(ids, scores).as_sampled(*made)
        [draft] = sampled.chains([1])
        token = int(sample(logits, params, noise, 9))
        num_kept += draft.token_ids == [token]
        tokens[token] += 1
        drafts[draft.token_ids[0]] += 1

    def chi_square(counts: torch.Tensor) -> float:
        return float(((counts - num_samples * p).square() / (num_samples * p)).sum())

    critical = 24.3  # of 7 degrees of freedom at 0.1 %
    assert chi_square(tokens) < critical
    assert chi_square(drafts) > critical
    assert (drafts[q == 0] == 0).all()
    expected = sum(1 / float(torch.maximum(p / p[x], q / q[x]).sum()) for x in ids[0, 0].tolist())
    assert num_kept / num_samples == pytest.approx(expected, abs=0.01)


def test_rows_that_are_not_sampled_stay_as_they_are() -> None:
    candidates = dependent(2)
    plain = Candidates(candidates.token_ids, candidates.log_probs)
    samplings = [DraftSampling(SharedNoise(3), 0.7, 5), None]
    for some in (candidates, plain):
        mixed = some.as_sampled(*noise_of(some.token_ids, samplings, 20))
        assert mixed.chains([SLOTS] * 2)[1] == some.chains([SLOTS] * 2)[1]
        assert mixed.trees([SLOTS] * 2, [6, 6], COUNT)[1] == some.trees([SLOTS] * 2, [6, 6], COUNT)[1]
        assert mixed.walk().token_ids[0].tolist() != some.walk().token_ids[0].tolist()


@pytest.mark.parametrize("scores_first", [True, False])
def test_a_sampled_rows_first_slot_is_left_to_the_layers(scores_first: bool) -> None:
    """For a drafter that says so: greedy rows beside it and later slots have their pairs as ever."""
    target = toy_target()
    network = toy_dflash2(target, std=0.5, selector_anchor_sampled=scores_first)
    assert DFlashConfig.from_dict(network.config.to_dict()) == network.config
    hidden, anchors = torch.randn(2, SLOTS, 48), torch.tensor([3, 4])
    found = candidates_of(network, target, hidden, anchors, 1)
    made = noise_of(found.token_ids, [DraftSampling(SharedNoise(3), 0.5, 5), None], 97)
    sampled = DFlashDrafter(network, target).as_sampled(found, *made)
    assert found.pairs is not None
    assert sampled.pairs is not None
    torch.testing.assert_close(sampled.pairs[0, 1:], 2 * found.pairs[0, 1:])
    torch.testing.assert_close(sampled.pairs[0, 0], 2 * found.pairs[0, 0] * scores_first)
    assert torch.equal(sampled.pairs[1], found.pairs[1])
    assert found.pairs[0, 0].abs().max() > 0
