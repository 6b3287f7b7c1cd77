"""How ops are made known to PyTorch: schema, implementation, fake kernel.

An op is one function for all devices: which code runs is its `backend` argument, resolved outside,
where the user's choice is known. torch.compile traces through the outside and keeps the op whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("abyssal", "DEF")


def define(schema: str, implementation: Callable[..., Any], *, fake: Callable[..., Any]) -> None:
    """Register `torch.ops.abyssal.<name>` for the schema `<name>(...) -> ...`.

    `fake` gives outputs of the right shapes, types and strides, for tensors without data.
    """
    name = schema.split("(", 1)[0]
    # Compiled graphs must not lay out operands anew: scales have gaps that TMA needs.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    _LIBRARY.define(schema, tags=tags)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, implementation, device)
    torch.library.register_fake(f"abyssal::{name}", fake, lib=_LIBRARY)
