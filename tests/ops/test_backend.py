"""Choosing a backend: by tensor, by block, by environment; and the refusals."""

import os
import subprocess
import sys

import pytest
import torch

import abyssal
from abyssal import ops
from abyssal.errors import InputError
from abyssal.ops.backend import choose_backend

X = torch.zeros(1, 128)


def test_cpu_tensors_run_the_reference():
    assert choose_backend(X) == "reference"


def test_the_block_decides_and_ends():
    with abyssal.backend("cuda"):
        assert choose_backend(X) == "cuda"
        with abyssal.backend("reference"):
            assert choose_backend(X) == "reference"
        assert choose_backend(X) == "cuda"
    assert choose_backend(X) == "reference"


def test_the_block_ends_with_an_exception():
    with pytest.raises(KeyError), abyssal.backend("cuda"):
        raise KeyError
    assert choose_backend(X) == "reference"


def test_unknown_names():
    with (
        pytest.raises(InputError, match="one of reference, cuda, emulator, not 'cdua'"),
        abyssal.backend("cdua"),
    ):
        pass


def test_the_cuda_backend_refuses_cpu_tensors():
    with abyssal.backend("cuda"), pytest.raises(InputError, match="takes CUDA tensors, and .* cpu"):
        ops.quantize_1x128(X)


@pytest.mark.parametrize(
    ("value", "printed"), [("reference", "reference"), ("gpu", "ABYSSAL_BACKEND must be one of")]
)
def test_environment(value, printed):
    code = (
        "import torch; from abyssal.ops.backend import choose_backend\n"
        "try: print(choose_backend(torch.zeros(1)))\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ABYSSAL_BACKEND": value},
    )
    assert printed in done.stdout


def test_import_is_light():
    """`import abyssal` loads no torch, and the ops bring no trainer's libraries."""
    code = (
        "import sys, abyssal; assert 'torch' not in sys.modules\n"
        "import abyssal.ops\n"
        "heavy = {'transformers', 'tyro', 'rich', 'tokenizers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
