"""The embedded drafter's recipe on sampled answers: losses by hand, acceptance reckoned against served."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flashdraft.answer import RoundEvent
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import with_dflash2
from scripts import scripts
from toys import toy_dflash, toy_dflash2, toy_target

TARGET = toy_target().requires_grad_(False)
CONFIG = TrainConfig(
    head="dflash2", selector_rank=8, selector_top_k=6, block_size=8, seq_len=128, rows_per_step=2, blocks_per_row=16,
    total_blocks=32 * 60, lr=5e-3, eval_minutes=60.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The recipe's modules ``objective`` and ``sampled``."""
    with scripts("recipes/smollm2-135m", "dflash2_objective", "dflash2_sampled") as (objective, sampled):
        yield SimpleNamespace(objective=objective, sampled=sampled)


def answered(count: int, temperature: float, max_tokens: int = 40) -> list[Document]:
    rng = random.Random(0)
    documents = []
    for i in range(count):
        prompt = [rng.randrange(97) for _ in range(rng.randrange(3, 20))]
        params = SamplingParams(temperature=temperature, seed=i, max_tokens=max_tokens)
        answer = generate(TARGET, None, prompt, params)
        documents.append(Document(str(i), "toy", temperature, prompt, answer.token_ids, "length"))
    return documents


def test_a_row_is_trained_for_its_label_or_for_the_targets_distribution(recipe: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator).requires_grad_()
    head, teacher = (torch.randn(n, 16, generator=generator) for n in (50, 37))
    labels = torch.randint(50, (37,), generator=generator)
    is_soft = torch.rand(37, generator=generator) < 0.5
    candidates = torch.empty(37, 6, dtype=torch.int64)
    loss = recipe.objective.MixedHeadLoss.apply(hidden, head, labels, teacher, is_soft, candidates)
    assert torch.equal(candidates, (hidden @ head.T).topk(6).indices)
    (gradient,) = torch.autograd.grad(loss, hidden)
    log_q, p = (hidden @ head.T).log_softmax(-1), (teacher @ head.T).softmax(-1)
    wanted = torch.where(is_soft[:, None], p, F.one_hot(labels, 50).float())
    expected = -(wanted * log_q).sum(-1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, hidden)[0])


