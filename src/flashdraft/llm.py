"""The offline face: ``LLM(...).generate(prompts, params)`` and ``.chat(conversations, params)``, as in vLLM."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from tqdm import tqdm

from flashdraft.admission import AUTO, BlockSize, check_block_size, check_tree
from flashdraft.answer import RoundEvent
from flashdraft.backends.registry import AUTO_BACKEND, check_backend
from flashdraft.checkpoint.embedded import drafts_among_all, served_window
from flashdraft.checkpoint.load import (
    EMBEDDED,
    OWN_MTP,
    check_pair,
    eos_token_ids,
    floats_fit,
    generation_defaults,
    load_drafter,
    load_own_mtp,
    load_target,
    load_tokenizer,
    outline_target,
)
from flashdraft.checkpoint.weights import check_device
from flashdraft.control.explain import explain
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.engine.types import StepOutput
from flashdraft.errors import UsageError
from flashdraft.models.base import TargetModel
from flashdraft.native.accelerate import accelerate, has_fast_form
from flashdraft.sampler import TokenLogprobs
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.build import drafter_of
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.metrics import RequestMetrics

Prompt = (
    str | Sequence[int] | Mapping[str, Any]
)  # a text, token ids, {"prompt": ...} or {"prompt_token_ids": ...}
Message = dict[str, str]
_UNSET = "unset"


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. ``text`` is empty where there is no tokenizer; special tokens are left out of it."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: int | str | None = None  # the stop token or stop text that ended it
    logprobs: list[TokenLogprobs] | None = None  # one a token, where asked for
    prompt_logprobs: list[TokenLogprobs] | None = None  # one a prompt token after the first, where asked for


@dataclass(frozen=True)
class RequestOutput:
    """A prompt with its answers (``params.n``) and what they cost together."""

    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics


class LLM:
    """A target with its drafter, ready to answer.

    ``model``: "embedded", a Hugging Face folder, a GGUF file or a hub name. ``draft`` left out: the embedded
    drafter for the embedded target and none for another; "mtp": the target's own MTP head; None: none.
    ``block_size``: tokens of a block, anchor included; 1 plain decoding; "auto", the default, leaves every block to
    the controller. ``dtype``: "float32" or "bfloat16"; None: ``exact_dtype``.
    ``quantization``: None, "int8" or "int4" (native/accelerate.py): lossless is against the target as it is then.
    ``draft_tree``: tokens of a tree that is verified in place of every block, anchor included; without a
    ``block_size`` the tree is then as deep as the drafter's largest block. None: chains.
    ``attention_backend``: how the target's steps run, "auto" or a name of backends/registry.py.
    ``draft_window_size``: tokens of the context that the drafter sees; None: 1,024 for the embedded
    one, all that it was trained to see for another.
    ``keep_codes``: whether a quantized target's matrices stay in the checkpoint's codes (load_target), on CUDA alone;
    None: where its weights as floats would take more than 0.8 of the device's free memory, since floats are faster.
    Raises CheckpointError or UsageError before any long work.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        draft: str | Drafter | None = _UNSET,
        block_size: BlockSize | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        skip_tokenizer_init: bool = False,
        max_running: int = 32,
        quantization: str | None = None,
        draft_window_size: int | None = None,
        draft_tree: int | None = None,
        attention_backend: str = AUTO_BACKEND,
        keep_codes: bool | None = None,
    ) -> None:
        if draft == _UNSET:
            draft = EMBEDDED if model == EMBEDDED else None
        outline: TargetModel | None = None
        if isinstance(draft, str):
            outline = check_pair(model, draft, block_size if isinstance(block_size, int) else 1)
        self.dtype = dtype = served_dtype(dtype, model, device, quantization, attention_backend, outline)
        check_backend(attention_backend)
        self.keeps_codes = keeps_codes(model, dtype, device, attention_backend, keep_codes)
        packs = attention_backend in (AUTO_BACKEND, "native")
        self.target = _open_target(model, dtype, device, self.keeps_codes, packs, quantization)
        self.drafter: Drafter | None = None
        if isinstance(draft, str):
            load, name = (load_own_mtp, model) if draft == OWN_MTP else (load_drafter, draft)
            network = load(name, self.target, dtype=dtype, device=device)
            if draft_window_size is None:
                draft_window_size = served_window(draft)
            among_all = drafts_among_all(draft, self.target.device)
            self.drafter = drafter_of(network, self.target, quantization, draft_window_size, among_all)
        elif draft is not None and not isinstance(draft, Drafter):
            raise UsageError(
                f"draft is a {type(draft).__name__}; expected a name, or a drafter that is a subclass of"
                " spec_decode.drafter.Drafter or spec_decode.per_request.PerRequestDrafter"
            )
        else:
            check_window(None, draft_window_size)
            self.drafter = draft
        # A wrong block or tree size is told now and not at the first request.
        self.draft_tree = draft_tree
        check_tree(self.drafter, draft_tree)
        if draft_tree and block_size in (None, AUTO):
            block_size = self.max_block_size
        self.block_size = check_block_size(self.drafter, AUTO if block_size is None else block_size)
        self.tokenizer: Any = None if skip_tokenizer_init else load_tokenizer(model)
        self.eos_token_ids = eos_token_ids(model)
        self._defaults = generation_defaults(model)
        self.metrics = RequestMetrics(num_requests=0)
        self.engine_config = EngineConfig(max_running=max_running, attention_backend=attention_backend)

    @property
    def max_block_size(self) -> int:
        """The largest block that may be asked for; 1 without a drafter."""
        return self.drafter.max_block_size if self.drafter else 1

    @cached_property
    def engine(self) -> Engine:
        """The engine behind :meth:`generate`, made, with its cache, when it is first needed."""
        return Engine(
            self.target,
            self.drafter,
            self.engine_config,
            self.eos_token_ids,
            self.tokenizer,
            self.block_size,
            draft_tree=self.draft_tree,
        )

    def get_tokenizer(self) -> Any:
        """The tokenizer, as transformers makes it; None with ``skip_tokenizer_init``."""
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What requests without params are answered with: the settings that the model's makers ship."""
        return SamplingParams(**self._defaults)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        on_round: Callable[[RoundEvent], None] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt; the outputs stand in the order of the prompts.

        A prompt is a text, a list of token ids, or vLLM's {"prompt": text} or {"prompt_token_ids": ids}.
        ``sampling_params`` left out: :meth:`get_default_sampling_params`. ``use_tqdm``: a bar of finished answers.
        ``on_round`` hears every verification as it happens (see :func:`flashdraft.generate.generate`); of several
        prompts they are mixed. Raises UsageError before any prompt is run when one of them cannot be served.
        """
        if not isinstance(prompts, Sized):
            raise UsageError(f"prompts is a {type(prompts).__name__}; expected a prompt, or a list of them")
        is_one = isinstance(prompts, str | Mapping) or (len(prompts) > 0 and isinstance(prompts[0], int))
        every: list[Any] = [prompts] if is_one else list(prompts)
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        each_params = _per_prompt(sampling_params, len(every))
        token_ids = [self._encode(prompt) for prompt in every]
        wanted = [one.split() for one in each_params]
        for ids, split in zip(token_ids, wanted, strict=True):
            self.engine.check(ids, split[0], self.block_size)
        answers = self._run(
            [(ids, one) for ids, split in zip(token_ids, wanted, strict=True) for one in split],
            on_round,
            use_tqdm,
        )
        outputs = []
        for ids, split in zip(token_ids, wanted, strict=True):
            own, answers = answers[: len(split)], answers[len(split) :]
            metrics = RequestMetrics(num_requests=0)
            for _, cost in own:
                metrics.add(cost)
            self.metrics.add(metrics)
            outputs.append(RequestOutput(ids, [completion for completion, _ in own], metrics))
        return outputs

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        on_round: Callable[[RoundEvent], None] | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answer each conversation, a list of {"role": ..., "content": ...}, through the chat template.

        ``chat_template_kwargs``: what the template knows beside the messages, such as {"enable_thinking": False}.
        """
        is_one = len(messages) > 0 and isinstance(messages[0], str | Mapping)
        every: Sequence[Any] = [messages] if is_one else messages
        prompts = [self.chat_token_ids(c, **(chat_template_kwargs or {})) for c in every]
        return self.generate(prompts, sampling_params, on_round, use_tqdm=use_tqdm)

    def explain(self, metrics: RequestMetrics) -> str:
        """Why the blocks were as long as they were: step costs, acceptance, and lengths chosen over ``metrics``."""
        return explain(self.engine.control.controller, metrics)

    def chat_token_ids(self, messages: Sequence[Message], **template_values: Any) -> list[int]:
        """The token ids of a conversation through the chat template, ready for the answer.

        ``template_values``: what the template knows beside the messages, such as enable_thinking.
        """
        if self.tokenizer is None:
            raise UsageError("chat needs a tokenizer; this LLM was made with skip_tokenizer_init=True")
        if not self.tokenizer.chat_template:
            raise UsageError(
                "the model has no chat template; use generate with a plain prompt (--no-chat on the command line)"
            )
        _check_messages(messages)
        ids: list[int] = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False, **template_values
        )
        return ids

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, Mapping):
            named = [prompt[name] for name in ("prompt_token_ids", "prompt") if prompt.get(name) is not None]
            if len(named) != 1:
                raise UsageError(
                    f"a prompt has {sorted(prompt) or 'nothing'}; expected prompt (a text) or prompt_token_ids"
                )
            prompt = named[0]
        if not isinstance(prompt, str):
            return _token_ids(prompt)
        if self.tokenizer is None:
            raise UsageError(
                "a text prompt needs a tokenizer; pass token ids or leave skip_tokenizer_init off"
            )
        ids: list[int] = self.tokenizer.encode(prompt)
        return ids

    def _run(
        self,
        jobs: Sequence[tuple[list[int], SamplingParams]],
        on_round: Callable[[RoundEvent], None] | None,
        use_tqdm: bool,
    ) -> list[tuple[CompletionOutput, RequestMetrics]]:
        """The answer of each (prompt, params) and its cost, in order."""
        if self.block_size == AUTO and jobs:  # before the first token, and not behind it
            self.engine.control.calibrate(min(len(jobs), self.engine_config.max_running))
        bar = tqdm(total=len(jobs), desc="answers", disable=not use_tqdm)
        names = [str(idx) for idx in range(len(jobs))]
        news: dict[str, list[StepOutput]] = {name: [] for name in names}
        try:
            for name, (ids, params) in zip(names, jobs, strict=True):
                self.engine.add_request(name, ids, params, self.block_size, draft_tree=self.draft_tree)
            for output in self.engine.run():
                news[output.request_id].append(output)
                bar.update(output.finished)
                if on_round:
                    on_round(
                        RoundEvent(output.token_ids, output.num_drafted, output.num_accepted, output.text)
                    )
        except BaseException:  # Ctrl-C too: the next call starts from an empty engine
            for name in names:
                self.engine.abort(name)
            for _ in self.engine.run():
                pass
            raise
        finally:
            bar.close()
        return [(_completion(news[name]), news[name][-1].metrics) for name in names]


