"""The official client's ``responses``, whole and streamed."""

from typing import Any

import openai
import pytest

from server_case import MODEL, Running

GO_ON: dict[str, Any] = {"extra_body": {"ignore_eos": True}}
ASKED: dict[str, Any] = {
    "model": MODEL,
    "input": "hello",
    "temperature": 0,
    "max_output_tokens": 30,
    "extra_body": {"ignore_eos": True},
}


def test_a_response_is_the_chat_answer(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=30, temperature=0, extra_body={"ignore_eos": True}
    )
    response = client.responses.create(**ASKED, instructions="be brief")
    assert response.output_text == chat.choices[0].message.content
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.output_tokens == 30
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_streamed_events_add_up(client: openai.OpenAI) -> None:
    whole = client.responses.create(**ASKED)
    events = list(client.responses.create(**ASKED, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text == events[-1].response.output_text
    with client.responses.stream(**ASKED) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"n": 2}, "n"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
    ],
)
def test_what_it_cannot_is_refused(running: Running, more: dict[str, Any], param: str) -> None:
    response = running.post("/v1/responses", **({"input": "hi"} | more))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
