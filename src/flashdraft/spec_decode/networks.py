"""From a loaded network to the drafter that drafts with it."""

from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.mtp import MTPModel
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.mtp import MTPDrafter


def drafter_of(network: DFlashModel | MTPModel, target: TargetModel) -> DFlashDrafter | MTPDrafter:
    """The drafter of ``network`` for ``target``."""
    return MTPDrafter(network, target) if isinstance(network, MTPModel) else DFlashDrafter(network, target)
