"""Trees of automatic requests in recorded steps, where every place of a tree is computed."""

from typing import NamedTuple


class FewTrees(NamedTuple):
    """Which automatic requests verify trees in recorded steps, and how large ones."""

    most: int  # requests beside each other
    num_blocks: int = 1  # blocks that a tree has the tokens of
    most_small: int = 0  # requests whose trees have the tokens of one block; of more the drafts are chains

    def size(self, num_rows: int, block: int) -> int:
        """Tokens of a tree, anchor included, of each of ``num_rows`` requests that draft ``block``; 0: a chain."""
        if block == 1 or num_rows > max(self.most, self.most_small):
            return 0
        return self.num_blocks * block if num_rows <= self.most else block


NO_TREES, STEP_TREES = FewTrees(0), FewTrees(4)
# On an H200 1.08 to 1.23 times chains at one request and at four (benchmarks/results/h200/beside-vllm), 1.13 at eight.
ROUND_TREES = FewTrees(4, 2, 8)