def check_window(draft: str | None, window_size: int | None) -> None:
    """Raises UsageError for a window without a drafter's name that it is for."""
    if draft is None and window_size is not None:
        raise UsageError("draft_window_size is for a loaded DFlash drafter; expected one, or leave it out")


def served_dtype(
    asked: str | None,
    model: str,
    device: str,
    quantization: str | None = None,
    attention_backend: str = AUTO_BACKEND,
    outline: TargetModel | None = None,
) -> str:
    """``asked``, or the fastest type on ``device`` in which drafting does not change an answer's tokens.

    In PyTorch on a CPU bfloat16 rounds a token otherwise alone than in a block, and near-ties fall either way: float32
    wherever the C++ layers do not run. Quantized weights run in these alone, in bfloat16. ``outline``: the model's, if
    there is one. Raises UsageError for quantized weights in another.
    """
    if quantization and asked not in (None, "bfloat16"):
        raise UsageError(f"quantization {quantization} runs in bfloat16; expected that, found {asked}")
    if asked is not None:
        return asked
    if device != "cpu" or quantization:
        return "bfloat16"
    packs = attention_backend in (AUTO_BACKEND, "native")
    return "bfloat16" if packs and has_fast_form(outline or outline_target(model)) else "float32"


def _open_target(
    model: str, dtype: str, device: str, keeps_codes: bool, packs: bool, quantization: str | None
) -> TargetModel:
    """The target in the form that runs here; ``packs``: in the C++ layers' where it can."""
    if quantization:
        # From the checkpoint's own values, one matrix at a time: a GGUF of that kind is computed as it is stored.
        return accelerate(load_target(model, "float32", device, leave_matrices=True), quantization)
    target = load_target(model, dtype, device, keeps_codes)
    return accelerate(target) if packs else target


