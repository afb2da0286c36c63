"""What clients written elsewhere are asked to do, in a few lines each; ``agent_clients.py`` runs it.

python client_cases.py NUMBER URL    one case against a server; without arguments the list of them
"""  # it imports nothing of flashdraft

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

MODEL = "embedded"
ASKED: Any = [{"role": "user", "content": "Weather in Rome?"}]
HISTORY: Any = [*ASKED, {"role": "assistant", "content": None}, {"role": "user", "content": "again"}]
QUIET: Any = {"chat_template_kwargs": {"enable_thinking": False}}
CASES: list[tuple[str, str, Callable[[str], Any]]] = []  # package, what, and the doing


def case(package: str, what: str) -> Callable[[Callable[[str], Any]], Callable[[str], Any]]:
    """Adds a function to the list."""

    def add(function: Callable[[str], Any]) -> Callable[[str], Any]:
        CASES.append((package, what, function))
        return function

    return add


def _openai(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)


@case("openai", "chat, streamed, with usage")
def openai_chat(url: str) -> Any:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(_openai(url).chat.completions.create(model=MODEL, messages=ASKED, max_tokens=20, **options))
    return chunks[-1].usage.completion_tokens


@case("openai", "responses, streamed")
def openai_responses(url: str) -> Any:
    asked = _openai(url).responses
    return [one.type for one in asked.create(model=MODEL, input="hi", max_output_tokens=20, stream=True)][-1]


@case("openai", "an answer parsed by its schema")
def openai_parse(url: str) -> Any:
    import pydantic

    class Sum(pydantic.BaseModel):
        n: int = pydantic.Field(ge=0, le=9)

    asked = _openai(url).chat.completions
    settings: Any = {"max_tokens": 120, "temperature": 0, "extra_body": QUIET}
    told = asked.parse(model=MODEL, messages=ASKED, response_format=Sum, **settings)
    return told.choices[0].message.parsed.n


def _run_agent(url: str, kind: str, max_tokens: int) -> Any:
    import agents
    import openai
    import pydantic

    agents.set_tracing_disabled(True)

    class City(pydantic.BaseModel):
        name: str = pydantic.Field(pattern="^(Rome|Oslo)$")

    @agents.function_tool
    def weather(city: str) -> str:
        """The weather."""
        return f"sunny in {city}"

    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    settings = agents.ModelSettings(
        temperature=0, max_tokens=max_tokens, tool_choice="required", extra_body=QUIET
    )
    agent = agents.Agent(
        name="a",
        instructions="Be terse.",
        model=getattr(agents, kind)(model=MODEL, openai_client=client),
        tools=[weather],
        output_type=City,
        model_settings=settings,
    )
    try:
        result = agents.Runner.run_sync(agent, "Weather in Rome?", max_turns=8)
    except (agents.MaxTurnsExceeded, agents.ModelBehaviorError) as error:
        return f"every turn was answered; what the model said does not do: {error}"[:120]
    return [type(one).__name__ for one in result.new_items], str(result.final_output)


@case("openai-agents", "chat: a forced call, its result, a typed answer")
def agents_chat(url: str) -> Any:
    return _run_agent(url, "OpenAIChatCompletionsModel", 120)


@case("openai-agents", "responses: the same")
def agents_responses(url: str) -> Any:
    return _run_agent(url, "OpenAIResponsesModel", 120)


@case("openai-agents", "chat: a call that the limit cuts goes back as history")
def agents_cut(url: str) -> Any:
    return _run_agent(url, "OpenAIChatCompletionsModel", 24)


def _langchain(url: str, **more: Any) -> tuple[Any, Any]:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def weather(city: str, unit: str | None = None) -> str:
        """The weather."""
        return f"{city} {unit}"

    settings: Any = {"temperature": 0, "max_tokens": 60, "extra_body": QUIET, "max_retries": 0} | more
    return ChatOpenAI(base_url=f"{url}/v1", api_key="x", model=MODEL, **settings), weather


@case("langchain-openai", "invoke")
def langchain_invoke(url: str) -> Any:
    return _langchain(url)[0].invoke("hi").usage_metadata["output_tokens"]


@case("langchain-openai", "strict tools, any of them")
def langchain_tools(url: str) -> Any:
    model, weather = _langchain(url)
    return model.bind_tools([weather], tool_choice="any", strict=True).invoke("Weather in Rome?").tool_calls


