"""Training an MTP head on a toy: its mask, a training chain against the served one, simulated against served."""

from pathlib import Path

import pytest
import torch

from flashdraft.answer import RoundEvent
from flashdraft.checkpoint.load import load_drafter, save_drafter
from flashdraft.data.loader import pack
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel, build_target
from flashdraft.models.mtp import MTPModel
from flashdraft.ops.block_mask import TILE, ChainMask
from flashdraft.spec_decode.mtp import MTPDrafter
from flashdraft.train.anchors import draw_blocks
from flashdraft.train.config import TrainConfig
from flashdraft.train.forward import block_hidden, target_features
from flashdraft.train.run import new_drafter
from flashdraft.train.simulate import simulate, walk_side_by_side
from flashdraft.train.trainer import Trainer
from models.test_qwen3_5 import flat
from toys import Alone, toy_mtp
from train.test_training import DOCUMENTS, GREEDY, ROWS, TARGET

CONFIG = TrainConfig(
    method="mtp",
    block_size=8,
    seq_len=128,
    rows_per_step=2,
    blocks_per_row=32,
    total_blocks=64 * 40,
    lr=5e-3,
    eval_minutes=60.0,
)


@pytest.mark.parametrize("num_blocks", [5, 200])
def test_a_chain_sees_its_document_before_the_anchor_and_itself(num_blocks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    seq_len, num_steps, cut = 256, 3, 100
    anchors = torch.randint(2, seq_len, (2, num_blocks), generator=generator).sort(-1).values
    doc_start = torch.where(anchors < cut, 0, cut).clamp(max=anchors - 1)
    for step in range(num_steps):
        mask = ChainMask(anchors, doc_start, seq_len, num_steps, step)
        wanted = torch.zeros(2, num_blocks, seq_len + num_steps * mask.stride, dtype=torch.bool)
        for row in range(2):
            for block in range(num_blocks):
                first, anchor = int(doc_start[row, block]), int(anchors[row, block])
                wanted[row, block, first + 1 : anchor] = True
                for seen in range(step + 1):
                    wanted[row, block, seq_len + seen * mask.stride + block] = True
        assert mask.dense().equal(wanted)
        flex = mask.flex()
        tiles = torch.zeros(2, -(-num_blocks // TILE), wanted.shape[-1] // TILE, dtype=torch.bool)
        padded = torch.zeros(2, mask.stride, wanted.shape[-1], dtype=torch.bool)
        padded[:, :num_blocks] = wanted
        by_tile = padded.view(2, -1, TILE, tiles.shape[2], TILE).permute(0, 1, 3, 2, 4).flatten(3)
        full, partial = (tiles.clone() for _ in range(2))
        for listed, counts, indices in (
            (partial, flex.kv_num_blocks, flex.kv_indices),
            (full, flex.full_kv_num_blocks, flex.full_kv_indices),
        ):
            assert counts is not None
            assert indices is not None
            for row in range(2):
                for tile in range(tiles.shape[1]):
                    listed[row, tile, indices[row, 0, tile, : int(counts[row, 0, tile])].long()] = True
        assert not (full & partial).any()
        assert (by_tile.any(-1) <= (full | partial)).all(), "a seen tile is skipped"
        last = num_blocks % TILE  # of a tile that is not full of chains only those count
        rest = by_tile[:, :-1] if last else by_tile
        assert (full[:, : rest.shape[1]] <= rest.all(-1)).all(), "a tile is not seen whole"


def hybrid_target() -> TargetModel:
    """A Qwen3.5 of this vocabulary, with gated delta layers."""
    target = build_target(flat()).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in target.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        elif name.endswith("A_log"):
            parameter.sub_(3.0)
    return target


@pytest.mark.parametrize("kind", ["llama", "qwen3_5"])
def test_a_training_chain_equals_the_served_one(kind: str) -> None:
    target = TARGET if kind == "llama" else hybrid_target()
    head = toy_mtp(target)
    rows = pack(DOCUMENTS[:4], 256)
    blocks = draw_blocks(rows, 16, 8, torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = target_features(target, rows, head.config.target_layer_ids)
        served = []
        for j in range(16):
            start, anchor = int(blocks.doc_start[0, j]), int(blocks.anchors[0, j])
            state = Alone(MTPDrafter(head, target), 256)
            middle = (start + anchor) // 2
            for first, last in ((start, middle), (middle, anchor)):  # two prefill chunks
                if last > first:
                    state.observe(rows.token_ids[0, first:last].tolist(), features[:, first:last])
            state.chain(int(rows.token_ids[0, anchor]) ^ 1, 5)  # staged, and gone
            served.append(state.chain(int(rows.token_ids[0, anchor]), 7))
            blocks.labels[0, j, 1:] = torch.tensor(served[-1])  # teacher-forced with the drafts themselves
        hidden = block_hidden(target, head, rows, features, blocks)
        assert target.logits(hidden).argmax(-1)[0, :, 1:].tolist() == served


def train(
    folder: Path, config: TrainConfig = CONFIG, pauses: tuple[float, ...] = (float("inf"),)
) -> tuple[list[dict[str, object]], MTPModel]:
    lines: list[dict[str, object]] = []
    for pause in pauses:
        head = toy_mtp(TARGET, std=0.05)
        trainer = Trainer(TARGET, head, ROWS, {"toy": ROWS}, config, folder)
        trainer.resume()
        trainer.train(lines.append, pause)
    return lines, head


def test_training_learns_and_simulated_acceptance_is_the_served_one(tmp_path: Path) -> None:
    untrained = simulate(TARGET, toy_mtp(TARGET, std=0.05), ROWS, 8, 2, 32)
    lines, head = train(tmp_path, TrainConfig(**{**CONFIG.__dict__, "total_blocks": 64 * 120}))
    trained = simulate(TARGET, head, ROWS, 8, 2, 32)
    assert untrained.acceptance_length < 1.3 < trained.acceptance_length
    lengths = lines[-1]["at_drafts"]
    assert isinstance(lengths, dict)
    assert list(lengths) == ["7", "15"]
    assert lengths["7"] == pytest.approx(trained.acceptance_length, abs=1e-3)
    served: list[int] = []

    def hear(event: RoundEvent) -> None:
        served.append(len(event.token_ids) - 1)

    rounds = []
    for document in DOCUMENTS:
        served.clear()
        generate(TARGET, MTPDrafter(head, TARGET), document.prompt_token_ids, GREEDY, on_round=hear)
        rounds += served[1:]
        row = pack([document], 128).rows(slice(0, 1))
        one = simulate(TARGET, head, row, 8, 1, 16)
        [beside] = walk_side_by_side(TARGET, head, row, 8)
        assert one.num_accepted == beside.num_accepted == served[1:]
    assert trained.acceptance_length == pytest.approx((sum(rounds) + len(rounds)) / len(rounds))


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    whole, one = train(tmp_path / "whole")
    parts, two = train(tmp_path / "parts", pauses=(1e-9, float("inf")))
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (whole, parts)]
    assert losses[0] == losses[1]
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_new_head_has_the_targets_shape_and_survives_its_folder(tmp_path: Path) -> None:
    head = new_drafter(TARGET, None, CONFIG)
    assert isinstance(head, MTPModel)
    theirs = {name: p.shape for name, p in TARGET.model.layers[0].named_parameters()}
    assert {name: p.shape for name, p in head.layers[0].named_parameters()} == theirs
    save_drafter(head, tmp_path)
    again = load_drafter(str(tmp_path), TARGET, dtype="float32")
    assert isinstance(again, MTPModel)
    assert again.config.block_size == 8
    for (name, a), (_, b) in zip(head.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
