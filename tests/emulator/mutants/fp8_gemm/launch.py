"""Launch description of the FP8 GEMMs of csrc/gemm, for mutation testing.

Three of the kernels, which between them have every role and every path: pairs that share an
operand, several tiles and rounds of the ring for each block, staged and direct stores, groups that
end inside a tile, scales of rows, K divided among blocks. The others are the same code with other
sizes of the tile.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from abyssal import runtime
from abyssal.emulator import In, InOut, Out, concurrent
from abyssal.ops import gemm
from abyssal.ops.gemm_choice import rank_candidates

ROOT = Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT))

from tests.ops.gemm_cases import activations, stack, weight  # noqa: E402

num_sms = 2
KERNELS = ("fp8_gemm_128x128", "fp8_gemm_64x32", "fp8_gemm_64x64_rows")


def ptx():
    """The image with these kernels alone."""
    text = runtime.extension().kernel_images()["fp8_gemm"]["ptx"]
    shared = "".join(line for line in text.splitlines(True) if line.startswith(".extern .shared"))
    head, *entries = text.replace(shared, "").split(".visible .entry ")
    last, files = entries[-1].split("\n\t.file", 1)
    entries[-1] = last
    kept = [f".visible .entry {entry}" for entry in entries if entry.split("(")[0] in KERNELS]
    return {"fp8_gemm": f"{head}{shared}{''.join(kept)}\n\t.file{files}"}


def product(kernel, m, n, k, *, share="none", split_k=1, dtype=torch.bfloat16, beta=0, rows=None):
    """A launch. rows: of each group."""

    def launch(load, random):
        seed = int(random.integers(2**31))
        square = not kernel.endswith("rows")
        a = activations(m, k, seed)
        b, kind, offsets = weight(n, k, seed + 1, square=square), "none", None
        if rows is not None:
            b = stack([weight(n, k, seed + group) for group in range(len(rows))])
            kind, offsets = "rows", torch.tensor([0, *rows]).cumsum(0).int()
        candidates = rank_candidates(
            m,
            n,
            k,
            groups_are=kind,
            groups=len(rows or [1]),
            square_scales=square,
            out_dtype=dtype,
            multiprocessors=num_sms * split_k,
        )
        wanted = (kernel, share, split_k)
        candidate = next(x for x in candidates if (x.kernel, x.share, x.split_k) == wanted)
        out = torch.full((m, n), 77.0, dtype=dtype)
        name, blocks, threads, cluster, shared_bytes, params = gemm.prepare(
            a, b, offsets, out, kind, beta, candidate.choice
        )
        buffers = [In(x) for x in (a.data, a.scale, b.data, b.scale)]
        buffers += [InOut(out) if beta else Out(out)]
        buffers += [] if offsets is None else [In(offsets)]
        # Twice: the second launch may begin early, and must wait for the first.
        with concurrent():
            for _ in range(2):
                load().launch(
                    name,
                    blocks,
                    threads,
                    [params],
                    cluster=cluster,
                    shared_bytes=shared_bytes,
                    buffers=buffers,
                    dependent=True,
                )
        return {"d": out.float().numpy()}

    return launch


launches = {
    "shared": product("fp8_gemm_128x128", 390, 264, 1424, share="a"),
    "direct": product("fp8_gemm_128x128", 140, 136, 912, dtype=torch.float32, beta=1),
    "grouped": product("fp8_gemm_128x128", 300, 136, 272, share="b", rows=[130, 0, 150]),
    "divided": product("fp8_gemm_64x32", 64, 40, 6416, split_k=2),
    "row_scales": product("fp8_gemm_64x64_rows", 64, 136, 2704, share="a"),
}
