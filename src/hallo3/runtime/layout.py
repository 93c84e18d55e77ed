"""How processes share out the guidance branches of a clip, and the sequence of a branch."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class Layout:
    """How processes share the guidance branches of a clip.

    branches: groups of processes, each with its own branches. parts: of the sequence, one for each process of a group.
    """

    branches: int
    parts: int

    def rounds(self, branches: int) -> int:
        """Branches that each group evaluates, one after the other."""
        return -(-branches // self.branches)

    def share(self, heads: int) -> float:
        """Of the work of a branch, what the busiest process has: heads are dealt out whole."""
        return -(-heads // self.parts) / heads


def choose_layout(processes: int, branches: int, heads: int, most_parts: int) -> Layout:
    """The layout that takes the least time; of equals the one with less to exchange.

    Args:
        processes: How many there are; all are used.
        branches: Guidance branches to evaluate in a step.
        heads: Of the attention.
        most_parts: That a sequence can be cut into: the least number of tokens of a kind; 1 where it can't be.

    Raises:
        UserError: when so many can't share this work.
    """
    found = [
        Layout(groups, processes // groups)
        for groups in range(1, min(branches, processes) + 1)
        if processes % groups == 0 and _splits(heads, processes // groups, most_parts)
    ]
    if not found:
        raise UserError(
            f"{processes} processes: {branches} guidance branches of {heads} attention heads can't be shared out "
            f"over so many; start {_in_words(workable(branches, heads, most_parts))}"
        )
    return min(found, key=lambda layout: (layout.rounds(branches) * layout.share(heads), -layout.branches))


def workable(branches: int, heads: int, most_parts: int) -> list[int]:
    """Numbers of processes that can share so many branches and heads."""
    parts = [count for count in range(1, heads + 1) if _splits(heads, count, most_parts)]
    return sorted({groups * count for groups in range(1, branches + 1) for count in parts})


def divisible(config: Mapping[str, Any]) -> tuple[int, int]:
    """Attention heads of a denoiser of this configuration, and the parts that its sequence can be cut into."""
    joins = config.get("speech_conditioning") == "joint"  # speech tokens would have to be cut as well
    return config.get("num_attention_heads", 48), 1 if joins else sys.maxsize


def _splits(heads: int, parts: int, most_parts: int) -> bool:
    """Whether the uneven form can deal out the heads: it fills up the last process's, which must keep one."""
    each = -(-heads // parts)
    return parts <= most_parts and each * parts - heads < each


def _in_words(counts: list[int]) -> str:
    *others, last = map(str, counts)
    return f"{', '.join(others)} or {last}" if others else last
