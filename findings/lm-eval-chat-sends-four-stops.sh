#!/usr/bin/env bash
# lm-eval 0.4.13's local-chat-completions sends the first four stop texts of a task and drops the others, whatever server
# it talks to, and does not cut its answers by them afterwards. OpenAI's API allows four; local servers allow more, and
# local-completions of the same package sends all. Tasks of its own have five: humaneval ends an answer at "\nprint",
# gsm8k_cot_llama at a last one too. Nothing is logged. An engineer would guess that one task stops alike in both, or
# that a limit is told. For us: chat scores of such tasks are those of longer answers; compare them with chat scores
# alone, never with local-completions.
#
# Seen (lm_eval 0.4.13, Python 3.11); the task's until has 5 texts, the model says "return 1\nprint(1)":
#   local-completions       5 stop texts sent  'return 1'
#   local-chat-completions  4 stop texts sent  'return 1\nprint(1)'
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  lm_eval==0.4.13 aiohttp==3.14.5 tenacity==9.2.1 requests==2.34.2 tqdm==4.70.1
cat >"$folder/probe.py" <<'PROBE'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lm_eval
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

SAID = "return 1\nprint(1)"
sent = []


class Handler(BaseHTTPRequestHandler):
    """Says the same always, up to the first stop text, as OpenAI's API has it."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        sent.append(asked["stop"])
        text = SAID[: min((SAID.index(stop) for stop in asked["stop"] if stop in SAID), default=len(SAID))]
        choice = {"index": 0, "finish_reason": "stop", "text": text, "message": {"role": "assistant", "content": text}}
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}/v1"
task = (Path(lm_eval.__file__).parent / "tasks/humaneval/humaneval.yaml").read_text()
yaml.SafeLoader.add_constructor("!function", lambda *args: None)
until = yaml.safe_load(task)["generation_kwargs"]["until"]
assert len(until) == 5 and until[-1] == "\nprint", f"the task stops at {until} now"
chat = JsonChatStr(json.dumps([{"role": "user", "content": "Go on."}]))
found = []
for name, cls, path, prompt in (
    ("local-completions", LocalCompletionsAPI, "completions", "Go on."),
    ("local-chat-completions", LocalChatCompletion, "chat/completions", chat),
):
    model = cls(model="m", base_url=f"{base}/{path}", tokenizer_backend=None, tokenized_requests=False)
    asked = Instance("generate_until", {}, (prompt, {"until": list(until), "max_gen_toks": 16}), 0)
    (answer,) = model.generate_until([asked], disable_tqdm=True)
    print(f"{name:23} {len(sent[-1])} stop texts sent  {answer!r}")
    found.append((len(sent[-1]), answer))
assert found == [(5, "return 1"), (4, SAID)], "all stop texts are sent now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
