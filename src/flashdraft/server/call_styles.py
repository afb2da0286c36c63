"""The forms in which models write tool calls, told apart by their chat templates.

xml           <tool_call><function=f><parameter=a>1</parameter></function></tool_call>   Qwen3.5, Qwen3-Coder
json          <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>                Qwen3, Hermes
llama         {"name": "f", "parameters": {"a": 1}}                                      Llama 3.1 to 3.3, 4
pythonic      [f(a=1), g()]                                                              Llama 3.2, 4, LFM2
mistral       [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]                         Mistral to 2024
mistral-args  [TOOL_CALLS]f[ARGS]{"a": 1}                                                Mistral from 2025
harmony       <|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}  gpt-oss
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

BEGIN, FUNCTION, TOOL_CALLS, ARGS = "<tool_call>", "<function=", "[TOOL_CALLS]", "[ARGS]"
CHANNEL, TO_FUNCTION = "<|channel|>", "to=functions."
PYTHON_MARKS = ("<|python_start|>", "<|tool_call_start|>")
CallStyle = Literal["xml", "json", "llama", "pythonic", "mistral", "mistral-args", "harmony"]


@dataclass(frozen=True)
class Tools:
    """What may be called. ``schemas``: name -> JSON schema of the arguments."""

    schemas: Mapping[str, Mapping[str, Any]]
    style: CallStyle = "xml"

    @property
    def openers(self) -> tuple[str, ...]:
        """Texts that a call may begin with."""
        if self.style == "llama":
            return ("{",)
        if self.style == "pythonic":
            return ("[",)
        return (BEGIN, FUNCTION) if self.style in ("xml", "json") else (TOOL_CALLS,)


def template_of(tokenizer: Any, with_tools: bool = False) -> str:
    """The chat template; "": there is none. Of several by name transformers takes "tool_use" for chats with tools."""
    found = tokenizer.chat_template
    if isinstance(found, Mapping):
        found = (found.get("tool_use") if with_tools else None) or found.get("default")
    return found or ""


def call_style(template: str | None) -> CallStyle | None:
    """The form of the calls that a chat template shows; None: it shows no tools, or calls in another form."""
    if not template or "tools" not in template:
        return None
    if CHANNEL in template:
        return "harmony"
    if BEGIN in template:
        return "xml" if FUNCTION in template else "json"
    if TOOL_CALLS in template:
        return "mistral-args" if ARGS in template else "mistral"
    if "[func_name1(" in template or any(mark in template for mark in PYTHON_MARKS):
        return "pythonic"
    return "llama" if '"parameters": ' in template and "ipython" in template else None