@case("langchain-openai", "structured output")
def langchain_structured(url: str) -> Any:
    import pydantic

    class City(pydantic.BaseModel):
        name: str = pydantic.Field(pattern="^(Rome|Oslo)$")

    return _langchain(url)[0].with_structured_output(City).invoke("Rome?").name


@case("langchain-openai", "responses with tools")
def langchain_responses(url: str) -> Any:
    model, weather = _langchain(url, use_responses_api=True)
    return model.bind_tools([weather], tool_choice="any").invoke("hi").tool_calls


@case("langchain-anthropic", "tools, any of them")
def langchain_anthropic(url: str) -> Any:
    from langchain_anthropic import ChatAnthropic

    settings: Any = {"max_tokens": 60, "thinking": {"type": "disabled"}}
    model = ChatAnthropic(base_url=url, api_key="x", model=MODEL, **settings)
    return model.bind_tools([_langchain(url)[1]], tool_choice="any").invoke("Rome?").tool_calls


def _litellm(url: str, name: str, messages: Any, max_tokens: int = 10, **more: Any) -> Any:
    import litellm

    return litellm.completion(
        model=f"{name}/{MODEL}", api_base=url, api_key="x", messages=messages, max_tokens=max_tokens, **more
    )


@case("litellm", "openai/, an empty turn in the history")
def litellm_openai(url: str) -> Any:
    return _litellm(f"{url}/v1", "openai", HISTORY).usage.completion_tokens


@case("litellm", "hosted_vllm/, streamed")
def litellm_vllm(url: str) -> Any:
    return len(list(_litellm(f"{url}/v1", "hosted_vllm", HISTORY, stream=True)))


@case("litellm", "anthropic/")
def litellm_anthropic(url: str) -> Any:
    return _litellm(url, "anthropic", ASKED).usage.completion_tokens


CITY: Any = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
TOOLS: Any = [{"name": "weather", "input_schema": CITY}]
FUNCTION: Any = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


@case("litellm", "openai/ and hosted_vllm/, a forced tool, whole and streamed")
def litellm_tools(url: str) -> Any:
    import litellm

    asked: Any = {"tools": [FUNCTION], "tool_choice": "required", "max_tokens": 60, "extra_body": QUIET}
    told = []
    for name in ("openai", "hosted_vllm"):
        whole = _litellm(f"{url}/v1", name, ASKED, **asked)
        chunks = list(_litellm(f"{url}/v1", name, ASKED, stream=True, **asked))
        for one in (whole, litellm.stream_chunk_builder(chunks)):
            told += [call.function.arguments for call in one.choices[0].message.tool_calls]
    return told


@case("litellm", "anthropic/, a forced tool, streamed")
def litellm_anthropic_tool(url: str) -> Any:
    import litellm

    asked: Any = {"tools": [FUNCTION], "tool_choice": "required", "max_tokens": 60, "stream": True}
    asked |= {"thinking": {"type": "disabled"}, "allowed_openai_params": ["thinking"]}
    chunks = list(_litellm(url, "anthropic", ASKED, **asked))
    return [
        call.function.arguments for call in litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    ]


@case("litellm", "text-completion-openai/, and what a request cost")
def litellm_text(url: str) -> Any:
    import litellm

    told = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        api_base=f"{url}/v1",
        api_key="x",
        prompt="2 + 2 =",
        max_tokens=4,
    )
    return told.choices[0].text, told.usage.completion_tokens


@case("anthropic", "a forced tool, streamed")
def anthropic_tool(url: str) -> Any:
    import anthropic

    asked: Any = {"model": MODEL, "max_tokens": 60, "messages": ASKED, "tools": TOOLS}
    asked |= {"tool_choice": {"type": "tool", "name": "weather"}, "thinking": {"type": "disabled"}}
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0).messages.stream(**asked) as stream:
        return [one.type for one in stream.get_final_message().content]


@case("anthropic", "count_tokens")
def anthropic_count(url: str) -> Any:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="x", max_retries=0)
    return client.messages.count_tokens(model=MODEL, messages=ASKED, tools=TOOLS).input_tokens


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(json.dumps([(package, version(package), what) for package, what, _ in CASES]))
    else:
        print(CASES[int(sys.argv[1])][2](sys.argv[2]))
