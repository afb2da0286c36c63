#!/usr/bin/env bash
# dflash 0.1.0's benchmark, by which z-lab's cards are measured, tells as "Accept length" the mean of the requests' own
# lengths, each a mean of its rounds. A server's speed hangs on tokens over rounds, where a long answer counts for its
# length; drafts of long answers are the worse ones, so the figure is too good, and by another factor for each task. An
# engineer would guess that the tokens and the "Spec verify ct" that stand beside it give it. Here they give 4.2. The
# paper's own decoding loop (--backend transformers) takes means of means too. Nothing says so. For us: acceptance is
# tokens over rounds everywhere, and beside a card's figure `flashdraft bench` shows the mean that the card has.
#
# Seen (dflash 0.1.0, Python 3.11); a server that answers half of the requests with 100 tokens of 10 rounds, half with
# 1,000 of 250, and tells spec_accept_length and spec_verify_ct as SGLang does:
#   Output tokens 4400, spec verify ct 1040: 4.23 tokens a round; accept length told 7.000
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --no-deps \
  dflash==0.1.0 tqdm==4.70.0 requests==2.34.2 urllib3==2.5.0 idna==3.10 certifi==2025.8.3 charset-normalizer==3.4.3
cat >"$folder/probe.py" <<'PROBE'
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PROMPTS, ANSWERS = 8, {"easy": (100, 10), "hard": (1000, 250)}  # tokens and rounds


class Server(BaseHTTPRequestHandler):
    """An OpenAI server that tells of drafts what SGLang tells of them."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens, rounds = ANSWERS[asked["messages"][0]["content"]]
        told = {"spec_verify_ct": rounds, "spec_accept_length": tokens / rounds}
        answer = json.dumps({"choices": [], "usage": {"completion_tokens": tokens}, "meta_info": told}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
# The questions: a folder `datasets` before the package of that name, so that nothing is asked of a hub.
stand_in = Path(sys.argv[1]) / "questions" / "datasets"
stand_in.mkdir(parents=True)
(stand_in / "__init__.py").write_text(
    f"def load_dataset(*_, **__): return [{{'prompt': word}} for word in {list(ANSWERS)!r}]\n"
)
run = (
    "import sys; from argparse import Namespace; from dflash.benchmark import run; "
    "run(Namespace(backend='sglang', dataset='mbpp', model='m', base_url=sys.argv[1], num_prompts=int(sys.argv[2]),"
    " concurrency=1, max_new_tokens=4096, temperature=0.0, top_p=1.0, top_k=0, timeout_s=60, reasoning=None))"
)
url = f"http://127.0.0.1:{server.server_port}"
done = subprocess.run(
    [sys.executable, "-c", run, url, str(PROMPTS)], env={"PYTHONPATH": str(stand_in.parent), "NO_PROXY": "*"},
    capture_output=True, text=True, check=True,
)
tokens, told, rounds = (
    float(re.search(rf"{name}:\s+([\d.]+)", done.stdout)[1])
    for name in ("Output tokens", "Accept length", "Spec verify ct")
)
print(
    f"Output tokens {tokens:.0f}, spec verify ct {rounds:.0f}: {tokens / rounds:.2f} tokens a round; accept length told"
    f" {told:.3f}"
)
assert (tokens, rounds) == (4400, 1040), "the benchmark asks otherwise"
assert told == 7.0, "the accept length is tokens over rounds now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" "$folder"
