"""Rows that are borrowed of the target's head: how a vocabulary is chosen, given, served, trained and handed on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_line import run_command
from flashdraft.checkpoint.convert import convert_drafter
from flashdraft.checkpoint.draft_vocabulary import give_vocabulary
from flashdraft.checkpoint.embedded import drafts_among_all
from flashdraft.checkpoint.load import load_drafter, load_target, save_drafter
from flashdraft.data.on_policy import Document
from flashdraft.data.token_counts import count_tokens, coverage, divide, rank_tokens
from flashdraft.errors import CheckpointError, DataError, IncompatibleDrafterError, UsageError
from flashdraft.export.config import LaunchConfig
from flashdraft.export.launch import read_pair
from flashdraft.export.vllm import vllm_command
from flashdraft.llm import LLM
from flashdraft.models.dflash import DFlashModel
from flashdraft.native.accelerate import accelerate
from flashdraft.native.library import library
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.build import drafter_of
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train.run import load_trainable
from tiny_pair import save_tiny_pair
from toys import Alone, toy_dflash, toy_target

TOKENS = range(60, 188, 2)  # 64 of the tiny target's 259


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Target, its drafter, and the drafter with a draft vocabulary."""
    folder = tmp_path_factory.mktemp("pair")
    target, drafter = save_tiny_pair(folder)
    give_vocabulary(drafter, TOKENS, folder / "few", load_target(target).config)
    return target, drafter, str(folder / "few")


def drafts(drafter: DFlashModel, target, native=None) -> list:
    """Chains and trees behind one context."""
    with torch.inference_mode():
        state = Alone(DFlashDrafter(drafter, target, native), 64)
        size = drafter.fc.in_features
        features = torch.randn(1, 20, size, generator=torch.Generator().manual_seed(2), dtype=target.dtype)
        state.observe(list(range(20)), features)
        chains = [state.chain(anchor, 7) for anchor in range(30)]
        trees = [state.tree(anchor, 7, 12) for anchor in range(8)]
        return [chains, [tree.token_ids for tree in trees]]


def test_likeliest_tokens_come_first():
    answers = count_tokens([[5, 5, 5], [6, 7, 6]], 10)
    prompts = count_tokens([[8] * 15, [9] * 25], 10)
    assert answers.tolist() == [0, 0, 0, 0, 0, 3, 2, 1, 0, 0]
    # 5, 9 (25 tenths), 6, 8 (15 tenths), 7, and the others by their ids; 3 ends answers.
    assert rank_tokens(answers, prompts, [3]) == [3, 5, 9, 6, 8, 7, 0, 1, 2, 4]
    assert count_tokens([], 3).tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="token id 10 was found; expected 0 to 9"):
        count_tokens([[1, 10]], 10)
    assert coverage(answers, [5, 7]) == pytest.approx(4 / 6)
    documents = [Document(str(i), "", 0.0, [], [], "stop") for i in range(20)]
    counted, kept_out = divide(documents)
    assert [one.id for one in kept_out] == ["0", "10"]
    assert len(counted) == 18


