"""The offline face on the engine: the oracle's tokens, in order, and an engine that is empty afterwards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashdraft.answer import RoundEvent
from flashdraft.checkpoint import load
from flashdraft.checkpoint.load import generation_defaults
from flashdraft.errors import CheckpointError, FlashdraftError
from flashdraft.generate import generate
from flashdraft.llm import LLM, served_dtype
from flashdraft.native.library import library
from flashdraft.native.target import NativeTarget
from flashdraft.ops.block_mask import BlockRule
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from native_pair import SHAPE
from tiny_pair import save_tiny_hybrid, save_tiny_pair


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder: Path = tmp_path_factory.mktemp("pair")
    target, drafter = save_tiny_pair(folder)
    return LLM(target, drafter, dtype="float32", max_running=3)


def oracle(llm: LLM, prompt: str, params: SamplingParams):  # type: ignore[no-untyped-def]
    ids = llm.tokenizer.encode(prompt)
    return generate(llm.target, None, ids, params, eos_token_ids=llm.eos_token_ids, tokenizer=llm.tokenizer)


def test_prompts_side_by_side_equal_each_alone(llm: LLM) -> None:
    prompts = [f"{'tell me ' * (i % 3)}{i}" for i in range(8)]
    params = [SamplingParams(temperature=0.7 * (i % 2), seed=i, max_tokens=10 + i) for i in range(8)]
    outs = llm.generate(prompts, params)
    for prompt, one, out in zip(prompts, params, outs, strict=True):
        alone = oracle(llm, prompt, one)
        assert out.outputs[0].token_ids == alone.token_ids
        assert out.outputs[0].text == alone.text
        assert out.outputs[0].text == llm.tokenizer.decode(alone.token_ids, skip_special_tokens=True)
        assert out.outputs[0].finish_reason == alone.finish_reason
    assert llm.metrics.num_requests == 8
    llm.engine.check_integrity()


def test_n_answers_are_those_of_seeds_in_a_row(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=12, logprobs=1)
    [out] = llm.generate("hello", params)
    assert len(out.outputs) == 3
    assert out.metrics.num_requests == 3
    for i, one in enumerate(out.outputs):
        assert one.token_ids == oracle(llm, "hello", SamplingParams(seed=5 + i, max_tokens=12)).token_ids
        assert one.logprobs is not None
        assert [entry.token_id for entry in one.logprobs] == one.token_ids


def test_prompts_have_vllms_forms(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    ids = llm.get_tokenizer().encode("hello")
    forms = [
        "hello",
        ids,
        {"prompt": "hello"},
        {"prompt_token_ids": ids},
        {"prompt_token_ids": tuple(ids), "prompt": None},
    ]
    outs = [*llm.generate(forms, params), *(llm.generate(form, sampling_params=params)[0] for form in forms)]
    assert {tuple(out.prompt_token_ids) for out in outs} == {tuple(ids)}
    assert len({tuple(out.outputs[0].token_ids) for out in outs}) == 1


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (5.5, "a prompt is a float, 5.5"),
        (None, "a prompt is a NoneType"),
        ([1.5], "a prompt is a list, \\[1.5\\]"),
        ({}, "a prompt has nothing; expected prompt"),
        ({"prompt_embeds": [1]}, "a prompt has \\['prompt_embeds'\\]"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "expected prompt"),
    ],
)
def test_what_is_no_prompt_is_told_so(llm: LLM, prompt: object, said: str) -> None:
    with pytest.raises(FlashdraftError, match=said):
        llm.generate([prompt], SamplingParams())  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hi", "a message is 'hi'; expected"),
        (["hi"], "a message is 'hi'; expected"),
        ([{"content": "hi"}], "a message is {'content': 'hi'}; expected"),
        ([{"role": "user", "content": None}], "a message is {'role': 'user', 'content': None}; expected"),
    ],
)
def test_what_is_no_message_is_told_so(llm: LLM, messages: Any, said: str) -> None:
    with pytest.raises(FlashdraftError, match=said):
        llm.chat(messages, SamplingParams())


def test_a_call_of_a_tool_needs_no_words(llm: LLM) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert llm.chat_token_ids([{"role": "user", "content": "hi"}, called])


@pytest.mark.parametrize("prompts", [5, None])
def test_what_is_not_even_a_list_of_prompts_is_told_so(llm: LLM, prompts: Any) -> None:
    with pytest.raises(FlashdraftError, match="expected a prompt, or a list of them"):
        llm.generate(prompts, SamplingParams())


@pytest.mark.parametrize("params", [{"max_tokens": 3}, "greedy", [{"max_tokens": 3}]])
def test_what_are_no_sampling_params_is_told_so(llm: LLM, params: Any) -> None:
    with pytest.raises(FlashdraftError, match="expected SamplingParams"):
        llm.generate(["hi"], params)


def test_the_template_is_told_what_chat_is_told(llm: LLM) -> None:
    chat, params = [{"role": "user", "content": "hi"}], SamplingParams(temperature=0, max_tokens=3)
    plain, told = llm.tokenizer.chat_template, "{% if enable_thinking %}think{% else %}say{% endif %}"
    llm.tokenizer.chat_template = told
    try:
        outs = [
            llm.chat(chat, params, chat_template_kwargs={"enable_thinking": flag})[0]
            for flag in (True, False)
        ]
    finally:
        llm.tokenizer.chat_template = plain
    assert [llm.tokenizer.decode(out.prompt_token_ids, skip_special_tokens=True) for out in outs] == [
        "think",
        "say",
    ]


def test_a_bar_counts_finished_answers(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    params = SamplingParams(temperature=0, max_tokens=4)
    llm.generate(["a", "b"], params)
    assert capsys.readouterr().err == ""
    llm.generate(["a", "b"], params, use_tqdm=True)
    assert "2/2" in capsys.readouterr().err


def test_requests_without_params_are_sampled_as_the_models_makers_do(tmp_path: Path) -> None:
    target, drafter = save_tiny_pair(tmp_path)
    (Path(target) / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 5}')
    own = LLM(target, drafter, dtype="float32")
    expected = SamplingParams(temperature=0.3, top_k=5)
    assert own.get_default_sampling_params() == expected
    [plain] = own.generate("hello", replace(expected, seed=3))
    assert own.generate("hello", SamplingParams(seed=3))[0].outputs != plain.outputs
    assert generation_defaults() == {"temperature": 0.2, "top_p": 0.9}  # of the embedded target's model card


def test_steps_are_measured_before_the_first_token(tmp_path: Path) -> None:
    llm = LLM(*save_tiny_pair(tmp_path), dtype="float32")
    known = []
    llm.generate("hello", SamplingParams(max_tokens=4), lambda _: known.append(llm.engine.control.controller))
    assert known[0] is not None
    assert known[0] is known[-1]


def test_without_the_c_plus_plus_layers_it_runs_in_the_type_that_keeps_its_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(path) for path in save_tiny_pair(tmp_path)]
    monkeypatch.setattr("flashdraft.native.accelerate.library", lambda: None)
    assert [served_dtype(None, paths[0], device) for device in ("cpu", "cuda", "cuda:1")] == [
        "float32",
        "bfloat16",
        "bfloat16",
    ]
    assert LLM(*paths).target.dtype == torch.float32
    assert LLM(*paths, dtype="bfloat16").target.dtype == torch.bfloat16


@pytest.mark.skipif(library() is None, reason="about where the C++ layers run")
def test_so_it_does_where_they_do_not_know_the_target_or_are_not_asked(tmp_path: Path) -> None:
    pair, hybrid = save_tiny_pair(tmp_path, **SHAPE), save_tiny_hybrid(tmp_path / "hybrid")
    opened = [LLM(*pair), LLM(hybrid), LLM(*pair, attention_backend="eager")]
    assert [isinstance(llm.target, NativeTarget) for llm in opened] == [True, False, False]
    assert [llm.dtype for llm in opened] == ["bfloat16", "float32", "float32"]
    assert [served_dtype(None, hybrid, "cuda"), served_dtype(None, pair[0], "cpu", "int8")] == [
        "bfloat16",
        "bfloat16",
    ]


def test_a_targets_config_is_read_once_before_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, read = [str(path) for path in save_tiny_pair(tmp_path)], list[Path]()
    config = load.read_config
    monkeypatch.setattr(load, "read_config", lambda place: (read.append(place), config(place))[1])
    LLM(*paths)
    assert read == [Path(paths[0])] * 2, "for all that it tells, and with the weights"


def test_an_interrupted_call_leaves_the_engine_empty(llm: LLM) -> None:
    def interrupt(_event: RoundEvent) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c", "d"], SamplingParams(max_tokens=30), interrupt)
    assert not llm.engine.has_unfinished
    assert llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_pages
    assert llm.generate("a", SamplingParams(temperature=0, max_tokens=4))[0].outputs[0].token_ids


def test_the_embedded_drafter_serves_with_a_window_that_short_texts_do_not_notice() -> None:
    params = SamplingParams(temperature=0, max_tokens=48)
    found = []
    for window in (None, 8192):  # its default, and all of the longest context
        llm = LLM(block_size=16, draft_window_size=window)
        assert isinstance(llm.drafter, DFlashDrafter)
        rules = llm.drafter.model.config.rules
        assert rules == [BlockRule(window or 1024, is_causal=False, from_anchor=True)] * 5
        [out] = llm.generate("What is the capital of France?", params)
        found.append((out.outputs[0].token_ids, out.metrics.accepted_histogram))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_target_whose_weights_are_no_numbers_is_refused(tmp_path: Path, name: str, value: float) -> None:
    target, _ = save_tiny_pair(tmp_path)
    file = Path(target) / "model.safetensors"
    weights = load_file(file)
    weights[name][-1] = value
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=rf"values of {name} are no finite numbers"):
        LLM(target, None, dtype="float32")
