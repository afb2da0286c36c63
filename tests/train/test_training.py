"""Training on a toy: the loss against autograd, resume to the bit, and simulated acceptance against served."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flashdraft.answer import RoundEvent
from flashdraft.data.loader import PackedRows, check_token_ids, pack
from flashdraft.data.on_policy import Document
from flashdraft.errors import DataError, UsageError
from flashdraft.generate import generate
from flashdraft.models.base import FINAL_HIDDEN
from flashdraft.models.dflash import DFlashModel
from flashdraft.ops.block_mask import BlockContextMask
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train import forward, loss
from flashdraft.train.anchors import blocks_at, draw_blocks, sample_anchors, sample_slots
from flashdraft.train.config import TrainConfig
from flashdraft.train.forward import block_hidden, target_features, teacher_hidden
from flashdraft.train.log_file import read_log
from flashdraft.train.loss import HeadLoss, decay_weights, dpace_weights, label_log_probs
from flashdraft.train.simulate import simulate, walk_side_by_side
from flashdraft.train.trainer import Trainer
from toys import Alone, toy_dflash, toy_target

TARGET = toy_target().requires_grad_(False)
GREEDY = SamplingParams(temperature=0.0, max_tokens=40)


def answered(count: int, seed: int = 0) -> list[Document]:
    rng = random.Random(seed)
    documents = []
    for i in range(count):
        prompt = [rng.randrange(97) for _ in range(rng.randrange(3, 20))]
        answer = generate(TARGET, None, prompt, GREEDY).token_ids
        documents.append(Document(str(i), "toy", 0.0, prompt, answer, "length"))
    return documents


DOCUMENTS = answered(12)
ROWS = pack(DOCUMENTS, 128)
CONFIG = TrainConfig(
    block_size=8,
    seq_len=128,
    rows_per_step=2,
    blocks_per_row=16,
    total_blocks=32 * 40,
    lr=5e-3,
    eval_minutes=60.0,
)


def test_packing_keeps_every_document_whole_and_apart() -> None:
    packed = []
    for row in range(len(ROWS)):
        starts = ROWS.doc_start[row].tolist()
        for start in sorted(set(starts)):
            end = start + starts.count(start)
            if ROWS.is_anchor[row, start:end].any():
                packed.append(ROWS.token_ids[row, start:end].tolist())
    assert sorted(packed) == sorted(doc.prompt_token_ids + doc.answer_token_ids for doc in DOCUMENTS)
    assert int(ROWS.is_anchor.sum()) == sum(len(doc.answer_token_ids) - 1 for doc in DOCUMENTS)


def test_anchors_are_spread_over_the_answers_and_repeats_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.zeros_like(ROWS.is_anchor, dtype=torch.long)
    for _ in range(200):
        anchors, is_new = sample_anchors(ROWS.is_anchor, 16, generator)
        assert (anchors.diff() >= 0).all()
        for row in range(len(ROWS)):
            new = anchors[row, is_new[row]]
            assert len(set(new.tolist())) == len(new)
            drawn[row, new] += 1
    assert (drawn > 0).equal(ROWS.is_anchor)
    few = torch.zeros(1, 64, dtype=torch.bool)
    few[0, [5, 9, 40]] = True
    anchors, is_new = sample_anchors(few, 16, generator)
    assert anchors[0, is_new[0]].tolist() == [5, 9, 40]


def test_labels_of_a_conversation_end_with_their_answer() -> None:
    # One document: a prompt of 2, an answer of 4, a prompt of 3, an answer of 3.
    is_anchor = torch.tensor(
        [[False, False, True, True, True, False, False, False, False, True, True, False]]
    )
    rows = PackedRows(torch.arange(12).view(1, 12), torch.zeros(1, 12, dtype=torch.long), is_anchor)
    anchors = torch.tensor([[2, 4, 10]])
    blocks = blocks_at(rows, anchors, torch.ones(1, 3, dtype=torch.bool), 8)
    assert [blocks.labels[0, i][blocks.has_label[0, i]].tolist() for i in range(3)] == [[3, 4, 5], [5], [11]]


def test_slots_are_drawn_in_proportion_to_their_weights() -> None:
    weights = torch.tensor([0.0, 3.0, 1.0, 0.0, 2.0, 0.5])
    counts = torch.zeros(6)
    for seed in range(3000):
        counts.index_add_(0, sample_slots(weights, 3, torch.Generator().manual_seed(seed)), torch.ones(3))
    torch.testing.assert_close(counts / counts.sum(), weights / weights.sum(), atol=0.01, rtol=0)


def head_case(
    num_rows: int, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a head, the teacher's hidden states, and labels."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (
        torch.randn(num_rows, 12, generator=generator),
        torch.randn(vocab_size, 12, generator=generator),
    )
    teacher = torch.randn(num_rows, 12, generator=generator)
    return hidden, head, teacher, torch.randint(vocab_size, (num_rows,), generator=generator)


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of rows, and several pieces of each, the last of both cut short."""
    monkeypatch.setattr(loss, "CPU_ROWS", 16)
    monkeypatch.setattr(loss, "CPU_VALUES", 16 * 7)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_loss_and_gradient_equal_autograds(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    hidden, head, teacher, labels = head_case(70, 33)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    value = HeadLoss.apply(ours, head, labels, None, teacher if share else None, share, False)
    cross_entropy = torch.nn.functional.cross_entropy
    soft = cross_entropy(theirs @ head.T, (teacher @ head.T).softmax(-1))
    expected = (1 - share) * cross_entropy(theirs @ head.T, labels) + share * soft
    (2 * value).backward()
    (2 * expected).backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_row_that_counts_twice_is_two_rows() -> None:
    hidden, head, teacher, labels = head_case(20, 33)
    counts = torch.randint(1, 4, (20,), generator=torch.Generator().manual_seed(1))
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    value = HeadLoss.apply(ours, head, labels, counts, teacher, 0.3, False)
    rows = torch.arange(20).repeat_interleave(counts)
    expected = HeadLoss.apply(theirs[rows], head, labels[rows], None, teacher[rows], 0.3, False)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_bfloat16_head_rounds_the_gradient_and_no_more() -> None:
    hidden, head, _, labels = (x.bfloat16() if x.is_floating_point() else x for x in head_case(64, 500))
    ours, theirs = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    value = HeadLoss.apply(ours, head, labels, None, None, 0.0, False)
    expected = torch.nn.functional.cross_entropy(theirs @ head.float().T, labels)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=2e-3)
    assert theirs.grad is not None
    assert (ours.grad - theirs.grad).norm() < 0.01 * theirs.grad.norm()


