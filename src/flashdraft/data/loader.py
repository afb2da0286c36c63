"""Documents packed into rows of one length, on the device that trains."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashdraft.data.on_policy import Document
from flashdraft.errors import DataError


@dataclass(frozen=True)
class PackedRows:
    """Whole documents one after the other in rows of ``seq_len`` tokens; the rest of a row is padding.

    Padding counts as a document of its own that holds no anchors. A document may be a conversation of several answers.
    """

    token_ids: Tensor  # [num_rows, seq_len]
    doc_start: Tensor  # [num_rows, seq_len], where the token's document starts in its row
    is_anchor: Tensor  # bool [num_rows, seq_len]: an answer token with another one after it

    def rows(self, index: Tensor | slice) -> "PackedRows":
        """Some of the rows, as int64 for indexing."""
        return PackedRows(self.token_ids[index].long(), self.doc_start[index].long(), self.is_anchor[index])

    def __len__(self) -> int:
        return self.token_ids.shape[0]


def check_token_ids(vocab_size: int, *packed: PackedRows) -> None:
    """Raise DataError for a token id that the target does not have."""
    for rows in packed:
        least, most = int(rows.token_ids.min()), int(rows.token_ids.max())
        if least < 0 or most >= vocab_size:
            raise DataError(
                f"token id {least if least < 0 else most} was found; expected 0 to {vocab_size - 1}, the target's: give"
                " its own answers"
            )


@dataclass(frozen=True)
class Unfit:
    """How many documents :func:`pack` leaves out, by why, and how many it cuts at the end of a row."""

    num_long_prompts: int
    num_short_answers: int
    num_cut: int


def fits(document: Document, seq_len: int) -> bool:
    """Whether a row of ``seq_len`` tokens holds the prompt and two tokens of the answer, and there are two."""
    return len(document.answer_token_ids) > 1 and len(document.prompt_token_ids) < seq_len - 1


def count_unfit(documents: Sequence[Document], seq_len: int) -> Unfit:
    """What :func:`pack` will not take whole of ``documents``."""
    fitting = [doc for doc in documents if fits(doc, seq_len)]
    num_short = sum(len(doc.answer_token_ids) < 2 for doc in documents)
    num_cut = sum(len(doc.prompt_token_ids) + len(doc.answer_token_ids) > seq_len for doc in fitting)
    return Unfit(len(documents) - len(fitting) - num_short, num_short, num_cut)


def pack(documents: Sequence[Document], seq_len: int, device: torch.device | str = "cpu") -> PackedRows:
    """Pack best-fit decreasing. A document longer than ``seq_len`` is cut there: its later anchors are not trained.

    Raises DataError when no document has an answer of two tokens (an anchor and something to predict).
    """
    documents = [doc for doc in documents if fits(doc, seq_len)]
    if not documents:
        raise DataError(
            f"no document has a prompt shorter than {seq_len - 1} tokens and an answer of 2 tokens or more"
        )
    lengths = [min(len(doc.prompt_token_ids) + len(doc.answer_token_ids), seq_len) for doc in documents]
    rows = _best_fit(lengths, seq_len)
    token_ids = np.zeros((len(rows), seq_len), dtype=np.int32)
    doc_start = np.zeros((len(rows), seq_len), dtype=np.int32)
    is_anchor = np.zeros((len(rows), seq_len), dtype=np.bool_)
    for row_idx, members in enumerate(rows):
        start = 0
        for i in members:
            document, end = documents[i], start + lengths[i]
            text = document.prompt_token_ids + document.answer_token_ids
            token_ids[row_idx, start:end] = text[: lengths[i]]
            doc_start[row_idx, start:end] = start
            is_anchor[row_idx, start + len(document.prompt_token_ids) : end - 1] = True
            start = end
        doc_start[row_idx, start:] = start
    tensors = (torch.from_numpy(a).to(device) for a in (token_ids, doc_start, is_anchor))
    return PackedRows(*tensors)


def _best_fit(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    rows: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(seq_len + 1)]  # rows with this many free slots
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[i]
        space = next((s for s in range(length, seq_len + 1) if by_space[s]), None)
        if space is None:
            rows.append([i])
            by_space[seq_len - length].append(len(rows) - 1)
        else:
            row = by_space[space].pop()
            rows[row].append(i)
            by_space[space - length].append(row)
    return rows
