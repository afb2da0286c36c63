"""The ways of decoding that a benchmark compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashdraft.admission import AUTO, BlockSize
from flashdraft.bench.results import BASELINE
from flashdraft.errors import UsageError
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.ngram import NgramDrafter
from flashdraft.spec_decode.replay import ReplayDrafter

AR, NGRAM, DFLASH, TREE, REPLAY = "ar", "ngram", "dflash", "tree", "replay"
_LABELS = {AR: BASELINE, NGRAM: "n-gram", REPLAY: "perfect drafts", DFLASH: "DFlash", "mtp": "MTP"}


@dataclass(frozen=True)
class Method:
    """A way of decoding, under the name that the tables give it."""

    name: str
    block_size: BlockSize  # anchor included; 1: plain decoding
    drafter: Drafter | None
    draft_tree: int | None = None  # tokens of the tree in place of the block


def choose_methods(
    names: Sequence[str],
    block_sizes: Sequence[int],
    drafters: Mapping[str, Drafter],
    tree_sizes: Sequence[int] = (32,),
) -> list[Method]:
    """Plain decoding, and for each block size what ``names`` asks for: "ngram" or one of ``drafters``.

    "ngram:8": at that block size alone. "replay": plain decoding's answers as drafts.
    "auto": the drafter "dflash" with the controller's choice of every block. "tree": its trees of each of
    ``tree_sizes``, as deep as its largest block.
    Raises UsageError for an unknown name and for a block size that a drafter was not trained for.
    """
    methods = [Method(BASELINE, 1, None)]
    for asked in names:
        name, colon, own_size = asked.partition(":")
        if colon and (not own_size.isdecimal() or name in (AR, AUTO, TREE)):
            raise UsageError(
                f"{asked} names no block size; expected a drafter's name and a number, as in ngram:8"
            )
        if name == AR:
            continue
        if name == AUTO and DFLASH in drafters:
            methods.append(Method(AUTO, AUTO, drafters[DFLASH]))
            continue
        if name == TREE and DFLASH in drafters:
            dflash = drafters[DFLASH]
            methods += [Method(f"tree {size}", dflash.max_block_size, dflash, size) for size in tree_sizes]
            continue
        if name not in (NGRAM, REPLAY, *drafters):
            known = ", ".join((AR, NGRAM, REPLAY, AUTO, TREE, *drafters))
            raise UsageError(
                f"there is no method {name!r}; expected some of: {known}."
                f" Another one needs its drafter: --draft {name}=FOLDER"
            )
        label = _LABELS.get(name, name)
        for size in [int(own_size)] if colon else block_sizes:
            own = {NGRAM: NgramDrafter, REPLAY: ReplayDrafter}
            drafter = own[name](size) if name in own else drafters[name]
            if not 2 <= size <= drafter.max_block_size:
                raise UsageError(f"{label} got block size {size}; expected 2 to {drafter.max_block_size}")
            methods.append(Method(label, size, drafter))
    return methods