def test_dpace_weights_are_the_derivative_of_the_expected_acceptance_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_chunks(monkeypatch)
    hidden, head, _, labels = head_case(3 * 8, 33)
    log_probs = label_log_probs(hidden, head, labels)
    torch.testing.assert_close(
        log_probs, -torch.nn.functional.cross_entropy(hidden @ head.T, labels, reduction="none")
    )
    has_label = torch.ones(3, 8, dtype=torch.bool)
    has_label[:, 0] = False
    has_label[2, 5:] = False
    log_confidence = log_probs.view(3, 8).requires_grad_()
    # d/d log c_j of the expected number of accepted drafts, sum over k of prod over i <= k of c_i.
    smoothed = (0.7 * log_confidence.exp() + 0.3).log().detach().requires_grad_()
    products = torch.where(has_label, smoothed, 0.0).cumsum(-1).exp() * has_label
    products.sum().backward()
    torch.testing.assert_close(dpace_weights(log_confidence.detach(), has_label, 0.3), smoothed.grad)


@pytest.mark.parametrize(("power", "aim"), [(1.0, torch.log), (2.0, lambda length: -1 / length)])
def test_dpace_of_a_power_is_the_derivative_of_what_the_rounds_are(
    power: float, aim: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    has_label = torch.ones(5, 8, dtype=torch.bool)
    has_label[:, 0] = False
    has_label[2, 5:] = False
    confidence = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)).log().requires_grad_()
    accepted = torch.where(has_label, confidence, 0.0).cumsum(-1).exp() * has_label
    aim(1 + accepted.sum(-1)).sum().backward()
    torch.testing.assert_close(dpace_weights(confidence.detach(), has_label, 0.0, power), confidence.grad)


def test_the_teacher_of_a_slot_is_the_targets_state_before_it() -> None:
    blocks = draw_blocks(ROWS, 16, 8, torch.Generator().manual_seed(1))
    final = target_features(TARGET, ROWS.rows(torch.arange(len(ROWS))), (FINAL_HIDDEN,))
    chosen = TARGET.logits(teacher_hidden(final, blocks)).argmax(-1).view_as(blocks.labels)
    # The answers are greedy: what the target chooses there is what stands there.
    assert chosen[blocks.has_label].equal(blocks.labels.long()[blocks.has_label])


