"""A drafter in twenty lines: after a token, what followed it the last time.

python examples/own_drafter.py [MODEL]
"""

import sys

from flashdraft import LLM, SamplingParams
from flashdraft.spec_decode.drafter import DraftShape
from flashdraft.spec_decode.per_request import PerRequestDrafter
from flashdraft.spec_decode.tree import DraftTree


class LastTime(PerRequestDrafter):
    """Drafts by a table of which token followed which."""

    max_block_size = 8  # the anchor and seven drafted tokens

    def begin(self, max_len: int) -> "Table":  # noqa: ARG002
        return Table()


class Table:
    """What one request has shown so far."""

    def __init__(self) -> None:
        self.next: dict[int, int] = {}
        self.last: int | None = None

    def observe(self, token_ids: list[int], features: object) -> None:  # noqa: ARG002
        for token in token_ids:
            if self.last is not None:
                self.next[self.last] = token
            self.last = token

    def propose(self, anchor: int, shape: DraftShape) -> DraftTree:
        if self.last is not None:
            self.next[self.last] = anchor
        draft: list[int] = []
        while (
            len(draft) < shape.depth and (token := self.next.get(draft[-1] if draft else anchor)) is not None
        ):
            draft.append(token)
        return DraftTree.chain(draft)


if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else "embedded"
    chat = [{"role": "user", "content": "Count from 1 to 30, with commas."}]
    params = SamplingParams(temperature=0, max_tokens=64)
    [plain] = LLM(model, None).chat(chat, params)
    [drafted] = LLM(model, LastTime(), block_size=8).chat(chat, params)
    print(drafted.outputs[0].text)
    print(f"acceptance length {drafted.metrics.acceptance_length:.2f}")
    print(f"the same tokens: {drafted.outputs[0].token_ids == plain.outputs[0].token_ids}")
