"""From a typed chat to what the engine is asked: the prompt, the tools, the grammar. Every form of chat goes here."""

from dataclasses import dataclass, replace

from flashdraft.sampling_params import SamplingParams
from flashdraft.server.answer_parts import Thinking, thinking_of
from flashdraft.server.api_errors import ApiError
from flashdraft.server.call_styles import template_of
from flashdraft.server.handlers import answer_len
from flashdraft.server.prompts import encode_chat, prompt_end, with_effort
from flashdraft.server.protocol import ChatRequest, OpenAIRequest
from flashdraft.server.service import Service, Wish
from flashdraft.server.structured import behind_thoughts
from flashdraft.server.tool_choice import ToolChoice, tool_choice_of


@dataclass(frozen=True)
class PreparedChat:
    """What to ask of the engine, and how to read its answers."""

    wishes: list[Wish]
    thinking: Thinking
    choice: ToolChoice


async def encode_prompt(service: Service, asked: ChatRequest, choice: ToolChoice) -> list[int]:
    """The token ids of the whole conversation."""
    ids = await encode_chat(
        service,
        asked.messages,
        with_effort(
            template_of(service.tokenizer, bool(choice.shown)),
            asked.chat_template_kwargs,
            asked.reasoning_effort,
        ),
        choice.shown,
        add_special_tokens=bool(asked.add_special_tokens),
    )
    return last_tokens(ids, asked)


def last_tokens(prompt: list[int], asked: OpenAIRequest) -> list[int]:
    """What ``truncate_prompt_tokens`` leaves of a prompt."""
    return prompt[-asked.truncate_prompt_tokens :] if asked.truncate_prompt_tokens else prompt


async def prepare_chat(
    service: Service, asked: ChatRequest, max_tokens: int | None, param: str = "max_tokens"
) -> PreparedChat:
    """Raises ApiError 400 for what the model or its template cannot do. ``param``: how the length is called."""
    tokenizer = service.tokenizer
    choice = tool_choice_of(asked, tokenizer)
    service.admit(asked.n or 1)
    prompt = await encode_prompt(service, asked, choice)
    thinking = thinking_of(template_of(tokenizer, bool(choice.shown)), prompt_end(tokenizer, prompt))
    params = asked.params(service.defaults, answer_len(service, len(prompt), max_tokens, param))
    said = tuple(message.model_dump(exclude_none=True) for message in asked.messages)
    in_pieces = thinking != "none" or bool(asked.logprobs or asked.token_origins)
    wishes = [
        Wish(
            prompt,
            _chat_params(one, asked, choice, thinking),
            asked.block_size,
            messages=said,
            in_pieces=in_pieces,
        )
        for one in params
    ]
    return PreparedChat(wishes, thinking, choice)


def _chat_params(
    params: SamplingParams, asked: ChatRequest, choice: ToolChoice, thinking: Thinking
) -> SamplingParams:
    """With what only a chat can ask for. A grammar begins behind the thoughts."""
    if params.grammar and choice.grammar and not asked.wants_json:
        raise ApiError(400, "a grammar and tool_choice both say what the answer is", "tool_choice")
    grammar = choice.grammar or params.grammar
    params = replace(params, grammar=grammar, logprobs=asked.num_logprobs)
    if thinking == "harmony" and choice.grammar:  # which says itself what comes before a call
        return params
    return behind_thoughts(params, thinking)
