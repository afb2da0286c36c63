#!/usr/bin/env bash
# The anthropic client 2.14.0 gives the tool call of a stream that max_tokens cut as a whole one: the final message's
# ToolUseBlock has for its input whatever could be read of the half JSON. An amount of 1200 cut behind its second digit
# is 12, and a text that was not closed is missing. An engineer who knows that half JSON does not parse would guess an
# error, or the raw text; that something was cut shows by stop_reason "max_tokens" alone. A loop that runs each tool_use
# block runs the tool with such arguments. For us: look at stop_reason first, also for answers that are not streamed,
# whose input flashdraft reads as far as it goes too.
#
# Seen (anthropic 2.14.0, Python 3.11); arguments as streamed, and what the final message has:
#   {"to": "Rome", "amount": 12  max_tokens  {'to': 'Rome', 'amount': 12}
#   {"to": "Ro                   max_tokens  {}
#   {"to": ["Rome", "Os          max_tokens  {'to': ['Rome']}
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq anthropic==2.14.0
cat >"$folder/probe.py" <<'PROBE'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from anthropic import Anthropic

CASES = {
    '{"to": "Rome", "amount": 12': {"to": "Rome", "amount": 12},
    '{"to": "Ro': {},
    '{"to": ["Rome", "Os': {"to": ["Rome"]},
}


def events(arguments):
    """The Messages API's stream of one call, whose arguments come in two parts."""
    message = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
    message |= {"stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    yield {"type": "message_start", "message": message}
    block = {"type": "tool_use", "id": "call", "name": "pay", "input": {}}
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    for part in (arguments[:5], arguments[5:]):
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": part}}
    yield {"type": "content_block_stop", "index": 0}
    end = {"stop_reason": "max_tokens", "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": 9}}
    yield {"type": "message_stop"}


class Handler(BaseHTTPRequestHandler):
    """Streams a call whose arguments are the question."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        told = events(asked["messages"][0]["content"])
        body = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in told).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = Anthropic(base_url=f"http://127.0.0.1:{server.server_port}", api_key="none", max_retries=0)
for arguments, expected in CASES.items():
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": arguments}]}
    with client.messages.stream(**asked) as stream:
        message = stream.get_final_message()
    (block,) = message.content
    print(f"{arguments:28} {message.stop_reason:11} {block.input}")
    assert (message.stop_reason, block.input) == ("max_tokens", expected), "half arguments are read otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
