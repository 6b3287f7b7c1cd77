"""`BlockScaled`: meaning, transposition, pytree, pickle."""

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from torch.utils import _pytree

from abyssal import ops
from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled


@pytest.fixture
def matrix():
    return ops.quantize_1x128(torch.randn(37, 300, generator=torch.Generator().manual_seed(1)))


def values_by_loops(matrix):
    rows, columns = matrix.shape
    codes, scale = matrix.data.double(), matrix.scale.double()
    down, across = matrix.block
    return torch.tensor(
        [
            [codes[i, j] * scale[i // down, j // across] for j in range(columns)]
            for i in range(rows)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("block", [(1, 128), (128, 1), (128, 128)])
def test_dequantize_every_block(block):
    generator = torch.Generator().manual_seed(2)
    rows, columns = 130, 140
    data = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    matrix = BlockScaled(data, torch.rand(grid, generator=generator), block)
    exact = values_by_loops(matrix)
    assert torch.equal(matrix.dequantize(torch.float64), exact)
    assert torch.equal(matrix.dequantize(), exact.float())
    assert torch.equal(matrix.dequantize(torch.bfloat16), exact.float().bfloat16())


@pytest.mark.parametrize("block", [(1, 128), (128, 1), (128, 128)])
def test_a_stack_is_its_matrices(block):
    generator = torch.Generator().manual_seed(3)
    shape = (3, 130, 140)
    data = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    grid = (3, -(-130 // block[0]), -(-140 // block[1]))
    stack = BlockScaled(data, torch.rand(grid, generator=generator), block)
    for i in range(3):
        one = BlockScaled(data[i], stack.scale[i], block)
        assert torch.equal(stack.dequantize()[i], one.dequantize())
        assert torch.equal(stack.t().dequantize()[i], one.t().dequantize())
    assert stack.t().shape == (3, 140, 130) and repr(stack).startswith("BlockScaled(3 x 130 x 140 ")
    with pytest.raises(InputError, match=r"scale must be \[3, "):
        BlockScaled(data, stack.scale[:2], block)


def test_transposed_is_the_same_memory(matrix):
    turned = matrix.t()
    assert turned.shape == (300, 37) and turned.block == (128, 1) and turned.axis == 0
    assert turned.data.data_ptr() == matrix.data.data_ptr()
    assert turned.scale.data_ptr() == matrix.scale.data_ptr()
    assert torch.equal(turned.dequantize(), matrix.dequantize().t())
    again = turned.t()
    assert (again.block, again.axis) == (matrix.block, matrix.axis)


def test_is_frozen_and_prints(matrix):
    with pytest.raises(dataclasses.FrozenInstanceError):
        matrix.axis = 0
    assert repr(matrix) == (
        "BlockScaled(37 x 300 float8_e4m3fn, one scale for 1 x 128, sums along axis 1, cpu)"
    )


def test_is_a_pytree(matrix):
    leaves, structure = _pytree.tree_flatten(matrix)
    assert [leaf.dtype for leaf in leaves] == [torch.float8_e4m3fn, torch.float32]
    back = _pytree.tree_unflatten(leaves, structure)
    assert back.data is matrix.data and back.block == (1, 128) and back.axis == 1


def test_a_tree_may_hold_anything(matrix):
    names = _pytree.tree_map(lambda leaf: str(leaf.dtype), matrix)
    assert (names.data, names.scale) == ("torch.float8_e4m3fn", "torch.float32")
    assert (names.block, names.axis) == (matrix.block, matrix.axis)


DATA = torch.zeros(130, 300).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"data": "text"}, "data must be a tensor, not str"),
        ({"data": DATA.float()}, "data must be torch.float8_e4m3fn .*, not torch.float32"),
        ({"data": DATA[0]}, r"data must be .* with 2 or 3 dimensions, not .* \[300\]"),
        ({"scale": None}, "scale must be a tensor, not NoneType"),
        ({"scale": torch.ones(130, 3).double()}, "scale must be torch.float32 .*float64"),
        (
            {"scale": torch.ones(130, 2)},
            r"scale must be \[130, 3\] for data \[130, 300\] .*, not \[130, 2\]",
        ),
        ({"scale": torch.ones(130, 3, device="meta")}, "scale is on meta and data on cpu"),
        ({"block": (128, 128)}, r"scale must be \[2, 3\]"),
        ({"block": (1, 64)}, r"block must be .*, not \(1, 64\)"),
        ({"block": [1, 128]}, r"block must be .*, not \[1, 128\]"),
        ({"axis": 2}, "axis must be 0 or 1, not 2"),
        ({"axis": True}, "axis must be 0 or 1, not True"),
    ],
)
def test_what_is_no_such_matrix(wrong, sentence):
    fields = {"data": DATA, "scale": torch.ones(130, 3), "block": (1, 128), "axis": 1}
    BlockScaled(**fields)
    with pytest.raises(InputError, match=sentence):
        BlockScaled(**{**fields, **wrong})


def test_goes_through_a_compiled_function(matrix):
    def turned(matrix, x):
        return ops.quantize_1x128(x).t(), matrix.dequantize().sum()

    x = torch.randn(9, 200)
    compiled = torch.compile(turned, fullgraph=True, dynamic=True)
    for part, expected in zip(compiled(matrix, x), turned(matrix, x), strict=True):
        if isinstance(part, BlockScaled):
            part, expected = part.dequantize(), expected.dequantize()
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("turn", [False, True])
def test_pickle_and_copy(matrix, turn):
    matrix = matrix.t() if turn else matrix
    saved = io.BytesIO()
    torch.save(matrix, saved)
    saved.seek(0)
    for back in (
        pickle.loads(pickle.dumps(matrix)),
        torch.load(saved, weights_only=False),
        copy.deepcopy(matrix),
    ):
        assert torch.equal(back.data.view(torch.uint8), matrix.data.view(torch.uint8))
        assert torch.equal(back.scale, matrix.scale)
        assert back.scale.stride() == matrix.scale.stride()
        assert back.data.stride() == matrix.data.stride()
        assert (back.block, back.axis) == (matrix.block, matrix.axis)
