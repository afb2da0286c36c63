"""From a loaded network to the drafter that drafts with it."""

from flashdraft.errors import UsageError
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.drafter_network import DrafterNetwork, part_of
from flashdraft.native.accelerate import accelerate_drafter
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter


def drafter_of(
    network: DrafterNetwork,
    target: TargetModel,
    quantization: str | None = None,
    window_size: int | None = None,
    among_all: bool = False,
) -> Drafter:
    """The drafter of ``network``, which is frozen from now on, for ``target``.

    ``quantization`` as in native/accelerate.py: of a drafter it can cost acceptance and nothing else.
    ``window_size``: tokens of the context that it sees; None: what it was trained to see. Raises UsageError for a
    network that has none to set. ``among_all``: it leaves a draft vocabulary whose rows it borrows.
    """
    set_window(network, window_size)
    if not isinstance(network, DFlashModel):
        return trained_drafter(network, target)
    if among_all:
        network.config = network.config.among_all()
    if network.candidate_selector:
        network.candidate_selector.freeze(target.head_weight())
    native = accelerate_drafter(network, network.head_rows(target.head_weight()), quantization)
    return DFlashDrafter(network, target, native)


def set_window(network: DrafterNetwork, window_size: int | None) -> None:
    """Have ``network`` see ``window_size`` tokens, if any. Raises UsageError for one that has no window to set."""
    if window_size is None:
        return
    if not isinstance(network, DFlashModel):
        raise UsageError(
            f"draft_window_size is for a DFlash drafter, and this is one of method {network.method}: leave it out"
        )
    network.config = network.config.with_window(window_size)


def trained_drafter(network: DrafterNetwork, target: TargetModel) -> Drafter:
    """The drafter of a network that goes on training: as it is, and not frozen."""
    if isinstance(network, DFlashModel):
        return DFlashDrafter(network, target)
    drafter: Drafter = part_of(network.method, "spec_decode").open_drafter(network, target)
    return drafter
