"""A toy drafter that has learnt its target's answers is healthy; each planted fault is found and named."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from command_line import run_command
from flashdraft.checkpoint.load import save_drafter
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.data.prompts import Prompt
from flashdraft.doctor.examine import _judge, examine_pair, prompt_readings
from flashdraft.doctor.trials import Trial
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train.anchors import blocks_at
from flashdraft.train.forward import block_hidden, target_features
from tiny_pair import byte_tokenizer, save_tiny_pair
from toys import toy_dflash, toy_target

PROMPTS = [[(7 * i + 3 * j) % 90 for j in range(6)] for i in range(2)]
TOKENS = 40


def learn(target: TargetModel, shift: int = 0, steps: int = 60, **changes: object) -> DFlashModel:
    """A drafter that knows the target's answers to PROMPTS by heart; ``shift`` moves its labels to the left."""
    changes = {"rope_parameters": dict(target.config.rope_parameters), **changes}
    drafter = toy_dflash(target, std=0.05, **changes)
    params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    answers = [generate(target, None, prompt, params).token_ids for prompt in PROMPTS]
    texts = [Document(str(i), "", 0.0, PROMPTS[i], answer, "") for i, answer in enumerate(answers)]
    rows = pack(texts, 128)
    rows = rows.rows(torch.arange(len(rows)))
    features = target_features(target, rows, drafter.config.target_layer_ids)
    anchors = rows.is_anchor[0].nonzero().T
    blocks = blocks_at(rows, anchors, torch.ones_like(anchors, dtype=torch.bool), drafter.config.block_size)
    for parameter in target.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=4e-3)
    labels, wanted = blocks.labels[:, :, 1:], blocks.has_label[:, :, 1:]
    for _ in range(steps):
        hidden = block_hidden(target, drafter, rows, features, blocks)
        hidden = hidden[:, :, : hidden.shape[2] - shift][:, :, 1 - shift :]
        loss = F.cross_entropy(target.logits(hidden)[wanted], labels[wanted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return drafter.eval()


def planted(drafter: DFlashModel, **changes: object) -> DFlashModel:
    """The same weights under another config."""
    model = DFlashModel(replace(drafter.config, **changes))
    model.load_state_dict(drafter.state_dict())
    return model


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return toy_target(tie_word_embeddings=False)


@pytest.fixture(scope="module")
def drafter(target: TargetModel) -> DFlashModel:
    return learn(target)


def examine(target, drafter, masks=(91, 92)):
    return examine_pair(target, drafter, PROMPTS, TOKENS, masks)


def test_a_healthy_pair(target, drafter):
    found = examine(target, drafter)
    assert found.verdict == "healthy", found.to_text()
    assert found.acceptance_length > 3
    assert len(found.accepted_by_position) == 7
    assert found.to_text().startswith("healthy: acceptance length")
    # What is simulated is what serving measures.
    params = SamplingParams(max_tokens=TOKENS, temperature=0)
    served = [generate(target, DFlashDrafter(drafter, target), prompt, params).metrics for prompt in PROMPTS]
    num_rounds, num_tokens = (sum(getattr(m, n) for m in served) for n in ("num_rounds", "num_output_tokens"))
    assert (num_tokens - len(served)) / num_rounds == pytest.approx(found.acceptance_length, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target_layer_ids": (2, 4)}, "target_layer_ids are off by +1; set them to [1, 3]"),
        ({"target_layer_ids": (0, 2)}, "target_layer_ids are off by -1; set them to [1, 3]"),
        ({"target_layer_ids": (3, 1)}, "wrong order; set target_layer_ids to [1, 3]"),
        ({"mask_token_id": 91}, "mask_token_id is 91; set it to 96"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
            "rope_theta is 50.0; set it to the target's 10000.0",
        ),
    ],
)
def test_planted_faults(target, drafter, changes, reason):
    found = examine(target, planted(drafter, **changes), masks=(90, 96))
    assert found.verdict == "faulty", found.to_text()
    assert reason in found.reasons[0]


def test_shifted_labels(target):
    found = examine(target, learn(target, shift=1))
    assert found.verdict == "faulty", found.to_text()
    assert "slot k predicts the token after its position" in found.reasons[0]


def test_wrong_causality_of_sliding_layers(target):
    sliding = {"layer_types": ("sliding_attention",) * 2, "sliding_window": 4}
    healthy = learn(target, **sliding)
    assert examine(target, healthy).verdict == "healthy"
    found = examine(target, planted(healthy, is_causal=False))
    assert found.verdict == "faulty", found.to_text()
    assert "set is_causal to null" in found.reasons[0]


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_window_that_is_off_by_one(target, offset):
    healthy = learn(target, layer_types=("sliding_attention",) * 2, sliding_window=3)
    found = examine(target, planted(healthy, sliding_window=3 + offset))
    assert found.verdict == "faulty", found.to_text()
    assert f"sliding_window is off by {offset:+d}; set it to 3" in found.reasons[0]


def test_two_features_in_the_wrong_places(target):
    healthy = learn(target, target_layer_ids=(1, 2, 4))
    assert examine(target, healthy).verdict == "healthy"
    found = examine(target, planted(healthy, target_layer_ids=(2, 1, 4)))
    assert found.verdict == "faulty", found.to_text()
    assert "wrong order; set target_layer_ids to [1, 2, 4]" in found.reasons[0]


def test_a_block_longer_than_trained(target):
    found = examine(target, planted(learn(target, block_size=4), block_size=16))
    assert found.verdict == "faulty", found.to_text()
    assert "block_size is 16, larger than it was trained for" in found.reasons[0]


def test_the_template_of_another_training(target, drafter):
    """It learnt the answers to PROMPTS; what is served is the same prompts told otherwise."""
    told = [[11, 12, *prompt[::-1]] for prompt in PROMPTS]
    found = examine_pair(target, drafter, told, TOKENS, others={"enable_thinking false": PROMPTS})
    assert found.verdict == "faulty", found.to_text()
    assert "trained on prompts told as: enable_thinking false" in found.reasons[0]
    assert (
        examine_pair(target, drafter, PROMPTS, TOKENS, others={"no chat template": told}).verdict == "healthy"
    )


def test_a_quantized_drafter_that_16_bits_are_too_few_for(target, drafter):
    """Scales as quantization leaves them: the same function, its activations beyond what float16 holds."""
    scaled = planted(drafter)
    with torch.no_grad():
        scaled.fc.weight.mul_(2.0**16)  # the norm behind it takes the scale out again
    found = examine(target, scaled)
    assert found.verdict == "healthy"
    assert found.trials["in float16"] < 1.2 < found.acceptance_length
    assert "its activations leave float16's range" in found.to_text()
    assert "leave float16's range" not in examine(target, drafter).to_text()
    half = toy_target(tie_word_embeddings=False).half()
    assert examine(half, planted(drafter).half()).verdict == "healthy"
    found = examine(half, scaled.half())
    assert found.verdict == "faulty", found.to_text()
    assert "does not bear float16 activations" in found.reasons[0]


def test_an_untrained_drafter_is_weak(target):
    assert examine(target, toy_dflash(target)).verdict == "weak"


def test_command(tmp_path, capsys):
    model, draft = save_tiny_pair(tmp_path)
    options = ("doctor", "--model", model, "--max-tokens", "12")
    result = run_command((*options, "--draft", draft), capsys)
    assert (result.exit_code, result.stdout.split(":")[0]) == (3, "weak")
    save_drafter(toy_dflash(toy_target()), tmp_path / "foreign")
    result = run_command((*options, "--draft", str(tmp_path / "foreign"), "--json"), capsys)
    document = json.loads(result.stdout)
    assert (document["verdict"], result.exit_code) == ("unusable", 5)
    assert "vocab_size 97 (target: 259)" in document["reasons"][0]


def test_a_reading_that_accepts_a_little_more_is_named_in_the_verdict():
    config = toy_dflash(toy_target()).config
    found = [Trial(name, "a fault", config) for name in ("as it is", "shifted")]
    for (here, there), message in {
        (11.06, 11.75): "no other reading of the drafter does clearly better (shifted accepts 11.75;",
        (11.06, 11.06): "no other reading of the drafter does better",
        (1.2, 1.3): "no other reading of the drafter does clearly better (shifted accepts 1.30;",
    }.items():
        trials = [
            replace(one, acceptance_length=length, margin=1.1)
            for one, length in zip(found, (here, there), strict=True)
        ]
        verdict, [reason] = _judge(trials)
        assert verdict == ("healthy" if here > 2 else "weak")
        assert message in reason


def test_conversations_are_examined_whole():
    tokenizer = byte_tokenizer()
    said = ({"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi"})
    served, others = prompt_readings(tokenizer, [Prompt("a", "a", said)])
    expected = (
        "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [tokenizer.decode(ids) for ids in served] == [expected]
    assert [tokenizer.decode(ids) for ids in others["no chat template"]] == ["Be terse.\n\nHi"]


def test_what_there_is_no_time_for_is_named(target, drafter):
    """One trial is always made; the others, and all but one prompt, are left out when the time is over."""
    found = examine_pair(target, drafter, PROMPTS, TOKENS, (3, 4), max_seconds=0.0)
    whole = examine_pair(target, drafter, PROMPTS, TOKENS, (3, 4))
    assert list(found.trials) == ["as it is"]
    assert (
        "and there was no time to read the drafter otherwise (--max-seconds gives more)" in found.reasons[0]
    )
    assert found.left_out == [f"{len(PROMPTS) - 1} of {len(PROMPTS)} prompts", *list(whole.trials)[1:]]
    assert "no time for: " in found.to_text()
    assert whole.left_out == []
    assert "no time for" not in whole.to_text()
