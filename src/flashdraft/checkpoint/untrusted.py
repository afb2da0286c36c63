"""What must hold of a stranger's file before it is read, and before anything of the sizes it names is built.

Knows no format. A config of ten million layers, a pipe in a file's place or an index that names files elsewhere must
be one error, not a process that never ends.
"""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from flashdraft.errors import CheckpointError, FlashdraftError

_MAX_JSON_BYTES = 1 << 28  # published tokenizers have some 30 MB
_SHOWN_CHARACTERS = 300
# The largest value of an integer that something is built or allocated by, by a field's name or how it ends.
_LARGEST = {
    "_layers": 1024,
    "_layer": 1024,
    "layer_num": 1024,
    "block_size": 4096,
    "conv_kernel_size": 4096,
    "conv_group_size": 1 << 20,
    "selector_rank": 1 << 16,
    "selector_top_k": 1 << 16,
    "_heads": 1 << 16,
    "head_dim": 1 << 16,
    "key_dim": 1 << 16,
    "value_dim": 1 << 16,
    "kernel_dim": 1 << 10,
    "num_experts": 1 << 16,
    "num_local_experts": 1 << 16,
    "num_experts_per_tok": 1 << 16,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 24,
    "full_attention_interval": 1024,
    "decoder_sparse_step": 1024,
    "sliding_window_pattern": 1024,
    "max_position_embeddings": 1 << 31,
    "original_max_position_embeddings": 1 << 31,
}
_MAY_BE_ZERO = (
    "conv_kernel_size",
    "conv_group_size",
    "selector_rank",
    "selector_top_k",
    "shared_expert_intermediate_size",
    "num_experts",
    "decoder_sparse_step",
    "num_nextn_predict_layers",
    "num_kv_shared_layers",
    "hidden_size_per_layer_input",
)
_MAX_DEPTH = 32


@contextmanager
def damage_is_told(label: str) -> Iterator[None]:
    """What Python says of values of a wrong type or shape, as a CheckpointError that names the file."""
    try:
        yield
    except FlashdraftError:
        raise
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,  # RecursionError among them
        AssertionError,
        OSError,
        StrictDataclassError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN_CHARACTERS]
        raise CheckpointError(
            f"{label} is damaged or contradicts itself ({reason}); fetch it again"
        ) from error


def check_regular(file: Path) -> None:
    """Raise CheckpointError for what is there and no regular file: a pipe never ends, a device has no end."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise CheckpointError(
            f"{file.parent} is a file; expected a Hugging Face checkpoint folder"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); fetch it again") from error
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise CheckpointError(f"{file} is a {kind}; expected a file: fetch it again")


def check_folder(folder: Path) -> None:
    """Raise CheckpointError for a folder in which something that libraries read by name is no regular file."""
    if folder.is_dir():
        for file in folder.iterdir():
            if file.suffix in (".json", ".jinja", ".txt", ".model", ".safetensors", ".gguf"):
                check_regular(file)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``. Raises CheckpointError when it is missing, too large, too deep or no object."""
    check_regular(file)
    try:
        if (size := file.stat().st_size) > _MAX_JSON_BYTES:
            raise CheckpointError(
                f"{file} has {size} bytes; expected at most {_MAX_JSON_BYTES}: fetch it again"
            )
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; expected a Hugging Face checkpoint folder") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}; expected a JSON object")
    return content


def check_sizes(config: dict[str, Any], label: str, depth: int = 0) -> None:
    """Raise CheckpointError for a size that no model has, wherever it stands in ``config``."""
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"{label} is nested more than {_MAX_DEPTH} deep; fetch it again")
    for name, value in config.items():
        if isinstance(value, dict):
            check_sizes(value, label, depth + 1)
            continue
        largest = next((most for ending, most in _LARGEST.items() if name.endswith(ending)), None)
        if largest is None or value is None or isinstance(value, list):
            continue
        smallest = 0 if name in _MAY_BE_ZERO else 1
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
            raise CheckpointError(
                f"{label}: {name} is {str(value)[:_SHOWN_CHARACTERS]!r}; expected a whole number from {smallest} to"
                f" {largest}"
            )


def check_plain_name(name: Any, label: str) -> str:
    """A file's name in its own folder. Raises CheckpointError for a path and for what is no name."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CheckpointError(
            f"{label} names the file {str(name)[:_SHOWN_CHARACTERS]!r}; expected one of its own folder: fetch it again"
        )
    return name
