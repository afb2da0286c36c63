"""Trees of automatic requests in recorded steps, where every place of a tree is computed."""

from typing import NamedTuple


class FewTrees(NamedTuple):
    """Which automatic requests verify trees in recorded steps, and how large ones."""

    most: int  # requests beside each other; of more the drafts are chains
    num_blocks: int = 1  # blocks that a tree has the tokens of

    def size(self, num_rows: int, block: int) -> int:
        """Tokens of a tree, anchor included, of each of ``num_rows`` requests that draft ``block``; 0: a chain."""
        return self.num_blocks * block if num_rows <= self.most and block > 1 else 0


NO_TREES, STEP_TREES = FewTrees(0), FewTrees(4)
ROUND_TREES = FewTrees(4, 2)  # 1.08 to 1.23 times chains on an H200: benchmarks/results/h200/beside-vllm
