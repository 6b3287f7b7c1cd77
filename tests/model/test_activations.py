"""Every activation against transformers' function of that name, with its gradient."""

import pytest
import torch

from abyssal.model.activations import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_transformers(name):
    reference = pytest.importorskip("transformers.activations").ACT2FN[name]
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    got, expected = ACTIVATIONS[name](x), reference(x)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
    gradients = (torch.autograd.grad(value.sum(), x)[0] for value in (got, expected))
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_dtype_and_input(name, dtype):
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = x.clone()
    assert ACTIVATIONS[name](x).dtype == dtype
    assert torch.equal(x, before)
