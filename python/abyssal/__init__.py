"""Abyssal: DeepSeek-V3 on NVIDIA Hopper (kernels, model, trainer), and on any CPU."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names are resolved at first use, so that `import abyssal` costs milliseconds and the
# command line can answer `--help` without loading torch.
_HOME = {
    "DeepseekV3Config": "abyssal.model.config",
    "DeepseekV3ForCausalLM": "abyssal.model.deepseek_v3",
    "InputError": "abyssal.errors",
    "TrainConfig": "abyssal.training.config",
    "Trainer": "abyssal.training.trainer",
    "backend": "abyssal.ops.backend",
}

__all__ = [
    "DeepseekV3Config",
    "DeepseekV3ForCausalLM",
    "InputError",
    "TrainConfig",
    "Trainer",
    "__version__",
    "backend",
]

if TYPE_CHECKING:
    from abyssal.errors import InputError
    from abyssal.model.config import DeepseekV3Config
    from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
    from abyssal.ops.backend import backend
    from abyssal.training.config import TrainConfig
    from abyssal.training.trainer import Trainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'abyssal' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
