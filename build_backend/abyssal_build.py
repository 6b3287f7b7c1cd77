"""The build backend: scikit-build-core's, plus nvcc and cuda.h from PyPI where there are none.

`ABYSSAL_KERNELS=off` builds without kernel images and so without nvcc.
"""

from __future__ import annotations

import find_cuda
from scikit_build_core import build as _scikit_build
from scikit_build_core.build import *  # noqa: F403 - the other hooks are scikit-build-core's


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return [*_scikit_build.get_requires_for_build_wheel(config_settings), *find_cuda.missing()]


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return [*_scikit_build.get_requires_for_build_editable(config_settings), *find_cuda.missing()]