def test_the_folder_says_which_rows_and_holds_none(pair):
    before, after = (load_file(f"{folder}/model.safetensors") for folder in pair[1:])
    assert after.keys() - before.keys() == {"d2t", "t2d"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert after["t2d"].nonzero().flatten().tolist() == list(TOKENS)
    config = json.loads(Path(pair[2], "config.json").read_text())
    assert (config["draft_vocab_size"], config["dflash_config"]["borrows_head"]) == (64, True)
    assert load_drafter(pair[2]).draft_tokens().tolist() == list(TOKENS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_drafts_as_with_a_copy_of_the_rows(pair, tmp_path, dtype):
    target = load_target(pair[0], dtype)
    convert_drafter(pair[2], "z-lab", tmp_path / "copy", pair[0])
    borrowed, own = (load_drafter(folder, target, dtype) for folder in (pair[2], tmp_path / "copy"))
    assert borrowed.lm_head is None
    own.lm_head.weight.data.copy_(
        target.head_weight()[list(TOKENS)]
    )  # the copy is stored in the drafter's type
    found = drafts(borrowed, target)
    assert found == drafts(own, target)
    assert {token for kind in found for draft in kind for token in draft} <= set(TOKENS)
    assert found != drafts(load_drafter(pair[1], target, dtype), target)


@pytest.mark.parametrize("options", [{}, {"draft_tree": 8}])
def test_answers_are_plain_decodings(pair, options):
    prompts = [[1, 2, 3], [90] * 9, list(range(30))]
    params = SamplingParams(max_tokens=40, temperature=0)
    plain = LLM(pair[0], None, dtype="float32").generate(prompts, params)
    drafted = LLM(pair[0], pair[2], 8, dtype="float32", **options).generate(prompts, params)
    assert [o.outputs[0].token_ids for o in drafted] == [o.outputs[0].token_ids for o in plain]


def test_other_engines_get_all_tokens_or_a_copy(pair, tmp_path):
    with pytest.raises(UsageError, match="borrows 64 rows of its target's head"):
        read_pair(pair[0], pair[2])
    for to in ("z-lab", "speculators", "transformers"):
        convert_drafter(pair[2], to, tmp_path / to)
        target = load_target(pair[0], "float32")
        whole = load_drafter(tmp_path / to, target, "float32")
        assert whole.config.draft_vocab_size is None
        assert drafts(whole, target) == drafts(load_drafter(pair[1], target, "float32"), target)
    convert_drafter(pair[2], "speculators", tmp_path / "rows", pair[0])
    assert json.loads((tmp_path / "rows/config.json").read_text())["draft_vocab_size"] == 64
    stored = load_file(tmp_path / "rows/model.safetensors")
    assert torch.equal(
        stored["lm_head.weight"].float(), load_target(pair[0], "bfloat16").head_weight()[list(TOKENS)].float()
    )
    assert vllm_command(read_pair(pair[0], str(tmp_path / "rows")), LaunchConfig()).argv


def test_it_goes_on_training_and_keeps_its_vocabulary(pair, tmp_path):
    """Trained is the whole head's drafter; what is saved drafts among the same tokens."""
    target = load_target(pair[0], "float32")
    drafter = load_trainable(pair[2], target, "float32", "cpu")
    assert drafts(drafter.requires_grad_(False), target)  # an evaluation takes the rows, and stores none
    save_drafter(drafter, tmp_path, torch.bfloat16)
    again = load_drafter(tmp_path, target, "float32")
    assert again.lm_head is None
    assert again.draft_tokens().tolist() == list(TOKENS)
    assert load_file(tmp_path / "model.safetensors").keys() == drafter.state_dict().keys()


def test_what_is_refused(pair, tmp_path):
    target = toy_target(vocab_size=259)
    config = load_target(pair[0]).config
    with pytest.raises(UsageError, match="a multiple of 64 below 259"):
        give_vocabulary(pair[1], range(63), tmp_path / "out", config)
    with pytest.raises(UsageError, match="is not empty"):
        give_vocabulary(pair[1], range(64), tmp_path.parent, config)
    with pytest.raises(IncompatibleDrafterError):
        give_vocabulary(pair[1], range(64), tmp_path / "out", toy_target(hidden_size=96).config)
    save_drafter(toy_dflash(target, draft_vocab_size=64), tmp_path / "own")
    with pytest.raises(UsageError, match="a head of its own over 64 tokens"):
        give_vocabulary(tmp_path / "own", range(64), tmp_path / "out", target.config)
    save_drafter(toy_dflash(target), tmp_path / "odd")
    file = tmp_path / "odd/config.json"
    told = json.loads(file.read_text())
    told["dflash_config"]["borrows_head"] = True
    file.write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="borrows_head without a draft vocabulary"):
        load_drafter(tmp_path / "odd")


def test_another_vocabulary_takes_the_old_ones_place(pair, tmp_path):
    give_vocabulary(pair[2], range(128), tmp_path / "other", load_target(pair[0]).config)
    assert load_drafter(tmp_path / "other").draft_tokens().tolist() == list(range(128))


def test_the_command_counts_what_was_logged(pair, tmp_path, capsys):
    requests = tmp_path / "requests.jsonl"
    rows = [{"prompt_token_ids": [i, 7], "answer_token_ids": [100 + i % 7, 30, 30]} for i in range(1, 60)]
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "zzzz"}\n')
    argv = ("vocab", "--model", pair[0], "--draft", pair[1], "--size", "64", "--out", str(tmp_path / "few"))
    assert "nothing to count" in run_command(argv, capsys).stderr
    ran = run_command((*argv, "--from", str(requests), "--prompts", str(tmp_path / "prompts.jsonl")), capsys)
    assert ran.exit_code == 0, ran.stderr
    assert "59 answers of 177 tokens" in ran.stdout
    assert "100.00%" in ran.stdout
    tokens = load_drafter(tmp_path / "few", load_target(pair[0])).draft_tokens().tolist()
    [end] = [token for token in (load_target(pair[0]).config.eos_token_id,) if token in tokens]
    assert {30, end, *range(100, 107)} <= set(tokens)


def test_on_cuda_the_embedded_drafter_drafts_among_all_tokens(pair):
    assert [drafts_among_all("embedded", torch.device(kind)) for kind in ("cpu", "cuda")] == [False, True]
    assert not drafts_among_all(pair[2], torch.device("cuda"))
    target = load_target(pair[0], "float32")
    whole, few = (
        drafter_of(load_drafter(pair[2], target, "float32"), target, among_all=among_all)
        for among_all in (True, False)
    )
    plain = load_drafter(pair[1], target, "float32")
    assert drafts(whole.model, target) == drafts(plain, target) != drafts(few.model, target)


@pytest.mark.skipif(library() is None, reason="no fast CPU path on this machine")
def test_the_fast_form_drafts_by_the_rows_too(tmp_path):
    """On the embedded pair, whose rows are the same bits borrowed and copied."""
    target = accelerate(load_target())
    assert load_drafter(target=target).config.borrows_head
    convert_drafter("embedded", "z-lab", tmp_path / "copy", "embedded")
    borrowed, own = (
        drafter_of(load_drafter(name, target), target) for name in ("embedded", tmp_path / "copy")
    )
    assert borrowed.native
    assert own.model.lm_head is not None
    found = drafts(borrowed.model, target, borrowed.native)
    assert found == drafts(own.model, target, own.native)
    chains = [torch.tensor(kind[0]) for kind in (found, drafts(load_drafter(target=target), target))]
    assert (
        chains[0] == chains[1]
    ).float().mean() > 0.8  # of its modules: in 8 bits near-ties go the other way
    kept = set(borrowed.model.draft_tokens().tolist())
    assert {token for kind in found for draft in kind for token in draft} <= kept
