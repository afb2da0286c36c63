"""Training DFlash 2: the selector's loss by hand, a warm start that changes nothing, simulated against served."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from flashdraft.answer import RoundEvent
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train import loss
from flashdraft.train.config import TrainConfig
from flashdraft.train.loss import HeadLoss, selector_loss
from flashdraft.train.run import with_dflash2
from flashdraft.train.simulate import simulate
from flashdraft.train.trainer import Trainer
from toys import toy_dflash, toy_dflash2, toy_target

TARGET = toy_target().requires_grad_(False)
GREEDY = SamplingParams(temperature=0.0, max_tokens=30)
CONFIG = TrainConfig(
    head="dflash2",
    selector_rank=8,
    selector_top_k=6,
    block_size=8,
    seq_len=128,
    rows_per_step=2,
    blocks_per_row=16,
    total_blocks=32 * 60,
    lr=5e-3,
    eval_minutes=60.0,
)


def answered(count: int) -> list[Document]:
    rng = random.Random(0)
    prompts = [[rng.randrange(97) for _ in range(rng.randrange(3, 20))] for _ in range(count)]
    return [
        Document(str(i), "toy", 0.0, prompt, generate(TARGET, None, prompt, GREEDY).token_ids, "length")
        for i, prompt in enumerate(prompts)
    ]


DOCUMENTS = answered(8)
ROWS = pack(DOCUMENTS, 128)


@pytest.mark.parametrize("projects", [False, True])
@pytest.mark.parametrize("skips", [False, True])
def test_the_selectors_loss_is_the_one_by_hand(
    skips: bool, projects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CPU_ROWS", 16)  # several chunks of rows
    drafter = toy_dflash2(TARGET, std=0.5, selector_projects_head=projects)
    selector, head = drafter.candidate_selector, TARGET.head_weight()
    assert selector is not None
    if projects:
        torch.nn.init.normal_(selector.successor_projection, generator=torch.Generator().manual_seed(3))
    first, last = selector.codebooks(head)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 48, generator=generator).requires_grad_()
    labels, before = torch.randint(97, (2, 40), generator=generator)
    labels[:20] = (hidden[:20] @ head.T).argmax(1)
    counts = torch.randint(1, 4, (40,), generator=generator)
    losses, weights, num_missing = [], [], 0
    for h, label, prior, count in zip(hidden, labels.tolist(), before.tolist(), counts.tolist(), strict=True):
        logits = head @ h
        ids = logits.topk(6).indices.tolist()
        num_missing += label not in ids
        if label not in ids:
            if skips:
                continue
            ids[-1] = label
        edges = [(first[prior] * selector.hidden_projection(h) * last[b]).sum() for b in ids]
        scores = logits[ids] + torch.stack(edges)
        losses.append(count * F.cross_entropy(scores, torch.tensor(ids.index(label))))
        weights.append(count)
    assert 5 < num_missing < 25
    expected = torch.stack(losses).sum() / sum(weights)
    candidates = torch.empty(40, 6, dtype=torch.int64)
    HeadLoss.apply(hidden, head, labels, None, None, 0.0, False, candidates)
    assert torch.equal(candidates, (hidden @ head.T).topk(6).indices)
    found = selector_loss(drafter, head, hidden, candidates, labels, before, counts, skips)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, [hidden, *selector.parameters()])
    for gradient, one in zip(
        torch.autograd.grad(found, [hidden, *selector.parameters()]), wanted, strict=True
    ):
        torch.testing.assert_close(gradient, one, rtol=1e-4, atol=1e-6)


def test_a_warm_start_drafts_what_the_plain_drafter_did() -> None:
    plain = toy_dflash(TARGET)
    grown = with_dflash2(plain, dataclasses.replace(CONFIG, selector_rank=0))
    assert (grown.config.conv_kernel_size, grown.config.selector_rank) == (2, 0)
    assert simulate(TARGET, grown, ROWS, 8, 2, 16) == simulate(TARGET, plain, ROWS, 8, 2, 16)
    whole = with_dflash2(plain, CONFIG)
    assert (whole.config.selector_rank, whole.config.selector_top_k) == (8, 6)
    again = with_dflash2(whole, dataclasses.replace(CONFIG, selector_rank=4))
    assert again.config == whole.config
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("projects_head", [True, False])
def test_a_selector_of_a_higher_rank_begins_as_the_one_before(projects_head: bool) -> None:
    config = dataclasses.replace(CONFIG, selector_projects_head=projects_head)
    drafter = with_dflash2(toy_dflash(TARGET), config)
    for parameter in drafter.candidate_selector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    grown = with_dflash2(drafter, dataclasses.replace(config, selector_rank=20))
    assert (drafter.config.selector_rank, grown.config.selector_rank) == (8, 20)
    assert simulate(TARGET, grown, ROWS, 8, 2, 16) == simulate(TARGET, drafter, ROWS, 8, 2, 16)
    hidden, before, ids = torch.randn(4, 48), torch.tensor([[3], [5], [9], [9]]), torch.arange(24).view(4, 6)
    head = TARGET.head_weight()
    old, new = (one.candidate_selector(hidden, before, ids, head) for one in (drafter, grown))
    assert old.abs().max() > 0
    torch.testing.assert_close(new, old)
    new.sum().backward()
    by_rank = dict(grown.candidate_selector.named_parameters())
    learns = by_rank["successor_projection" if projects_head else "successor_codebook"].grad
    assert (learns if projects_head else learns.T)[8:].abs().max() > 0  # the new ranks learn


@pytest.mark.parametrize("changes", [{}, {"selector_stops": True, "selector_missing": "skip"}])
def test_it_learns_and_simulated_acceptance_is_the_served_one(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    drafter = with_dflash2(toy_dflash(TARGET), CONFIG)
    untrained = simulate(TARGET, drafter, ROWS, 8, 2, 16)
    before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
    trainer = Trainer(TARGET, drafter, ROWS, {"toy": ROWS}, dataclasses.replace(CONFIG, **changes), tmp_path)
    trainer.train(lambda _: None)
    for name, tensor in drafter.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
    assert simulate(TARGET, drafter, ROWS, 8, 2, 16).acceptance_length > untrained.acceptance_length + 0.1
    accepted: list[int] = []

    def hear(event: RoundEvent) -> None:
        accepted.append(len(event.token_ids) - 1)

    for document in DOCUMENTS:
        accepted.clear()
        answer = generate(
            TARGET, DFlashDrafter(drafter, TARGET), document.prompt_token_ids, GREEDY, on_round=hear
        )
        assert answer.token_ids == document.answer_token_ids
        assert simulate(TARGET, drafter, pack([document], 128), 8, 1, 16).num_accepted == accepted[1:]


def test_heads_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="head is 'dflash3'; expected dflash, or dflash2"):
        TrainConfig(head="dflash3")
    with pytest.raises(UsageError, match="head is 'dflash2'"):
        TrainConfig(head="dflash2", method="mtp")
    with pytest.raises(UsageError, match="selector_missing is 'drop'; expected inject or skip"):
        TrainConfig(selector_missing="drop")
