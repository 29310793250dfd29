"""The size of a base, counted by hand and by MLX."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import HIDDEN, VOCABULARY, tiny_module

from clara.core.measure import measure_base, storage_formats


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("quantized", [False, True])
def test_parameters_count_what_the_weights_stand_for(model_type: str, quantized: bool) -> None:
    plain = sum(leaf.size for _, leaf in tree_flatten(tiny_module(model_type).parameters()))
    assert measure_base(tiny_module(model_type, quantized)).parameters == plain


def test_bytes_are_those_of_the_stored_arrays() -> None:
    module = tiny_module(quantized=True)
    assert measure_base(module).bytes == sum(leaf.nbytes for _, leaf in tree_flatten(module.parameters()))


def test_shape_is_read_from_the_module() -> None:
    size = measure_base(tiny_module())
    assert (size.layers, size.hidden, size.vocabulary, len(size.linears)) == (2, HIDDEN, VOCABULARY, 14)


def test_storage_names_bits_groups_and_mode_or_the_dtype() -> None:
    assert storage_formats(tiny_module(quantized=True)) == ("4 bits, groups of 32, affine",)
    module = tiny_module()
    module.set_dtype(mx.bfloat16)
    assert storage_formats(module) == ("bfloat16",)
