"""From a file into a model on the meta device: every name and shape is checked before any tensor is read.

Knows no file format: a format gives a :class:`WeightSource`.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from flashdraft.errors import CheckpointError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tables that old checkpoints carry and models compute.
_COMPUTED = ("rotary_emb.inv_freq",)
_SHOWN = 6


class WeightSource(Protocol):
    """A checkpoint's tensors by the model's parameter names. ``label`` is what an error calls it."""

    label: str

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, of any type; it may share memory with the file."""
        ...


def check_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch type that is meant. Raises UsageError for one that models do not run in."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise UsageError(f"dtype is {dtype}; expected {', '.join(DTYPES)}")
    assert found is not None
    return found


def check_device(device: str | torch.device) -> torch.device:
    """The torch device that is meant. Raises UsageError when it is not there."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith(
            ("Expected one of", "Invalid device string")
        ):  # and a list of all that torch knows
            reason = "there is none of that name"
        raise UsageError(
            f"device {str(device)!r} cannot be used ({reason}); expected cpu, cuda or cuda:N"
        ) from error
    return found


def list_some(items: Iterable[str]) -> str:
    """The first few of ``items``, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


class Without:
    """``source`` less some of its tensors."""

    def __init__(self, source: WeightSource, names: set[str]) -> None:
        self.label, self.read = source.label, source.read
        self.shapes = {name: shape for name, shape in source.shapes.items() if name not in names}


def fill(model: nn.Module, source: WeightSource, dtype: torch.dtype, device: torch.device) -> None:
    """Give a meta-device ``model`` the tensors of ``source``, floats as ``dtype``, on ``device``, in its own memory.

    Raises CheckpointError that names every missing and unexpected tensor and every shape that disagrees
    with the config that the model was built from.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    skipped = getattr(model, "skipped_tensors", ())
    surplus = {name for name in source.shapes.keys() - wanted.keys() if not name.startswith(skipped)}
    embedding = next((name for name in wanted if name.endswith("embed_tokens.weight")), None)
    tied_head = {"lm_head.weight"} & surplus if embedding else set()
    _check_names_and_shapes(wanted, source, surplus - tied_head)
    state = {}
    for name in (name for name in source.shapes if name in wanted):
        tensor = source.read(name)
        state[name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        check_finite(state[name], name, source.label)
    for name in tied_head:
        head = source.read(name).to(device, dtype)
        assert embedding is not None
        if not torch.equal(head, state[embedding]):
            raise CheckpointError(
                f"{source.label}: the config ties head and embedding, but {name} differs from"
                f" {embedding}; set tie_word_embeddings to false"
            )
    model.load_state_dict(state, assign=True)


def check_finite(tensor: Tensor, name: str, label: str) -> None:
    """Refuse weights that make every answer the same token."""
    if not tensor.is_floating_point() or tensor.sum(dtype=torch.float32).isfinite():  # one pass tells most
        return
    if wrong := int((~tensor.isfinite()).sum()):
        raise CheckpointError(
            f"{label}: {wrong} of {tensor.numel()} values of {name} are no finite numbers in {tensor.dtype}: fetch it"
            " again, or load it in a type of larger range"
        )


def _check_names_and_shapes(
    wanted: Mapping[str, tuple[int, ...]], source: WeightSource, surplus: set[str]
) -> None:
    problems = []
    if missing := [name for name in wanted if name not in source.shapes]:
        problems.append(f"lacks {list_some(missing)}")
    if unexpected := sorted(name for name in surplus if not name.endswith(_COMPUTED)):
        problems.append(f"has unexpected {list_some(unexpected)}")
    wrong = [
        f"{name} {list(source.shapes[name])} (config: {list(shape)})"
        for name, shape in wanted.items()
        if source.shapes.get(name, shape) != shape
    ]
    if wrong:
        problems.append(f"has shapes that the config does not give: {list_some(wrong)}")
    if problems:
        mend = "Weights and config must be from one checkpoint: fetch both again"
        if len(problems) == 1 and unexpected:
            mend = "All that its config asks for is there, so these belong to another kind of model: not supported"
        raise CheckpointError(f"{source.label} does not fit its config: it {'; it '.join(problems)}. {mend}")