@pytest.mark.parametrize("is_accepted", [False, True])
@pytest.mark.parametrize("projects", [False, True])
def test_the_selectors_loss_of_sampled_slots_is_the_one_by_hand(
    recipe: Any, is_accepted: bool, projects: bool
) -> None:
    drafter = toy_dflash2(TARGET, std=0.5, selector_projects_head=projects)
    head = TARGET.head_weight()
    if projects:
        selector = drafter.candidate_selector
        torch.nn.init.normal_(selector.successor_projection, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = torch.randn(2, 30, 48, generator=generator)
    hidden.requires_grad_()
    labels, before = torch.randint(97, (2, 30), generator=generator)
    is_soft = torch.arange(30) % 3 > 0
    all_p, losses = (teacher @ head.T).softmax(-1), []
    rows = zip(hidden, labels.tolist(), before.tolist(), is_soft.tolist(), all_p, strict=True)
    for h, label, prior, soft, p in rows:
        logits = head @ h
        ids = logits.topk(drafter.config.selector_top_k).indices.tolist()
        if not soft and label not in ids:
            ids[-1] = label
        pairs = drafter.candidate_selector(h[None], torch.tensor([[prior]]), torch.tensor([ids]), head)[0, 0]
        q = (logits[ids] + pairs).softmax(-1)
        if not soft:
            losses.append(-q[ids.index(label)].log())
        elif is_accepted:
            losses.append(-sum(min(q[i], p[token]) for i, token in enumerate(ids)).log())
        else:
            losses.append(-sum(p[token] * q[i].log() for i, token in enumerate(ids)))
    expected = torch.stack(losses).mean()
    found = recipe.objective.mixed_selector_loss(
        drafter,
        head,
        hidden,
        (hidden @ head.T).topk(drafter.config.selector_top_k).indices,
        labels,
        before,
        (teacher, (teacher @ head.T).logsumexp(-1)),
        is_soft,
        is_accepted,
    )
    torch.testing.assert_close(found, expected)
    wanted, learned = (torch.autograd.grad(loss, hidden)[0] for loss in (expected, found))
    torch.testing.assert_close(learned, wanted)


def test_the_chance_that_a_draft_is_kept_is_that_of_the_noise_both_share(recipe: Any) -> None:
    drafter = toy_dflash2(TARGET, std=0.5)
    document = answered(1, 1.0, 12)[0]
    row = pack([document], 128).rows(slice(None))
    blocks = recipe.sampled.blocks_at(row, row.is_anchor.nonzero()[:4, 1:].T, torch.ones(1, 4).bool(), 8)
    some = recipe.sampled.Blocks(
        *(t[0] for t in (blocks.anchors, blocks.doc_start, blocks.labels, blocks.has_label))
    )
    generator = torch.Generator().manual_seed(1)
    hidden, final = torch.randn(4, 7, 48, generator=generator), torch.randn(128, 48, generator=generator) / 4
    every = TARGET.logits(hidden[0]).topk(drafter.config.selector_top_k).indices
    some.labels[0, 1:] = every[:, 1]  # a text whose every token is a candidate
    chances = recipe.sampled._chances(TARGET, drafter, hidden, some, final)["noise, 1.0"]
    for slot, ids in enumerate(every):
        text, prior = some.labels[0, slot + 1], some.labels[0, slot]
        pairs = drafter.candidate_selector(
            hidden[None, 0, slot], prior.view(1, 1), ids[None], TARGET.head_weight()
        )
        log_q = (TARGET.logits(hidden[0, slot])[ids] + pairs[0, 0]).log_softmax(-1)
        log_p = TARGET.logits(final[some.anchors[0] + slot]).log_softmax(-1)
        noise = -torch.empty(200_000, 97).exponential_(generator=generator).log()
        is_text = (log_p + noise).argmax(-1) == text
        kept = (ids[(log_q + noise[:, ids]).argmax(-1)] == text)[is_text].float()
        assert len(kept) > 300
        assert abs(kept.mean() - chances[0, slot]) < 3.5 * (0.25 / len(kept)) ** 0.5


def test_rounds_follow_each_other(recipe: Any) -> None:
    rounds = recipe.sampled.expected_rounds
    assert rounds(torch.zeros(10, 3)) == 10
    assert rounds(torch.ones(10, 3)) == 3  # four tokens, four, two
    # Half of the rounds of one token end with two: f(n) = 1 + f(n - 1) / 2 + f(n - 2) / 2.
    assert rounds(torch.full((4, 1), 0.5)) == pytest.approx(2.875)


@pytest.mark.parametrize("objective", ["soft", "accepted"])
def test_it_learns_and_reckoned_acceptance_is_the_served_one(
    recipe: Any, tmp_path: Path, objective: str
) -> None:
    documents = answered(60, 1.0)
    rows = pack(documents, 128)
    drafter = with_dflash2(toy_dflash(TARGET), CONFIG)
    untrained = recipe.sampled.sampled_lengths(TARGET, drafter, rows, (8, 2, 16))
    trainer = recipe.objective.SampledTrainer(TARGET, drafter, rows, {}, CONFIG, tmp_path)
    trainer.aim(torch.ones_like(rows.is_anchor), objective)
    trainer.train(lambda _: None)
    reckoned = recipe.sampled.sampled_lengths(TARGET, drafter, rows, (8, 2, 16))
    assert reckoned["noise, 1.0"] > untrained["noise, 1.0"]
    assert reckoned["rejection, 1.0"] > reckoned["noise, 1.0"]
    accepted: list[int] = []

    def hear(event: RoundEvent) -> None:
        accepted.append(len(event.token_ids))

    num_rounds = 0
    for document in documents:
        accepted.clear()
        params = SamplingParams(temperature=1.0, seed=int(document.id), max_tokens=40)
        served = DFlashDrafter(drafter, TARGET)
        answer = generate(TARGET, served, document.prompt_token_ids, params, on_round=hear)
        assert answer.token_ids == document.answer_token_ids
        num_rounds += len(accepted) - 1
    num_tokens = sum(len(document.answer_token_ids) - 1 for document in documents)
    assert num_tokens / num_rounds == pytest.approx(reckoned["noise, 1.0"], rel=0.05)


def test_greedy_answers_are_trained_for_their_tokens_as_ever(recipe: Any, tmp_path: Path) -> None:
    rows, losses = pack(answered(8, 0.0), 128), []
    for objective in ("labels", "accepted"):
        drafter = with_dflash2(toy_dflash(TARGET), CONFIG)
        trainer = recipe.objective.SampledTrainer(TARGET, drafter, rows, {}, CONFIG, tmp_path / objective)
        trainer.aim(torch.zeros_like(rows.is_anchor), objective)
        losses.append(trainer._step())
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"weighting": "decay"}, "weighting is 'decay'; expected 'dpace'"),
        ({"selector_rank": 0}, "selector_rank 0"),
    ],
)
def test_what_an_objective_does_not_know_is_refused(
    recipe: Any, tmp_path: Path, setting: dict[str, Any], found: str
) -> None:
    rows, config = pack(answered(2, 1.0), 128), replace(CONFIG, **setting)
    drafter = with_dflash2(toy_dflash(TARGET), config)
    trainer = recipe.objective.SampledTrainer(TARGET, drafter, rows, {}, config, tmp_path)
    trainer.aim(torch.ones_like(rows.is_anchor), "labels")
    with pytest.raises(ValueError, match=found):
        trainer.aim(torch.ones_like(rows.is_anchor), "soft")
