#!/usr/bin/env bash
# The anthropic client 2.14.0 has no temperature, top_p or top_k: messages.create(temperature=0) raises TypeError before
# anything is sent, while the Messages API of servers, and clients of earlier years, take them. extra_body sends them.
# For us: greedy answers, the only ones to compare token by token, need extra_body={"temperature": 0} from this client.
#
# Seen (anthropic 2.14.0, Python 3.11):
#   temperature=0                 TypeError, requests sent: 0
#   top_p=0.9                     TypeError, requests sent: 0
#   top_k=20                      TypeError, requests sent: 0
#   extra_body={'temperature': 0} answered, the server saw temperature 0
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

seen = []


class Handler(BaseHTTPRequestHandler):
    """Answers each request alike and keeps what it asked."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        message = {"id": "1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
        message |= {"content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"}
        body = json.dumps(message | {"usage": {"input_tokens": 1, "output_tokens": 1}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = Anthropic(base_url=f"http://127.0.0.1:{server.server_port}", api_key="none", max_retries=0)
common = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
for name, value in (("temperature", 0), ("top_p", 0.9), ("top_k", 20)):
    try:
        client.messages.create(**common, **{name: value})
    except TypeError as error:
        assert name in str(error), error
        print(f"{f'{name}={value}':29} TypeError, requests sent: {len(seen)}")
    else:
        raise SystemExit(f"{name} is taken now")
client.messages.create(**common, extra_body={"temperature": 0})
print(f"extra_body={{'temperature': 0}} answered, the server saw temperature {seen[0]['temperature']}")
assert len(seen) == 1 and seen[0]["temperature"] == 0, "it behaves otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