def keeps_codes(model: str, dtype: str, device: str, attention_backend: str, asked: bool | None) -> bool:
    """Whether weights stay in codes: what was asked, or whether they must. Raises UsageError where they cannot."""
    can = device.startswith("cuda") and attention_backend in (AUTO_BACKEND, "cuda")
    if asked and not can:
        raise UsageError(
            f"keep_codes is for CUDA's own steps; found device {device} and attention_backend"
            f" {attention_backend}: leave it out"
        )
    if asked is not None or not can:
        return bool(asked)
    return not floats_fit(model, dtype, torch.cuda.mem_get_info(check_device(device))[0])


def _completion(news: Sequence[StepOutput]) -> CompletionOutput:
    last = news[-1]
    if last.error is not None:
        raise UsageError(last.error)
    logprobs = None
    if last.logprobs is not None:
        logprobs = [entry for output in news for entry in output.logprobs or ()]
    return CompletionOutput(
        text="".join(output.text for output in news),
        token_ids=[token for output in news for token in output.token_ids],
        finish_reason=last.finish_reason or "abort",
        stop_reason=last.stop_reason,
        logprobs=logprobs,
        prompt_logprobs=next((one.prompt_logprobs for one in news if one.token_ids), None),
    )


def _token_ids(prompt: object) -> list[int]:
    if isinstance(prompt, Iterable) and not isinstance(prompt, bytes):
        ids = list(prompt)
        if all(isinstance(token, Integral) for token in ids):
            return [int(token) for token in ids]
    raise UsageError(
        f"a prompt is a {type(prompt).__name__}, {prompt!r:.60}; expected a text, token ids, or vLLM's dict of one"
    )


def _check_messages(messages: Any) -> None:
    every: list[Any] = [messages] if isinstance(messages, str) else list(messages)
    for message in every:
        is_said = isinstance(message, Mapping) and isinstance(message.get("role"), str)
        # An assistant that only calls tools says nothing beside.
        if not is_said or (message.get("content") is None and not message.get("tool_calls")):
            raise UsageError(f'a message is {message!r:.80}; expected {{"role": "user", "content": "..."}}')


def _per_prompt(params: SamplingParams | Sequence[SamplingParams], count: int) -> Sequence[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    for one in params if isinstance(params, list | tuple) else [params]:
        if not isinstance(one, SamplingParams):
            raise UsageError(
                f"sampling_params is {one!r:.80}; expected SamplingParams(...), or a list of them"
            )
    if len(params) != count:
        raise UsageError(
            f"{len(params)} sampling params for {count} prompts; expected one for each, or one for all"
        )
    return params
