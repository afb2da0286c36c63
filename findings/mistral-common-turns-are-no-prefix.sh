#!/usr/bin/env bash
# mistral-common 1.13.1 writes the system prompt of its v2, v3 and first Tekken tokenizers (Mistral 7B v0.3, Mixtral
# 8x22B, Mistral Nemo) into the LAST user message, and the list of tools before it, also for v7. So a conversation's
# next prompt does not begin with its former one: what a prefix cache keeps of a turn ends at the first [INST]. An
# engineer would guess that a longer conversation extends the shorter, as chat templates of other models do. For us:
# prompts that go through it hit the prefix cache in their first tokens alone.
#
# Seen (mistral-common 1.13.1, sentencepiece 0.2.3, tiktoken 0.14.0, Python 3.11); tokens of the
# first turn's prompt that the second turn's begins with:
#   mistral_instruct_tokenizer_240323.model.v3  a system prompt 2 of 9    two tools 1 of 80
#   tekken_240911.json                          a system prompt 2 of 7    two tools 1 of 79
#   mistral_instruct_tokenizer_241114.model.v7  a system prompt 9 of 9    two tools 1 of 80
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq mistral-common==1.13.1 sentencepiece==0.2.3 tiktoken==0.14.0
cat >"$folder/probe.py" <<'PROBE'
from pathlib import Path

import mistral_common
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Function, Tool
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

data = Path(mistral_common.__file__).parent / "data"
system = SystemMessage(content="Be brief.")
first = [UserMessage(content="Hello")]
second = [*first, AssistantMessage(content="Hi."), UserMessage(content="Tell me more.")]
empty = {"type": "object", "properties": {}}
tools = [Tool(function=Function(name=name, description="d", parameters=empty)) for name in ("get", "put")]


def shared(tokenizer, before, tools=None):
    """(tokens in common, tokens of the first turn) of the prompts of two turns of one conversation."""
    requests = (ChatCompletionRequest(messages=[*before, *turn], tools=tools) for turn in (first, second))
    one, two = (tokenizer.encode_chat_completion(request).tokens for request in requests)
    return next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), len(one)), len(one)


for name, kept in [
    ("mistral_instruct_tokenizer_240323.model.v3", False),
    ("tekken_240911.json", False),
    ("mistral_instruct_tokenizer_241114.model.v7", True),
]:
    tokenizer = MistralTokenizer.from_file(str(data / name))
    with_system, with_tools = shared(tokenizer, [system]), shared(tokenizer, [], tools)
    said = f"a system prompt {with_system[0]} of {with_system[1]}"
    print(f"{name:43} {said:25} two tools {with_tools[0]} of {with_tools[1]}")
    assert (with_system[0] == with_system[1]) == kept and with_tools[0] <= 2, "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
