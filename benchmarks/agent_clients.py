"""Agent programs and clients written elsewhere, run unchanged against a server process: does each get its answer?

    python -m venv /tmp/agents
    /tmp/agents/bin/pip install openai-agents langchain-openai langchain-anthropic litellm anthropic
    (cd /tmp/npm && npm install @anthropic-ai/claude-code @openai/codex opencode-ai)
    python benchmarks/agent_clients.py --python /tmp/agents/bin/python --npm /tmp/npm/node_modules/.bin \\
        --aider /tmp/aider/bin/aider --out benchmarks/results/agent_clients.json

The libraries ask the embedded pair, under a template of Qwen3.5's shape with tools and thoughts. The agents' prompts
are longer than its context, and it could not use their tools: they ask a server whose model's answers are a script, a
call of a tool that they brought and, once its result is in the conversation, the last word. The Agents SDK asks both.
Commands that are not given are left out.
"""

import argparse
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from served_process import start_server

from flashdraft.checkpoint.load import load_tokenizer
from flashdraft.engine.types import StepOutput
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.spec_decode.ngram import NgramDrafter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from scripted_server import ScriptedEngine, with_template
from server_case import serving
from tiny_pair import TOOLS_TEMPLATE, save_tiny_pair

NUM_TOKENS = 64
MAX_LEN = 65_536
CASES = Path(__file__).with_name("client_cases.py")
# The shells of Claude Code, Codex CLI and opencode, with an argument.
CALLS = {
    "Bash": ("command", "echo heard"),
    "exec_command": ("cmd", "echo heard"),
    "bash": ("command", "echo heard"),
    "weather": ("city", "Rome"),  # of client_cases.py
}
PAGE = """<body>waiting<script>
const body = {model: "embedded", max_tokens: 8, messages: [{role: "user", content: "hi"}]};
fetch("SERVER/v1/chat/completions", {method: "POST", body: JSON.stringify(body),
  headers: {"Content-Type": "application/json", "Authorization": "Bearer x"}})
  .then(r => r.json()).then(a => { document.body.textContent = "answered " + a.usage.completion_tokens; })
  .catch(e => { document.body.textContent = "failed " + e; });
</script></body>"""
CODEX = """model = "embedded"
model_provider = "local"
model_instructions_file = "FOLDER/instructions.md"
[model_providers.local]
name = "local"
base_url = "SERVER/v1"
wire_api = "responses"
env_key = "KEY"
"""
OPENCODE: dict[str, Any] = {
    "provider": {
        "local": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": "SERVER/v1", "apiKey": "x"},
            "models": {"embedded": {"limit": {"context": 65536, "output": 4096}}},
        }
    },
    "small_model": "local/embedded",
}
CLAUDE = {"ANTHROPIC_API_KEY": "x", "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "4096", "DISABLE_AUTOUPDATER": "1"}
CLAUDE |= {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}


class Script(ScriptedEngine):
    """Calls the agent's own shell, and says that it is done when there is a result."""

    async def generate(
        self, token_ids: list[int], *more: Any, **settings: Any
    ) -> AsyncGenerator[StepOutput, None]:
        """See :class:`ScriptedEngine`."""
        asked = self.tokenizer.decode(token_ids)
        found = [name for name in CALLS if f'"name": "{name}"' in asked]
        said = "I have nothing to do."
        if "<|im_start|>tool\n" in asked:
            said = '{"name": "Rome"}' if "weather" in found else "The tool has answered: done."
        elif found:
            key, value = CALLS[found[0]]
            told = f"<function={found[0]}>\n<parameter={key}>\n{value}\n</parameter>\n</function>"
            said = f"<tool_call>\n{told}\n</tool_call>"
        thought = "I think.\n</think>\n\n" if asked.rstrip().endswith("<think>") else ""
        self.token_ids = self.tokenizer.encode(thought + said)
        async for step in super().generate(token_ids, *more, **settings):
            yield step


def run(command: list[str], folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """Whether a program ended well, and the end of what it said."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb"} | env
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=clean,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"is_answered": False, "said": "no end in 300 seconds"}
    said = (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip()
    return {"is_answered": done.returncode == 0, "said": said[-300:]}


def version(command: list[str]) -> str:
    """What a program says of its version."""
    done = subprocess.run([*command], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "unknown"


def python_rows(python: str, url: str, folder: Path, scripted: str = "") -> Iterator[dict[str, Any]]:
    """The clients that are libraries; ``scripted``: this one alone, of a server whose model's answers are a script."""
    listed = subprocess.run([python, str(CASES)], capture_output=True, text=True, check=True).stdout
    env = {"OPENAI_API_KEY": "x", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    for number, (client, told, what) in enumerate(json.loads(listed)):
        if scripted not in ("", client):
            continue
        row = {"client": client, "version": told, "what": f"{what}; scripted" if scripted else what}
        yield row | run([python, str(CASES), str(number), url], folder, env)


def agent_rows(commands: Path, url: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The agents that come from npm."""
    (folder / "instructions.md").write_text("You are a terse agent.")
    (folder / ".codex").mkdir()
    config = CODEX.replace("SERVER", url).replace("FOLDER", str(folder))
    (folder / ".codex" / "config.toml").write_text(config)
    (folder / "opencode.json").write_text(json.dumps(OPENCODE).replace("SERVER", url))
    asked = {
        "claude": [
            "-p",
            "Run echo heard",
            "--model",
            "embedded",
            "--system-prompt",
            "Be terse.",
            "--tools",
            "Bash,Read",
        ],
        "codex": ["exec", "--skip-git-repo-check", "Run echo heard"],
        "opencode": ["run", "-m", "local/embedded", "Run echo heard"],
    }
    for name, arguments in asked.items():
        env = {"codex": {"KEY": "x"}, "claude": CLAUDE | {"ANTHROPIC_BASE_URL": url}}.get(name, {})
        row = {
            "client": name,
            "version": version([str(commands / name), "--version"]),
            "what": "a task: a call of its shell, the result, the last word",
        }
        yield row | run([str(commands / name), *arguments], folder, env)


def aider_row(command: str, url: str, folder: Path) -> dict[str, Any]:
    """One turn of aider."""
    asked = [command, "--model", "openai/embedded", "--no-git", "--yes-always", "--no-show-model-warnings"]
    asked += ["--no-check-update", "--analytics-disable", "--message", "Say hi"]
    row = {"client": "aider", "version": version([command, "--version"]), "what": "one turn"}
    return row | run(asked, folder, {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": "x"})


@contextmanager
def page_of_another_origin(folder: Path) -> Iterator[str]:
    """A web server for one page; its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def page_row(browser: str, page: str, folder: Path) -> dict[str, Any]:
    """A page of another origin asks."""
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--virtual-time-budget=60000",
    ]
    row = {
        "client": "Chromium",
        "version": version([browser, "--version"]),
        "what": "a page of another origin, with a key",
    }
    told = run([*command, f"{page}/page.html"], folder, {})
    return row | told | {"is_answered": "<body>answered" in told["said"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="of an environment with the libraries")
    parser.add_argument("--npm", type=Path, help="folder with the commands claude, codex and opencode")
    parser.add_argument("--aider", help="the command")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="a Chromium")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        page_of_another_origin(Path(name)) as page,
    ):
        folder = Path(name)
        (folder / "template.jinja").write_text(TOOLS_TEMPLATE)
        flags = ["--served-model-name", "embedded", "--chat-template", str(folder / "template.jinja")]
        flags += ["--max-answer-tokens", str(2 * NUM_TOKENS), "--allowed-origins", page]
        with start_server(flags) as server:
            (folder / "page.html").write_text(PAGE.replace("SERVER", server.url))
            for row in python_rows(args.python, server.url, folder) if args.python else ():
                add(row)
            if args.browser:
                add(page_row(args.browser, page, folder))
        target, _ = save_tiny_pair(folder / "pair", tokenizer=load_tokenizer(), max_len=MAX_LEN)
        llm = with_template(LLM(target, NgramDrafter(), dtype="float32"), TOOLS_TEMPLATE)
        with serving(llm, Script(llm, "", 16), model_names=("embedded",)) as running:
            for row in python_rows(args.python, running.url, folder, "openai-agents") if args.python else ():
                add(row)
            for row in agent_rows(args.npm.resolve(), running.url, folder) if args.npm else ():
                add(row)
            if args.aider:
                add(aider_row(args.aider, running.url, folder))
    if args.out:
        args.out.write_text(json.dumps({"rows": rows, "provenance": collect_provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
