"""Which kernel an FP8 GEMM runs, and what the model of its time says.

The model is csrc/gemm/choose_tile.hpp; docs/kernels/fp8_gemm.md tells how far to trust it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from abyssal import runtime
from abyssal.errors import InputError

GROUPS = ("none", "rows", "masked", "depth")
# Of an H100 or H200 (SXM).
MULTIPROCESSORS = 132
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Candidate:
    """A way to compute a product, and its modelled time.

    Cycles are of one multiprocessor. For a block of K (128): `tensor` for the products, `promotion`
    for what a warpgroup does one after the other, `shared` and `l2` for the bytes. For a tile:
    `epilogue`. For the product: `hbm` for the bytes of memory, `cycles` in all.
    """

    kernel: str
    tile: tuple[int, int]
    stages: int
    share: str  # the operand that two blocks of a cluster read once: "none", "a" or "b"
    split_k: int  # blocks of a cluster that divide K
    strip_n: int  # tiles (or pairs, if a is shared) along N that are worked on together
    blocks: int  # of the grid
    tiles: int
    tiles_in_turn: int  # on the busiest multiprocessor
    tensor: float
    promotion: float
    shared: float
    l2: float
    epilogue: float
    hbm: float
    cycles: float
    # What the launcher takes.
    choice: tuple[Any, ...]

    @property
    def bound(self) -> str:
        """What takes the longest: a term of the block of K, or "hbm"."""
        if self.cycles == self.hbm:
            return "hbm"
        terms = ("tensor", "promotion", "shared", "l2")
        return max(terms, key=lambda term: getattr(self, term))


def rank_candidates(
    m: int,
    n: int,
    k: int,
    *,
    groups_are: str = "none",
    groups: int = 1,
    square_scales: bool = True,
    out_dtype: torch.dtype = torch.bfloat16,
    beta: int = 0,
    multiprocessors: int = MULTIPROCESSORS,
) -> list[Candidate]:
    """All candidates for D [m, n] = A [m, k] B [n, k]^T, the best, which runs, first.

    Args:
        m, n, k: of all groups together; with groups_are "masked", m is the room of one.
        groups_are: how the work falls into groups: "none", "rows" (`fp8_grouped_gemm`), "masked"
            (`fp8_grouped_gemm_masked`) or "depth" (`fp8_wgrad`).
        groups: how many.
        square_scales: whether b has blocks of 128x128, else 1x128.
        out_dtype, beta: of the product.
        multiprocessors: of the GPU.

    Raises:
        InputError: a number below 1 or above 2**31 - 1, or unknown groups.
    """
    numbers = {"m": m, "n": n, "k": k, "groups": groups, "multiprocessors": multiprocessors}
    for name, value in numbers.items():
        if not 1 <= value <= _MOST:
            raise InputError(f"{name} must be from 1 to 2**31 - 1, not {value}")
    if groups_are not in GROUPS:
        raise InputError(f"groups_are must be one of {', '.join(GROUPS)}, not {groups_are!r}")
    extension = runtime.extension()
    kind = getattr(extension.GemmGroups, groups_are)
    rows = extension.rank_gemm_choices(
        m,
        n,
        k,
        kind,
        groups,
        square_scales,
        out_dtype == torch.float32,
        bool(beta),
        multiprocessors,
    )
    return [_candidate(row) for row in rows]


def _candidate(row: dict[str, Any]) -> Candidate:
    kernel, share, split_k, strip_n, blocks = row["choice"]
    of_choice = {"kernel": kernel, "share": share.name, "split_k": split_k, "strip_n": strip_n}
    return Candidate(**of_choice, blocks=blocks, **row)
