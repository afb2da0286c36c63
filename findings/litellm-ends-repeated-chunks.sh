#!/usr/bin/env bash
# litellm 1.110.2 ends a stream with an error, InternalServerError "The model is repeating the same chunk", at the 100th
# chunk in a row that holds one text of more than two characters. The server did nothing wrong: a row of zeros, an
# indented block or a rule of a table is such an answer, at one token a chunk as well as at a round a chunk. The same
# answer without streaming is returned, and the openai client reads the stream. For us:
# litellm.REPEATED_STREAMING_CHUNK_LIMIT, set before the request, where answers may repeat; the error is not the
# server's.
#
# Seen (litellm 1.110.2, openai 3.57.0, Python 3.11):
#   stream of 150 ' 0,'  100 chunks, then MidStreamFallbackError: The model is repeating the same chunk
#   stream of 150 '0,'   150 chunks
#   the same whole       450 characters
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq litellm==1.110.2 openai==3.57.0
cat >"$folder/probe.py" <<'PROBE'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import litellm

COUNT = 150


class Handler(BaseHTTPRequestHandler):
    """Answers with COUNT times the question, streamed one by one where that is asked."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text, common = asked["messages"][0]["content"], {"id": "1", "created": 0, "model": "m"}
        if asked.get("stream"):
            kind, shape = "text/event-stream", {**common, "object": "chat.completion.chunk"}
            deltas = [({"content": text}, None)] * COUNT + [({}, "stop")]
            choices = [{"index": 0, "delta": delta, "finish_reason": reason} for delta, reason in deltas]
            body = b"".join(b"data: " + json.dumps({**shape, "choices": [one]}).encode() + b"\n\n" for one in choices)
            body += b"data: [DONE]\n\n"
        else:
            message = {"role": "assistant", "content": text * COUNT}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            kind = "application/json"
            body = json.dumps({**common, "object": "chat.completion", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}/v1"


def ask(text, **options):
    messages = [{"role": "user", "content": text}]
    options |= {"api_base": base, "api_key": "none", "max_retries": 0, "num_retries": 0}
    return litellm.completion(model="openai/m", messages=messages, **options)


def streamed(text):
    """How many chunks with text came, and the error that ended them."""
    count = 0
    try:
        for chunk in ask(text, stream=True):
            count += chunk.choices[0].delta.content == text
    except Exception as error:
        return count, f"{type(error).__name__}: {str(error)[str(error).index('The model is') :][:37]}"
    return count, ""


found = {text: streamed(text) for text in (" 0,", "0,")}
for text, (count, error) in found.items():
    said = f"stream of {COUNT} {text!r}"
    print(f"{said:20} {count} chunks{', then ' * bool(error)}{error}")
whole = ask(" 0,").choices[0].message.content
print(f"{'the same whole':20} {len(whole)} characters")
assert whole == " 0," * COUNT and found["0,"] == (COUNT, ""), "it behaves otherwise now"
count, error = found[" 0,"]
assert count == 100 and "repeating the same chunk" in error, "repeated chunks are read now"
PROBE
LITELLM_LOCAL_MODEL_COST_MAP=True "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
