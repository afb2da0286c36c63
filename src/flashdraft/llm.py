"""The offline face: ``LLM(...).generate(prompts, params)`` and ``.chat(conversations, params)``, as in vLLM."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flashdraft.checkpoint.load import (
    EMBEDDED,
    eos_token_ids,
    load_drafter,
    load_target,
    load_tokenizer,
)
from flashdraft.errors import UsageError
from flashdraft.generate import GenerateOutput, RoundEvent, check_request, generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.metrics import RequestMetrics

Prompt = str | Sequence[int]
Message = dict[str, str]
_UNSET = "unset"


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. ``text`` is empty where there is no tokenizer; special tokens are left out of it."""

    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True)
class RequestOutput:
    """A prompt with its answers and what they cost."""

    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics


class LLM:
    """A target with its drafter, ready to answer.

    ``model``: "embedded", a Hugging Face folder, a GGUF file or a hub name. ``draft`` left out: the embedded
    drafter for the embedded target and none for another; None: none. ``block_size``: tokens of a block, anchor
    included; None the drafter's own; 1 plain decoding. ``dtype``: "float32" or "bfloat16".
    Raises CheckpointError or UsageError before any long work.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        draft: str | Drafter | None = _UNSET,
        block_size: int | None = None,
        dtype: str = "bfloat16",
        device: str = "cpu",
        skip_tokenizer_init: bool = False,
    ) -> None:
        if draft == _UNSET:
            draft = EMBEDDED if model == EMBEDDED else None
        self.target = load_target(model, dtype=dtype, device=device)
        self.drafter: Drafter | None = None
        if isinstance(draft, str):
            network = load_drafter(draft, self.target, dtype=dtype, device=device)
            self.drafter = DFlashDrafter(network, self.target)
        else:
            self.drafter = draft
        # A dummy prompt: a wrong block size is told now and not at the first request.
        self.block_size = check_request(self.target, self.drafter, [0], block_size)
        self.tokenizer: Any = None if skip_tokenizer_init else load_tokenizer(model)
        self.eos_token_ids = eos_token_ids(model)
        self.metrics = RequestMetrics(num_requests=0)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        on_round: Callable[[RoundEvent], None] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt, a text or token ids, in order.

        ``on_round`` hears every verification (see :func:`flashdraft.generate.generate`). Raises UsageError before
        any prompt is run when one of them cannot be served.
        """
        is_one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        every: Sequence[Any] = [prompts] if is_one else prompts
        each_params = _per_prompt(params, len(every))
        token_ids = [self._encode(prompt) for prompt in every]
        for ids in token_ids:
            check_request(self.target, self.drafter, ids, self.block_size)
        outputs = []
        for ids, one in zip(token_ids, each_params, strict=True):
            output = generate(
                self.target, self.drafter, ids, one, self.block_size, self.eos_token_ids, on_round
            )
            self.metrics.add(output.metrics)
            outputs.append(self._request_output(ids, output))
        return outputs

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        on_round: Callable[[RoundEvent], None] | None = None,
    ) -> list[RequestOutput]:
        """Answer each conversation, a list of {"role": ..., "content": ...}, through the chat template."""
        is_one = len(conversations) > 0 and isinstance(conversations[0], dict)
        every: Sequence[Any] = [conversations] if is_one else conversations
        return self.generate([self.chat_token_ids(c) for c in every], params, on_round)

    def chat_token_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation through the chat template, ready for the answer."""
        if self.tokenizer is None:
            raise UsageError("chat needs a tokenizer; this LLM was made with skip_tokenizer_init=True")
        if not self.tokenizer.chat_template:
            raise UsageError("the model has no chat template; use generate with a plain prompt")
        ids: list[int] = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False
        )
        return ids

    def _encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return [int(token) for token in prompt]
        if self.tokenizer is None:
            raise UsageError(
                "a text prompt needs a tokenizer; pass token ids or leave skip_tokenizer_init off"
            )
        ids: list[int] = self.tokenizer.encode(prompt)
        return ids

    def _request_output(self, prompt: list[int], output: GenerateOutput) -> RequestOutput:
        text = ""
        if self.tokenizer is not None:
            text = self.tokenizer.decode(output.token_ids, skip_special_tokens=True)
        completion = CompletionOutput(text, output.token_ids, output.finish_reason)
        return RequestOutput(prompt, [completion], output.metrics)


def _per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise UsageError(
            f"{len(params)} sampling params for {count} prompts; expected one for each, or one for all"
        )
    return params
