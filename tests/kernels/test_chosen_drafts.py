"""The likeliest tokens of slots, what follows what by a selector, and the walk: against spec_decode/candidates.py."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.cuda.build import RowRules
from flashdraft.cuda.drafter import CudaDrafter
from flashdraft.models.dflash2 import CandidateSelector
from flashdraft.ops.sampling_rule import GREEDY, SamplingRule
from flashdraft.ops.triton import chosen_drafts
from flashdraft.ops.triton.chosen_drafts import branches, likeliest_tokens, walked
from flashdraft.spec_decode.candidates import Candidates, candidates_of
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash2, toy_target

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("vocab_size", "count"), [(5, 16), (100, 4), (700, 16), (300, 1)])
def test_the_likeliest_tokens(vocab_size, count, dtype, monkeypatch):
    """Rows apart in memory, pieces of which the last one is not whole, and, of 16 bits, many that are alike."""
    monkeypatch.setattr(chosen_drafts, "_PIECE", 256)
    torch.manual_seed(vocab_size)
    logits = (torch.randn(4, vocab_size + 3) * 4).to(dtype)[:, 1 : vocab_size + 1].to(DEVICE)
    logits[1] = -2.5
    logits[2, vocab_size // 2 :] = float("-inf")
    ids, log_probs = likeliest_tokens(logits, count, None)
    wide, count = logits.float(), min(count, vocab_size)
    order = wide.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    assert torch.equal(ids, order)
    expected = wide.log_softmax(-1).gather(1, order)
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)


def test_keys_of_16_bits_have_room_for_their_places(monkeypatch):
    """A vocabulary of more pieces than 16 bits can tell apart has keys of 64."""
    monkeypatch.setattr(chosen_drafts, "_PIECE", 1 << 14)
    logits = torch.randn(1, 70_000, device=DEVICE).bfloat16()
    ids, _ = likeliest_tokens(logits, 16, None)
    assert torch.equal(ids, logits.sort(dim=-1, descending=True, stable=True).indices[:, :16])


def test_rows_of_a_draft_vocabulary_are_told_as_tokens():
    logits = torch.randn(3, 40, device=DEVICE)
    distances = torch.arange(40, device=DEVICE) * 2
    rows, _ = likeliest_tokens(logits, 4, None)
    ids, _ = likeliest_tokens(logits, 4, distances)
    assert torch.equal(ids, rows * 3)


def test_no_number_is_first_and_its_row_has_no_probabilities():
    logits = torch.randn(2, 40, device=DEVICE)
    logits[0, 17] = float("nan")
    ids, log_probs = likeliest_tokens(logits, 4, None)
    assert ids[0, 0] == 17
    assert log_probs.isnan().all(1).tolist() == [True, False]


def selected(rows, slots, count, rank, dtype=torch.float32, seed=0):
    """Candidates with scores of a random selector, and what the kernel is given of them."""
    torch.manual_seed(seed)
    selector = CandidateSelector(24, 50, rank)
    for one in selector.parameters():
        one.data.normal_(std=0.7)
    selector.to(DEVICE, dtype).freeze(torch.empty(0))
    ids = torch.stack([torch.randperm(50)[:count] for _ in range(rows * slots)]).view(rows, slots, count)
    log_probs = torch.randn(rows, slots, count).log_softmax(-1).sort(-1, descending=True).values
    hidden = torch.randn(rows, slots, 24).to(DEVICE, dtype)
    ids, log_probs, anchors = ids.to(DEVICE), log_probs.to(DEVICE), torch.arange(rows, device=DEVICE) + 3
    first, last, projection = (one.to(dtype) for one in selector.frozen)
    selector.frozen = first, last, projection
    before = torch.cat((anchors[:, None, None].expand(-1, 1, count), ids[:, :-1]), 1)
    found = Candidates(ids, log_probs, selector(hidden, before, ids, torch.empty(0)))
    wanted = (hidden @ projection.T).flatten(0, 1)
    return found, ((ids, log_probs), anchors, wanted, (first, last))


@pytest.mark.parametrize(("slots", "count", "rank", "ranks"), [(15, 16, 128, 1), (3, 5, 24, 3), (1, 2, 4, 4)])
def test_what_follows_what(slots, count, rank, ranks):
    found, given = selected(3, slots, count, rank)
    log_probs, places = found.ranked(ranks)
    ours = branches(*given, ranks)
    torch.testing.assert_close(ours.log_probs, log_probs, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.places, places)


def test_scores_of_16_bits_are_rounded_as_modules_do():
    found, given = selected(2, 6, 16, 32, torch.bfloat16)
    expected, _ = found.ranked(16)
    torch.testing.assert_close(branches(*given, 16).log_probs, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("slots", [1, 3, 15])
def test_the_walk_takes_the_best_behind_the_one_before(slots):
    """Two rows together have what each has alone; no first candidate everywhere, or a walk would show nothing."""
    found, given = selected(2, slots, 8, 16, seed=slots)
    ids, log_probs = walked(branches(*given, 1))
    expected = found.walk()
    assert torch.equal(ids, expected.token_ids[..., 0])
    torch.testing.assert_close(log_probs, expected.log_probs[..., 0], rtol=1e-5, atol=1e-5)
    assert not torch.equal(ids, found.token_ids[..., 0])
    (token_ids, values), anchors, wanted, codebooks = given
    alone = walked(branches((token_ids[1:], values[1:]), anchors[1:], wanted[slots:], codebooks, 1))
    assert torch.equal(alone[0], ids[1:])
    assert torch.equal(alone[1], log_probs[1:])


def test_a_walk_over_no_numbers_stays_among_the_candidates():
    _, ((ids, log_probs), *rest) = selected(2, 4, 5, 8)
    log_probs[0] = float("nan")
    tokens, values = walked(branches((ids, log_probs), *rest, 1))
    assert (tokens.unsqueeze(-1) == ids).any(-1).all()
    assert values.isinf().any(1).tolist() == [True, False]


@pytest.mark.parametrize("scores_anchor", [True, False])
def test_sampled_rows_beside_greedy_ones(scores_anchor):
    found, given = selected(2, 3, 8, 16)
    rules = torch.tensor([SamplingRule(0.7, 11).told, GREEDY], device=DEVICE).int()
    rows = RowRules(rules, torch.tensor([5, 9], device=DEVICE))
    noise = rows.noise_of(found.token_ids)
    expected = found.as_sampled(noise, rows.temperatures, scores_anchor)
    ours = branches(*given, 2, rules, noise, scores_anchor)
    log_probs, places = expected.ranked(2)
    torch.testing.assert_close(ours.log_probs, log_probs, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.places, places)


@pytest.mark.parametrize(
    "changes", [{}, {"draft_vocab_size": 40}, {"output_multiplier": 0.5, "final_logit_softcapping": 3.0}]
)
def test_a_drafters_walk(changes):
    """From hidden states behind anchors, not in one piece, as candidates_of finds it from logits in float32."""
    target = toy_target(num_hidden_layers=2).to(DEVICE)
    model = toy_dflash2(target, num_hidden_layers=1, **changes).to(DEVICE)
    model.candidate_selector.freeze(target.head_weight())
    network = CudaDrafter(model, num_pages=2, page_size=4, num_rows=1)
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, target.config.hidden_size, device=DEVICE)[:, 1:]
    anchors = torch.tensor([3, 9], device=DEVICE)
    with torch.inference_mode():
        ids, log_probs = DFlashDrafter(model, target).best(network, hidden, anchors, None)
        expected = candidates_of(model, target, hidden, anchors, 1).walk()
    assert torch.equal(ids, expected.token_ids[..., 0])
    torch.testing.assert_close(log_probs, expected.log_probs[..., 0], rtol=1e-4, atol=1e-5)
