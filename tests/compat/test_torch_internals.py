"""Contract of `posttrain.compat.torch_internals` with PyTorch."""

import pytest
import torch

from posttrain.compat.torch_internals import compile_for_sizes, n_compiled_graphs


def test_every_compiled_graph_is_counted_once():
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    before = n_compiled_graphs()
    double(torch.ones(3))
    double(torch.ones(3))
    assert n_compiled_graphs() == before + 1
    double(torch.ones(4))  # another shape: compiled again
    assert n_compiled_graphs() == before + 2


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
