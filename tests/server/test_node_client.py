"""The official openai client for Node, unchanged, where there is one: FLASHDRAFT_NODE_MODULES names its folder."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from server_case import MODEL, Running

MODULES = os.environ.get("FLASHDRAFT_NODE_MODULES")
SCRIPT = Path(__file__).with_name("openai_client.mjs")


@pytest.mark.skipif(
    not (MODULES and shutil.which("node")),
    reason="needs node, and FLASHDRAFT_NODE_MODULES: a folder in which `npm install openai` was run",
)
def test_the_npm_client(running: Running) -> None:
    done = subprocess.run(
        ["node", SCRIPT, str(MODULES), running.url], capture_output=True, text=True, check=True, timeout=60
    )
    told = json.loads(done.stdout)
    assert told["model"] == MODEL
    assert told["text"] == told["whole"]
    assert told["tokens"][0] == told["tokens"][1] > 0
    assert told["logprobs"] == 5
    assert told["response"]
    assert told["refused"] == 400
