"""FlexAttention over flat rows: its block mask, its compilations, and the same figures as attention by segments."""

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, LlamaConfig

from posttrain.compat.torch_internals import n_compiled_graphs
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.forward import attention, flex
from posttrain.forward.attention import Segments, _by_segment, _Layer, repeats_keys
from posttrain.forward.block_mask import blocks
from posttrain.forward.flat import use_flat_batches
from posttrain.forward.flat_row import lay_out, pad_row
from posttrain.forward.flex import attend_by_blocks, in_one_dtype, row_length

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60
}  # fmt: skip

ROWS = [((300, 200, 60), (0, 400), (10, 0, 128)), ((128, 128, 128), (256, 1, 2)), ((5, 3, 2),) * 60]


@pytest.mark.parametrize("window", [None, 40, 200])
@pytest.mark.parametrize("groups", ROWS)
def test_blocks_that_are_skipped_or_taken_whole_equal_the_dense_mask(groups, window):
    segments = Segments(groups)
    mask = segments.block_mask(torch.device("cpu"), window)
    index = torch.arange(sum(map(sum, groups)))
    dense = mask.mask_mod(torch.tensor(0), torch.tensor(0), index[:, None], index[None])
    some, every = blocks(groups, window)
    for i, j in itertools.product(range(len(some)), repeat=2):
        tile = dense[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
        assert some[i, j] or not tile.any()
        assert not every[i, j] or (bool(tile.all()) and tile.shape == (128, 128))
    # Each block is listed once, among the partial or the whole ones, and nearly all listed ones are needed.
    assert mask.to_dense()[0, 0].bool().tolist() == some.tolist()
    needed = sum(bool(tile.any()) for rows in dense.split(128) for tile in rows.split(128, dim=1))
    assert needed <= int(some.sum()) <= needed + 2


def test_the_blocks_of_a_long_row_take_little_memory():
    """32,768 tokens: 256 blocks, so 256 x 256 numbers of each list, not 2**30."""
    mask = Segments(((2048, 1024, 1024),) * 8).block_mask(torch.device("cpu"))
    assert mask.kv_indices.shape == (1, 1, 256, 256)
    # A group of 32 blocks: its prefix 16 * 17 / 2, two branches of 8 * 9 / 2 and 8 * 16 each.
    assert int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) == 8 * (136 + 2 * (36 + 128))
    assert int(mask.kv_num_blocks.sum()) == 256  # only the diagonal is partial


def attend_over_lengths(backend, *, causal_kinds):
    """Run compiled FlexAttention over 30 lengths of rows, and return how many graphs were compiled."""
    before = n_compiled_graphs()
    for i in range(30):
        segments = Segments(((20 + 9 * i, 17 + 5 * i, 30), (10, 64, 63 - i)))
        segments = segments.padded(row_length(sum(map(sum, segments.groups))))
        n = sum(map(sum, segments.groups))
        query, key, value = (torch.randn(1, heads, n, 16, generator=torch.manual_seed(i)) for heads in (4, 2, 2))
        for layer in causal_kinds if i % 10 == 0 else causal_kinds[:1]:
            mask = segments.block_mask(torch.device("cpu"), layer.window)
            with torch.autocast("cpu", torch.bfloat16, enabled=i % 2 == 0):
                found = attend_by_blocks((query, key, value), mask, layer, backend)
            if i % 10 == 0:
                torch.testing.assert_close(found, _by_segment(query, key, value, segments, layer), rtol=1e-4, atol=1e-5)
    return n_compiled_graphs() - before


FLEX_LAYERS = [
    _Layer(None, 0.0, None, None, None),
    _Layer(0.3, 0.0, 50, None, None),
    _Layer(None, 0.0, None, None, 0.5),
]


def test_flex_attention_is_compiled_once_for_each_kind_of_layer():
    """Whatever the length and autocast: 30 lengths, three kinds of layers, three graphs."""
    assert attend_over_lengths("eager", causal_kinds=FLEX_LAYERS) == 3


@pytest.mark.soak
def test_flex_attention_compiles_with_inductor():
    """Of layers without window and soft cap: for the others, inductor of PyTorch 2.13 writes wrong C++ on a CPU."""
    assert attend_over_lengths("inductor", causal_kinds=FLEX_LAYERS[:1]) == 1


def test_further_compilations_of_a_layer_are_an_error(monkeypatch):
    """PyTorch would otherwise compute all scores from then on, which takes the square of the row in memory."""
    monkeypatch.setattr(flex, "compile_for_sizes", lambda tensor, dims: None)
    monkeypatch.setattr(flex, "FlexKind", lambda *_: "one kind for all")
    mask = Segments(((0, 256),)).block_mask(torch.device("cpu"))

    def attend(n_heads, dtype):
        return attend_by_blocks((torch.ones(1, n_heads, 256, 16, dtype=dtype),) * 3, mask, FLEX_LAYERS[0], "eager")

    attend(2, torch.float32)
    attend(2, torch.float64)
    with pytest.raises(UserError, match=r"compiled again for the same layer.*: set model\.attention to sdpa"):
        attend(1, torch.bfloat16)


def test_a_padded_row_has_whole_blocks_and_the_same_log_probabilities():
    assert [row_length(n) for n in (1, 256, 257, 384)] == [256, 256, 384, 384]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).eval()
    flat = lay_out([[1, 2, 3], [1, 2, 3], [4]], [[5, 6], [5, 7, 8, 9], [1, 1]])
    n = flat["input_ids"].shape[1]
    longer = pad_row(flat, row_length(n))
    assert longer["input_ids"].shape == longer["position_ids"].shape == (1, 256)
    assert longer["segments"].groups == (*flat["segments"].groups, (0, 256 - n))
    for setting in ("sdpa", "flex"):
        with torch.no_grad():
            assert use_flat_batches(model, ModelSection(attention=setting)) is None
            expected, found = (model(flat=row, fused_lm_head=True).log_probs for row in (flat, longer))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_queries_that_rotary_embeddings_left_in_fp32_get_the_precision_of_autocast():
    query, key, value = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert {tensor.dtype for tensor in in_one_dtype(query, key, value)} == {torch.bfloat16}
    assert {tensor.dtype for tensor in in_one_dtype(query, key, value.float())} == {torch.float32}


def test_shared_keys_are_repeated_where_cuda_has_no_kernel_for_mask_and_groups(monkeypatch):
    """SDPA on CUDA falls back to all scores for a mask with `enable_gqa`, so it never gets both."""
    given = []

    def record(query, key, value, **options):
        given.append((key.shape[1], options["enable_gqa"], options.get("attn_mask") is not None))
        return scaled_dot_product_attention(query, key, value, **options)

    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    segments, layer = Segments(((3, 2, 1),)), FLEX_LAYERS[0]
    monkeypatch.setattr(attention, "scaled_dot_product_attention", record)
    expected = _by_segment(query, key, value, segments, layer)
    assert given == [(2, True, False), (2, True, True)]
    monkeypatch.setattr(
        attention, "repeats_keys", lambda device, has_mask: repeats_keys(torch.device("cuda"), has_mask=has_mask)
    )
    given.clear()
    torch.testing.assert_close(_by_segment(query, key, value, segments, layer), expected)
    assert given == [(2, True, False), (4, False, True)]