@pytest.mark.parametrize("changes", [{}, {"distill": 1.0}, {"weighting": "dpace"}])
def test_every_loss_teaches(tmp_path: Path, changes: dict[str, object]) -> None:
    config = dataclasses.replace(CONFIG, slots_per_block=7.0, total_blocks=32 * 100, **changes)
    trainer = Trainer(TARGET, toy_dflash(TARGET), ROWS, {"toy": ROWS}, config, tmp_path)
    before = trainer.evaluate(lambda _: None)["all"]
    trainer.train(lambda _: None)
    assert trainer.evaluate(lambda _: None)["all"] > before + 0.1


def test_decay_is_the_papers() -> None:
    weights = decay_weights(16, 7.0, torch.device("cpu")).tolist()
    assert weights[0] == 0
    assert weights[1] == 1
    assert weights[8] == pytest.approx(2.718281828**-1)


def test_a_training_block_equals_the_served_one() -> None:
    drafter = toy_dflash(TARGET)
    rows = pack(DOCUMENTS[:4], 256)
    blocks = draw_blocks(rows, 16, 8, torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = target_features(TARGET, rows, drafter.config.target_layer_ids)
        hidden = block_hidden(TARGET, drafter, rows, features, blocks)
        drafts = TARGET.logits(hidden).argmax(-1)
        for j in range(16):
            start, anchor = int(blocks.doc_start[0, j]), int(blocks.anchors[0, j])
            state = Alone(DFlashDrafter(drafter, TARGET), 256)
            state.observe(rows.token_ids[0, start:anchor].tolist(), features[:, start:anchor])
            assert state.chain(int(rows.token_ids[0, anchor]), 7) == drafts[0, j, 1:].tolist()


def train(
    folder: Path, pauses: tuple[float, ...] = (float("inf"),), config: TrainConfig = CONFIG
) -> tuple[list[dict[str, object]], DFlashModel]:
    lines: list[dict[str, object]] = []
    for pause in pauses:
        drafter = toy_dflash(TARGET)
        trainer = Trainer(TARGET, drafter, ROWS, {"toy": ROWS}, config, folder)
        trainer.resume()
        trainer.train(lines.append, pause)
    return lines, drafter


@pytest.mark.parametrize("ends", ["by pause", "by minutes"])
def test_a_run_that_ends_when_an_evaluation_is_due_is_evaluated_once(tmp_path: Path, ends: str) -> None:
    pause, minutes = (0.1, 0.0) if ends == "by pause" else (float("inf"), 0.1 / 60)
    config = TrainConfig(**{**CONFIG.__dict__, "eval_minutes": 0.1 / 60, "max_minutes": minutes})
    lines, _ = train(tmp_path, (pause,), config)
    steps = [line["step"] for line in lines if "simulated_acceptance_length" in line]
    assert len(steps) == len(set(steps)) >= 1
    assert steps[-1] == lines[-1]["step"]


def test_a_run_that_is_over_is_not_evaluated_again(tmp_path: Path) -> None:
    config = TrainConfig(**{**CONFIG.__dict__, "total_blocks": 32 * 3})
    lines, drafter = train(tmp_path, (float("inf"),) * 2, config)
    assert [line["step"] for line in lines if "simulated_acceptance_length" in line] == [3]
    assert read_log(tmp_path) == lines
    assert not torch.equal(drafter.fc.weight, toy_dflash(TARGET).fc.weight), "its state is there"


def test_training_learns_and_simulated_acceptance_is_the_served_one(tmp_path: Path) -> None:
    untrained = simulate(TARGET, toy_dflash(TARGET), ROWS, 8, 2, 16)
    _, drafter = train(tmp_path, config=TrainConfig(**{**CONFIG.__dict__, "total_blocks": 32 * 120}))
    trained = simulate(TARGET, drafter, ROWS, 8, 2, 16)
    assert untrained.acceptance_length < 1.2 < trained.acceptance_length
    served: list[int] = []

    def hear(event: RoundEvent) -> None:
        served.append(len(event.token_ids) - 1)

    rounds = []
    for document in DOCUMENTS:
        served.clear()
        generate(TARGET, DFlashDrafter(drafter, TARGET), document.prompt_token_ids, GREEDY, on_round=hear)
        rounds += served[1:]
        one = simulate(TARGET, drafter, pack([document], 128), 8, 1, 16)
        assert one.num_accepted == served[1:]
    assert trained.acceptance_length == pytest.approx((sum(rounds) + len(rounds)) / len(rounds))
    assert sorted(rounds) == sorted(taken_side_by_side(drafter))


def test_simulation_of_few_anchors_drafts_whole_tiles_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    short = [dataclasses.replace(doc, answer_token_ids=doc.answer_token_ids[:6]) for doc in DOCUMENTS]
    expected = [
        simulate(TARGET, toy_dflash(TARGET), pack([doc], 128), 8, 1, 16).num_accepted for doc in short
    ]
    forms = []

    def as_on_cuda(mask: BlockContextMask, _: torch.device) -> torch.Tensor:
        forms.append(mask.flex())
        return mask.dense()

    monkeypatch.setattr(forward, "fast_mask", as_on_cuda)
    for document, accepted in zip(short, expected, strict=True):
        walk = simulate(TARGET, toy_dflash(TARGET), pack([document], 128), 8, 1, 16)
        assert walk.num_accepted == accepted
    assert len(forms) >= len(short)


def taken_side_by_side(drafter: DFlashModel) -> list[int]:
    rows = (ROWS.rows(slice(index, index + 1)) for index in range(len(ROWS)))
    walks = [one for row in rows for one in walk_side_by_side(TARGET, drafter, row, 8)]
    assert sum(one.num_tokens for one in walks) == sum(len(doc.answer_token_ids) - 1 for doc in DOCUMENTS)
    return [count for one in walks for count in one.num_accepted]


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    whole, one = train(tmp_path / "whole")
    parts, two = train(tmp_path / "parts", (1e-9, float("inf")))
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (whole, parts)]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    log = (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 40


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    train(tmp_path, (1e-9,))
    changed = TrainConfig(**{**CONFIG.__dict__, "lr": 1e-4})
    trainer = Trainer(TARGET, toy_dflash(TARGET), ROWS, {}, changed, tmp_path)
    with pytest.raises(DataError, match=r"other settings \(lr\)"):
        trainer.resume()
    (tmp_path / "state.pt").write_bytes(b"cut off")
    with pytest.raises(DataError, match="cannot be read"):
        Trainer(TARGET, toy_dflash(TARGET), ROWS, {}, CONFIG, tmp_path).resume()


def test_another_drafters_run_does_not_resume(tmp_path: Path) -> None:
    train(tmp_path, (1e-9,))
    wider = toy_target(hidden_size=32).requires_grad_(False)
    with pytest.raises(DataError, match="drafter of another shape; use the same --model"):
        Trainer(wider, toy_dflash(wider), ROWS, {}, CONFIG, tmp_path).resume()


def test_a_run_that_is_stopped_has_told_of_its_last_steps(tmp_path: Path) -> None:
    trainer = Trainer(TARGET, toy_dflash(TARGET), ROWS, {}, CONFIG, tmp_path)
    lines: list[dict[str, float]] = []
    trainer.train(lines.append, stop=lambda: trainer.progress.step == 3)
    assert [(line["step"], "loss" in line) for line in lines] == [(3, True)]
    again = Trainer(TARGET, toy_dflash(TARGET), ROWS, {}, CONFIG, tmp_path)
    assert again.resume()
    assert again.progress.elapsed_s > 0


def test_a_run_that_fails_in_its_last_evaluation_has_kept_its_steps(tmp_path: Path) -> None:
    def interrupt(line: dict[str, float]) -> None:
        if "simulated_acceptance_length" in line:
            raise KeyboardInterrupt

    trainer = Trainer(TARGET, toy_dflash(TARGET), ROWS, {"toy": ROWS}, CONFIG, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(interrupt)
    again = Trainer(TARGET, toy_dflash(TARGET), ROWS, {}, CONFIG, tmp_path)
    assert again.resume()
    assert again.progress.step == 40


def test_answers_of_another_target_are_told() -> None:
    with pytest.raises(DataError, match="token id 96 was found; expected 0 to 95, the target's"):
        check_token_ids(96, ROWS, pack([Document("0", "", 0.0, [96, 1], [2, 3], "stop")], 128))


def test_rows_of_an_epoch_are_all_rows_once(tmp_path: Path) -> None:
    rows = PackedRows(*(torch.cat([t] * 3)[:7] for t in (ROWS.token_ids, ROWS.doc_start, ROWS.is_anchor)))
    trainer = Trainer(TARGET, toy_dflash(TARGET), rows, {}, CONFIG, tmp_path)
    seen = []
    for step in range(7):
        trainer.progress.step = step
        seen += trainer._row_index().tolist()
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))


def test_settings_that_do_not_go_together_are_told() -> None:
    with pytest.raises(UsageError, match="multiples of 128"):
        TrainConfig(blocks_per_row=3)
    with pytest.raises(UsageError, match="block_size is 1"):
        TrainConfig(block_size=1)
