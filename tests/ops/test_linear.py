"""`fp8_linear` on every backend: its result and gradients are the ops' it is made of."""

import pytest
import torch

import abyssal
from abyssal import ops
from abyssal.errors import InputError
from tests.ops.gemm_cases import generator, row_error, same_bits

DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def values(*shape, seed, dtype, device, grad=True):
    x = torch.randn(shape, generator=generator(seed)).to(device, dtype)
    return x.requires_grad_(grad)


def offsets_of(rows, device):
    return torch.tensor([0, *rows]).cumsum(0).to(device, torch.int32)


@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_its_parts(dtype, weight_dtype, pow2, device):
    x = values(3, 50, 144, seed=1, dtype=dtype, device=device)
    weight = values(208, 144, seed=2, dtype=weight_dtype, device=device)
    dy = values(3, 50, 208, seed=3, dtype=dtype, device=device, grad=False)
    y = ops.fp8_linear(x, weight, pow2=pow2)
    y.backward(dy)

    q, q_t = ops.quantize_1x128_both(x.detach().flatten(0, 1), pow2=pow2)
    w, w_t = ops.quantize_128x128(weight, transpose="both")
    g, g_t = ops.quantize_1x128_both(dy.flatten(0, 1), pow2=pow2)
    same_bits(y.detach().flatten(0, 1), ops.fp8_gemm(q, w, out_dtype=dtype).cpu())
    same_bits(x.grad.flatten(0, 1), ops.fp8_gemm(g, w_t, out_dtype=dtype).cpu())
    same_bits(weight.grad, ops.fp8_wgrad(g_t, q_t, out_dtype=weight_dtype).cpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_equal_their_parts(dtype, device):
    rows = [40, 0, 129, 5]
    offsets = offsets_of(rows, device)
    total = sum(rows)
    x = values(total + 4, 144, seed=1, dtype=dtype, device=device)
    weight = values(4, 80, 144, seed=2, dtype=torch.float32, device=device)
    dy = values(total + 4, 80, seed=3, dtype=dtype, device=device, grad=False)
    y = ops.fp8_linear(x, weight, offsets)
    y.backward(dy)

    q, q_t = ops.quantize_1x128_both(x.detach(), offsets)
    w, w_t = ops.quantize_128x128(weight, transpose="both")
    g, g_t = ops.quantize_1x128_both(dy, offsets)
    same_bits(
        y[:total].detach(), ops.fp8_grouped_gemm(q, w, offsets, out_dtype=dtype)[:total].cpu()
    )
    dx = ops.fp8_grouped_gemm(g, w_t, offsets, out_dtype=dtype)
    same_bits(x.grad[:total], dx[:total].cpu())
    same_bits(weight.grad, ops.fp8_wgrad(g_t, q_t, offsets).cpu())
    # Rows of no group.
    assert (y[total:] == 0).all() and (x.grad[total:] == 0).all()


def test_near_the_exact_layer(device):
    """Within what four significant bits of each operand allow: a few percent of a row's norm."""
    x = values(70, 512, seed=1, dtype=torch.float32, device=device)
    weight = values(144, 512, seed=2, dtype=torch.float32, device=device)
    dy = values(70, 144, seed=3, dtype=torch.float32, device=device, grad=False)
    ops.fp8_linear(x, weight).backward(dy)
    exact_x, exact_w = (t.detach().double().cpu().requires_grad_() for t in (x, weight))
    exact = exact_x @ exact_w.T
    exact.backward(dy.double().cpu())
    assert row_error(ops.fp8_linear(x, weight).detach(), exact.detach()) < 0.06
    assert row_error(x.grad, exact_x.grad) < 0.06
    assert row_error(weight.grad, exact_w.grad) < 0.06


@pytest.mark.parametrize("needed", ["x", "weight"])
def test_only_the_needed_gradient(needed, device):
    x = values(20, 128, seed=1, dtype=torch.bfloat16, device=device, grad=needed == "x")
    weight = values(16, 128, seed=2, dtype=torch.float32, device=device, grad=needed == "weight")
    both = [t.detach().clone().requires_grad_() for t in (x, weight)]
    dy = values(20, 16, seed=3, dtype=torch.bfloat16, device=device, grad=False)
    ops.fp8_linear(x, weight).backward(dy)
    ops.fp8_linear(*both).backward(dy)
    for tensor, full in zip((x, weight), both, strict=True):
        if tensor.requires_grad:
            same_bits(tensor.grad, full.grad.cpu())
        else:
            assert tensor.grad is None


def test_a_weight_that_is_quantised_once(device):
    x = values(20, 128, seed=1, dtype=torch.bfloat16, device=device)
    weight = values(16, 128, seed=2, dtype=torch.float32, device=device)
    dy = values(20, 16, seed=3, dtype=torch.bfloat16, device=device, grad=False)
    y = ops.fp8_linear(x, weight)
    y.backward(dy)
    gradients = [t.grad.clone() for t in (x, weight)]
    x.grad = weight.grad = None
    quantized = ops.quantize_128x128(weight, transpose="both")
    again = ops.fp8_linear(x, weight, quantized=quantized)
    again.backward(dy)
    same_bits(again.detach(), y.detach().cpu())
    for tensor, gradient in zip((x, weight), gradients, strict=True):
        same_bits(tensor.grad, gradient.cpu())


def test_backward_keeps_the_backend_of_forward(backend, device):
    x = values(20, 512, seed=1, dtype=torch.float32, device=device)
    weight = values(16, 512, seed=2, dtype=torch.float32, device=device)
    dy = values(20, 16, seed=3, dtype=torch.float32, device=device, grad=False)
    ops.fp8_linear(x, weight).backward(dy)
    inside = x.grad.clone()
    x.grad = None
    y = ops.fp8_linear(x, weight)
    with abyssal.backend("reference"):
        y.backward(dy)
    same_bits(x.grad, inside.cpu())
    if backend != "reference":
        x.grad = None
        with abyssal.backend("reference"):
            ops.fp8_linear(x, weight).backward(dy)
        assert not torch.equal(x.grad, inside), "the backends do not differ: the test shows nothing"


def test_an_incoming_gradient_that_is_not_contiguous(device):
    x = values(20, 128, seed=1, dtype=torch.float32, device=device)
    weight = values(16, 128, seed=2, dtype=torch.float32, device=device)
    dy = values(16, 20, seed=3, dtype=torch.float32, device=device, grad=False).t()
    ops.fp8_linear(x, weight).backward(dy)
    strided, x.grad = x.grad, None
    ops.fp8_linear(x, weight).backward(dy.contiguous())
    same_bits(strided, x.grad.cpu())


def test_no_tokens(device):
    x = values(0, 128, seed=1, dtype=torch.bfloat16, device=device)
    weight = values(16, 128, seed=2, dtype=torch.float32, device=device)
    y = ops.fp8_linear(x, weight)
    y.sum().backward()
    assert y.shape == (0, 16) and x.grad.shape == x.shape and (weight.grad == 0).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_compiles_into_one_graph_with_gradients(grouped, device):
    offsets = offsets_of([9, 11], device) if grouped else None
    shape = (2, 16, 144) if grouped else (16, 144)

    def layer(x, weight):
        return ops.fp8_linear(x, weight, offsets) * 2

    results = []
    for function in (layer, torch.compile(layer, fullgraph=True)):
        x = values(20, 144, seed=1, dtype=torch.float32, device=device)
        weight = values(*shape, seed=2, dtype=torch.float32, device=device)
        y = function(x, weight)
        y.backward(values(20, 16, seed=3, dtype=torch.float32, device=device, grad=False))
        results.append((y.detach(), x.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        same_bits(compiled, eager.cpu())


X, W = torch.zeros(4, 128), torch.zeros(16, 128)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"x": "text"}, "x must be a tensor, not str"),
        ({"x": X.half()}, "x must be bfloat16 or float32"),
        ({"x": torch.zeros(4, 64)}, r"x must be \[..., 128\], not \[4, 64\]"),
        ({"x": torch.zeros(())}, r"x must be \[..., 128\], not \[\]"),
        ({"x": torch.zeros(4, 5, 128).transpose(0, 1)}, "x must have rows that are equally far"),
        ({"weight": torch.zeros(8, 128)}, r"weight must be \[N, K\] with N and K multiples of 16"),
        ({"weight": torch.zeros(2, 16, 128)}, r"weight must be \[N, K\]"),
        ({"offsets": torch.zeros(3, dtype=torch.int32)}, r"weight must be \[G, N, K\]"),
        (
            {"weight": W[None], "offsets": torch.zeros(3, dtype=torch.int32)},
            r"offsets must be int32 \[2\] for weight \[1, 16, 128\], not \[3\]",
        ),
        ({"pow2": 1}, "pow2 must be True or False"),
        ({"quantized": 5}, "quantized must be a pair"),
    ],
)
def test_refuses(wrong, sentence, backend):
    if backend == "cuda":
        pytest.skip("the checks are those of CPU tensors")
    with pytest.raises(InputError, match=sentence):
        ops.fp8_linear(**{"x": X, "weight": W, **wrong})


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 0), (2, 2, 3)])
def test_any_leading_dimensions(leading, device):
    x = torch.randn(*leading, 128, device=device).requires_grad_()
    weight = values(16, 128, seed=2, dtype=torch.float32, device=device, grad=False)
    y = ops.fp8_linear(x, weight)
    y.sum().backward()
    assert y.shape == (*leading, 16) and x.grad.shape == x.shape
    flat = x.detach().view(-1, 128)
    same_bits(y.detach().view(-1, 16), ops.fp8_linear(flat, weight).cpu())
