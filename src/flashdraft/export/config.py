"""How another engine shall serve a pair: what the user wants."""

from dataclasses import dataclass, field
from typing import Any

from flashdraft.errors import UsageError

DEVICES = ("cuda", "cpu")


def _described(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class LaunchConfig:
    """How the other engine shall run. Raises UsageError for values that no engine takes."""

    device: str = _described("cuda", "cuda or cpu.")
    dtype: str = _described("bfloat16", "Type of weights and activations.")
    block_size: int | None = _described(None, "Tokens of a block, anchor included.  [default: as trained]")
    tp: int = _described(1, "Devices that share each layer (tensor parallel).")
    replicas: int = _described(1, "Copies of the pair, each on --tp x --pp devices, behind one address.")
    pp: int = _described(1, "Groups of devices that share the layers out (pipeline parallel).")
    nodes: int = _described(1, "Machines.")
    node_rank: int = _described(0, "Which of them this one is; 0 answers.")
    master: str = _described("", "HOST:PORT of machine 0, for more than one.")
    memory: float | None = _described(None, "Share of a GPU's memory; on cpu GiB for keys and values.")
    max_model_len: int | None = _described(None, "Longest text, prompt and answer.")
    max_running: int | None = _described(None, "Requests decoded at one time.")
    window: int | None = _described(None, "Context tokens that the drafter keeps (SGLang).")
    parsers: bool = _described(
        False, "Take thoughts and tool calls apart, as the target's family writes them."
    )
    host: str = _described("127.0.0.1", "Address to listen on.")
    port: int = _described(8000, "Port.")

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UsageError(f"device is {self.device!r}; expected {' or '.join(DEVICES)}")
        if min(self.tp, self.pp, self.nodes, self.replicas) < 1 or not 0 <= self.node_rank < self.nodes:
            raise UsageError(
                f"tp {self.tp}, pp {self.pp}, replicas {self.replicas}, nodes {self.nodes}, node_rank {self.node_rank};"
                " expected 1 or more, and a node_rank below nodes"
            )
        if self.nodes > 1 and ":" not in self.master:
            raise UsageError(
                f"{self.nodes} machines and master {self.master!r}; expected HOST:PORT of machine 0"
            )
        if self.nodes > 1 and self.tp * self.pp * self.replicas % self.nodes:
            raise UsageError(
                f"{self.tp * self.pp * self.replicas} devices do not spread evenly over {self.nodes} machines"
            )
        if self.memory is not None and not (self.memory > 0 and (self.memory < 1 or self.device == "cpu")):
            raise UsageError(f"memory is {self.memory}; expected a share between 0 and 1, or GiB on cpu")
