"""Drafters with a reduced vocabulary: a head of their own, whose rows are some of the target's tokens."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import run_command
from flashdraft.checkpoint.convert import convert_drafter
from flashdraft.checkpoint.load import load_drafter, save_drafter
from flashdraft.data.loader import PackedRows
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.generate import generate
from flashdraft.models.dflash import DFlashModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import train_drafter
from flashdraft.train.simulate import accepted_at_anchors
from tiny_pair import save_tiny_pair
from toys import Alone, toy_dflash, toy_target

KEPT = torch.tensor([3, 5, 6, 20, 41, 42, 60, 77, 90, 96])


@pytest.fixture(scope="module")
def target():
    return toy_target()


def reduced(target, tokens=KEPT, **changes) -> DFlashModel:
    drafter = toy_dflash(target, draft_vocab_size=len(tokens), **changes)
    drafter.d2t = tokens - torch.arange(len(tokens))
    drafter.t2d = torch.zeros(target.config.vocab_size, dtype=torch.bool).index_fill(0, tokens, True)
    return drafter


def features_of(target, num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randn(1, num_tokens, 2 * target.config.hidden_size, generator=generator)


@torch.inference_mode()
def drafts(drafter: DFlashModel, target) -> list[list[int]]:
    state = Alone(DFlashDrafter(drafter, target), 64)
    state.observe(list(range(20)), features_of(target, 20))
    return [state.chain(anchor, 7) for anchor in range(30)]


def test_a_head_over_the_kept_tokens_drafts_the_best_of_them(target):
    """With the target's own rows as its head, it drafts what the target's head would say of those tokens alone."""
    drafter = reduced(target)
    with torch.no_grad():
        drafter.lm_head.weight.copy_(target.head_weight()[KEPT])
    full = toy_dflash(target)
    full.load_state_dict(
        {k: v for k, v in drafter.state_dict().items() if k not in ("lm_head.weight", "d2t", "t2d")}
    )
    masked = toy_target()
    not_kept = torch.ones(97, dtype=torch.bool).index_fill(0, KEPT, False)
    full_logits = masked.logits
    masked.logits = lambda hidden: full_logits(hidden).masked_fill(not_kept, float("-inf"))
    found = drafts(drafter, target)
    assert found == drafts(full, masked)
    assert len({token for draft in found for token in draft}) > 3


def test_every_token_kept_is_the_plain_drafter(target):
    drafter = reduced(target, torch.arange(96))
    with torch.no_grad():
        drafter.lm_head.weight.copy_(target.head_weight()[:96])
    plain = toy_dflash(target)
    plain.load_state_dict(drafter.state_dict(), strict=False)
    assert sum(a == b for a, b in zip(drafts(drafter, target), drafts(plain, target), strict=True)) > 20


def test_there_and_back_is_bit_equal(target, tmp_path):
    save_drafter(reduced(target), tmp_path / "z", torch.bfloat16)
    convert_drafter(tmp_path / "z", "speculators", tmp_path / "s")
    convert_drafter(tmp_path / "s", "z-lab", tmp_path / "back")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("z", "s", "back")]
    assert weights[0]["d2t"].dtype == torch.int64
    assert weights[0]["fc.weight"].dtype == torch.bfloat16
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        assert all(torch.equal(other[name], weights[0][name]) for name in other)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("z", "s", "back")]
    assert configs[0] == configs[2]
    assert configs[1]["draft_vocab_size"] == 10
    assert configs[1]["transformer_layer_config"]["vocab_size"] == 97
    loaded = [load_drafter(tmp_path / name, target, "float32") for name in ("z", "s")]
    assert drafts(loaded[0], target) == drafts(loaded[1], target)
    assert loaded[0].config == reduced(target).config
    full = replace(loaded[0].config, draft_vocab_size=None)
    assert full == toy_dflash(target).config


def test_greedy_answers_are_plain_decodings(target):
    params = SamplingParams(max_tokens=40, temperature=0)
    drafter = DFlashDrafter(reduced(target), target)
    for prompt in ([1, 2, 3], [50] * 9, list(range(30))):
        assert (
            generate(target, drafter, prompt, params).token_ids
            == generate(target, None, prompt, params).token_ids
        )


def test_simulated_acceptance_uses_its_head(target):
    drafter = reduced(target)
    ids = torch.randint(0, 97, (1, 128), generator=torch.Generator().manual_seed(1))
    is_anchor = torch.ones_like(ids, dtype=torch.bool)
    is_anchor[:, 0], is_anchor[:, -8:] = False, False
    rows = PackedRows(ids, torch.zeros_like(ids), is_anchor)
    accepted = accepted_at_anchors(target, drafter, rows, 8, 128)
    features = target_features_of(target, ids, drafter.config.target_layer_ids)
    for anchor in (1, 17, 60):
        with torch.inference_mode():
            state = Alone(DFlashDrafter(drafter, target), 140)
            state.observe(ids[0, :anchor].tolist(), features[:, :anchor])
            draft = state.chain(int(ids[0, anchor]), 7)
        agrees = [a == b for a, b in zip(draft, ids[0, anchor + 1 :].tolist(), strict=False)]
        assert accepted[0, anchor] == [*agrees, False].index(False)


@torch.inference_mode()
def target_features_of(target, ids, layers):
    from flashdraft.batch import ForwardBatch

    return target.forward(ForwardBatch.of_row(ids[0].tolist(), 0), target.new_cache(1, 128), layers).features


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (lambda w: w.update(d2t=w["d2t"] + 1), r"d2t names tokens 4 to 97; expected 0 to 96"),
        (lambda w: w.update(t2d=w["t2d"].roll(1)), "name different tokens"),
        (lambda w: w.update(d2t=w["d2t"].float()), r"d2t is F32; expected one of I64, I32"),
        (lambda w: w.pop("d2t"), "lacks d2t"),
        (lambda w: w.update(d2t=w["d2t"][:9].clone()), r"d2t \[9\] \(config: \[10\]\)"),
    ],
)
def test_tables_that_are_damaged(target, tmp_path, spoil, pattern):
    save_drafter(reduced(target), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    spoil(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=pattern):
        load_drafter(tmp_path)


def test_training_wants_the_targets_head(tmp_path):
    name, _ = save_tiny_pair(tmp_path)
    drafter = reduced(toy_target(vocab_size=259, max_position_embeddings=2048))
    save_drafter(drafter, tmp_path / "reduced")
    with pytest.raises(UsageError, match="a head of its own over 10 tokens"):
        from_reduced(name, tmp_path)


def from_reduced(name, folder):
    return train_drafter(
        name,
        [],
        folder / "run",
        TrainConfig(),
        "cpu",
        "float32",
        str(folder / "reduced"),
        lambda _report: None,
    )


def test_a_log_without_answers_chooses_no_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "asked.jsonl").write_text('{"prompt": "hi"}\n')
    out = str(tmp_path / "out")
    told = run_command(
        ("vocab", "--from", str(tmp_path / "asked.jsonl"), "--size", "1024", "--out", out), capsys
    )
    assert (told.exit_code, "holds no answers; give the target's own by --answers" in told.stderr) == (
        2,
        True,
    )
    assert not Path(out).exists()
