"""Contract of `posttrain.compat.torch_internals` with PyTorch."""

import torch

from posttrain.compat.torch_internals import n_compiled_graphs


def test_every_compiled_graph_is_counted_once():
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    before = n_compiled_graphs()
    double(torch.ones(3))
    double(torch.ones(3))
    assert n_compiled_graphs() == before + 1
    double(torch.ones(4))  # another shape: compiled again
    assert n_compiled_graphs() == before + 2
