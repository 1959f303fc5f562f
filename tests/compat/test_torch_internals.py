"""Contract of `posttrain.compat.torch_internals` with PyTorch."""

import pytest
import torch
from support.contracts import require

from posttrain.compat.torch_internals import compile_for_sizes, n_compiled_graphs, onednn_product


def test_every_compiled_graph_is_counted_once():
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    before = n_compiled_graphs()
    double(torch.ones(3))
    double(torch.ones(3))
    assert n_compiled_graphs() == before + 1
    double(torch.ones(4))  # another shape: compiled again
    assert n_compiled_graphs() == before + 2


def test_products_of_onednn_are_those_of_mkl():
    generator = torch.Generator().manual_seed(0)
    rows, weight, plus = (torch.randn(size, generator=generator) for size in ((5, 7), (3, 7), (5, 3)))
    expected = rows @ weight.T
    for given in (weight, weight.T.contiguous().T):  # the backward pass gives a transposed weight
        require(
            torch.allclose(onednn_product(rows, given), expected, atol=1e-5)
            and torch.allclose(onednn_product(rows, given, plus), expected + plus, atol=1e-5),
            "torch",
            "torch.ops.mkldnn._linear_pointwise multiplies by the transposed weight and adds a second tensor",
            onednn_product,
        )


@pytest.mark.parametrize(("constant", "n_graphs"), [(False, 2), (True, 1)])
def test_sizes_that_are_equal_by_chance_cost_a_compilation_unless_they_are_constants(constant, n_graphs):
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=True)
    before = n_compiled_graphs()
    for length in (4, 5):
        x = torch.ones(4, length)
        if constant:
            compile_for_sizes(x, (0,))
        double(x)
    assert n_compiled_graphs() == before + n_graphs
