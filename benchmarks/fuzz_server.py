"""schemathesis over the served OpenAPI document: a real server process with a tiny random target.

    python benchmarks/fuzz_server.py --out benchmarks/results/fuzz_server.json

schemathesis lives in an environment of its own (--schemathesis names its command); it generates requests from
/openapi.json and holds the answers to it: no server errors, the documented content types, the documented shapes.
When it is over the server must be healthy and idle. Exits with schemathesis' status.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from served_process import ServerProcess, start_server
from transformers import AutoTokenizer

from flashdraft.provenance import collect_provenance

REPO = Path(__file__).resolve().parent.parent
CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schemathesis", default="schemathesis", help="the command")
    parser.add_argument("--cases", type=int, default=60, help="most cases of an operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = [str(save_target(Path(folder))), "--dtype", "float32", "--served-model-name", "tiny"]
        with start_server([*flags, "--max-answer-tokens", "6", "--max-n", "4"]) as server:
            done = fuzz(args.schemathesis, server.url, args.cases, args.seed, folder)
            answers = finished_answers(server)
    version = subprocess.run([args.schemathesis, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"([\d,]+) generated, (.*)", done.stdout)
    figures = {
        "cases": int(found[1].replace(",", "")) if found else 0,
        "outcome": found[2] if found else "no account",
        "status": done.returncode,
        "checks": CHECKS.split(","),
        "finished_answers": answers,
        "seed": args.seed,
        "schemathesis": version.stdout.strip(),
    }
    print(json.dumps(figures))
    if args.out:
        args.out.write_text(json.dumps(figures | {"provenance": collect_provenance()}, indent=1) + "\n")
    return done.returncode


def fuzz(
    schemathesis: str, url: str, cases: int, seed: int, folder: str
) -> "subprocess.CompletedProcess[str]":
    """Run it, and show what it says."""
    command = [schemathesis, "run", f"{url}/openapi.json", "--checks", CHECKS, "--continue-on-failure"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(cases), "--seed", str(seed)]
    command += ["--request-timeout", "30", "--generation-database", "none", "--warnings", "off"]
    done = subprocess.run(command, cwd=folder, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    return done


def save_target(folder: Path) -> Path:
    """The tests' tiny target, with a template that thinks and knows tools."""
    sys.path.insert(0, str(REPO / "tests"))
    from tiny_pair import TOOLS_TEMPLATE, save_tiny_pair

    target, _ = save_tiny_pair(folder / "pair")
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    tokenizer.chat_template = TOOLS_TEMPLATE
    tokenizer.save_pretrained(target)
    return Path(target)


def finished_answers(server: ServerProcess) -> dict[str, int]:
    """How many answers ended for which reason. The server answers, and nothing is left in it."""
    assert urlopen(f"{server.url}/health").status == 200
    assert not server.busy(), server.busy()
    metrics = urlopen(f"{server.url}/metrics").read().decode()
    ended = re.findall(
        r"^flashdraft:request_success_total\{finished_reason=\"(\w+)\".*\} ([\d.]+)", metrics, re.M
    )
    return {reason: int(float(count)) for reason, count in ended}


if __name__ == "__main__":
    sys.exit(main())
