#!/usr/bin/env bash
# The openai client 3.57.0 raises LengthFinishReasonError when the final completion is asked of a stream of plain text
# that max_tokens cut: no response_format, no tools, nothing to parse. The stream's own loop ends without an error, the
# same answer by create() is returned, and the error's message says "Could not parse response content". For us: answers
# that end with finish_reason "length" are legal and common (benchmarks cut all of them); take the text from the events.
#
# Seen (openai 3.57.0, Python 3.11):
#   finish_reason 'stop'    events 'Hello you'  final completion 'Hello you'
#   finish_reason 'length'  events 'Hello you'  final completion LengthFinishReasonError
#   finish_reason 'length'  create(stream=True) 'Hello you'
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq openai==3.57.0
cat >"$folder/probe.py" <<'PROBE'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import LengthFinishReasonError, OpenAI


class Handler(BaseHTTPRequestHandler):
    """Streams one answer; the model's name is its finish_reason."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        common = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": asked["model"]}
        deltas = [({"role": "assistant", "content": "Hello"}, None), ({"content": " you"}, None), ({}, asked["model"])]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for delta, reason in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            self.wfile.write(b"data: " + json.dumps({**common, "choices": [choice]}).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)
messages = [{"role": "user", "content": "Hi"}]
finals = {}
for reason in ("stop", "length"):
    with client.chat.completions.stream(model=reason, messages=messages) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        try:
            finals[reason] = repr(stream.get_final_completion().choices[0].message.content)
        except LengthFinishReasonError as error:
            finals[reason] = type(error).__name__
    print(f"finish_reason {reason!r:9} events {said!r}  final completion {finals[reason]}")
    assert said == "Hello you", "events come otherwise now"
chunks = client.chat.completions.create(model="length", messages=messages, stream=True)
said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
print(f"finish_reason 'length'  create(stream=True) {said!r}")
assert finals == {"stop": "'Hello you'", "length": "LengthFinishReasonError"} and said == "Hello you", "it changed"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
