"""A server whose template is another, or whose model says what a script has."""

import contextlib
from collections.abc import AsyncGenerator, Iterator
from copy import copy
from typing import Any

import openai

from flashdraft.detokenizer import Detokenizer
from flashdraft.engine.async_engine import AsyncEngine
from flashdraft.engine.types import StepOutput
from flashdraft.llm import LLM
from flashdraft.server.config import ServerConfig
from server_case import own_engine, serving
from tiny_pair import TOOLS_TEMPLATE


def with_template(llm: LLM, template: str) -> LLM:
    other = copy(llm)
    other.tokenizer = copy(llm.tokenizer)
    other.tokenizer.chat_template = template
    return other


class ScriptedEngine(AsyncEngine):
    """Says what its script has, some tokens a step."""

    def __init__(self, llm: LLM, text: str, num_tokens: int, finish_reason: str = "stop") -> None:
        super().__init__(own_engine(llm, ServerConfig()))
        self.tokenizer = llm.tokenizer
        self.token_ids, self.num_tokens = llm.tokenizer.encode(text), num_tokens
        self.finish_reason = finish_reason

    async def generate(self, *_: Any, **__: Any) -> AsyncGenerator[StepOutput, None]:
        """The same whatever is asked."""
        ids, size, detokenizer = self.token_ids, self.num_tokens, Detokenizer(self.tokenizer)
        for at in range(0, len(ids), size):
            text = "".join(map(detokenizer.push, ids[at : at + size]))
            yield StepOutput("", ids[at : at + size], text)
        yield StepOutput("", [], detokenizer.flush(), finished=True, finish_reason=self.finish_reason)


@contextlib.contextmanager
def saying(llm: LLM, text: str, num_tokens: int) -> Iterator[openai.OpenAI]:
    """The client of a server whose template leaves it to the model whether it thinks, and whose model says ``text``."""
    free = with_template(llm, TOOLS_TEMPLATE.replace("{% else %}<think>\n{% endif %}", "{% endif %}"))
    with serving(free, ScriptedEngine(free, text, num_tokens)) as running, running.openai() as client:
        yield client
