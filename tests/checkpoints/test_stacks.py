"""Stacks of blocks: which numbers in names are layers."""

from __future__ import annotations

import time

from weightsmith.checkpoints.stacks import depths, find_stacks, place


def _prefixes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {prefix: stack.layers for prefix, stack in find_stacks(shapes).items()}


def test_numbers_inside_a_block_and_of_experts_are_not_layers() -> None:
    shapes = {}
    for layer in range(3):
        for inner, leaf in enumerate(("SelfAttention.q", "DenseReluDense.wi")):
            shapes[f"encoder.block.{layer}.layer.{inner}.{leaf}.weight"] = (8, 8)
        for expert in range(4):
            shapes[f"encoder.block.{layer}.mlp.experts.{expert}.w1.weight"] = (8, 8)
    stacks = find_stacks(shapes)
    assert _prefixes(shapes) == {"encoder.block": (0, 1, 2)}
    name = "encoder.block.2.mlp.experts.3.w1.weight"
    assert place(name, stacks) == ("encoder.block", 2)


def test_stages_of_different_widths_are_looked_through_to_their_blocks() -> None:
    shapes = {}
    for stage, (width, blocks) in enumerate([(8, 1), (16, 3), (32, 2)]):
        for block in range(blocks):
            shapes[f"encoder.stages.{stage}.layers.{block}.layer.0.convolution.weight"] = (
                width,
            ) * 2
            shapes[f"encoder.stages.{stage}.layers.{block}.layer.1.convolution.weight"] = (
                width,
            ) * 2
    stacks = find_stacks(shapes)
    assert [s.count for s in stacks.values()] == [1, 3, 2]
    by_depth = depths(stacks.values())
    assert by_depth["encoder.stages.1.layers", 0] == (1, 6)
    assert by_depth["encoder.stages.2.layers", 1] == (5, 6)


def test_stages_of_single_blocks_are_the_layers_themselves() -> None:
    shapes = {f"stages.{s}.layers.0.conv.weight": (8 * 2**s, 3) for s in range(3)}
    assert _prefixes(shapes) == {"stages": (0, 1, 2)}


def test_blocks_of_unequal_widths_without_inner_lists_are_still_layers() -> None:
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (8 + i, 8) for i in range(4)}
    shapes |= {f"model.layers.{i}.norm.weight": (8,) for i in range(4)}
    assert _prefixes(shapes) == {"model.layers": (0, 1, 2, 3)}


def test_a_classifier_sequence_is_no_stack_beside_a_real_one_but_is_alone() -> None:
    sequence = {f"classifier.{i}.weight": (8, 8) for i in (0, 3, 6)}
    blocks = {f"blocks.{i}.attn.qkv.weight": (8, 8) for i in range(2)}
    assert _prefixes(sequence | blocks) == {"blocks": (0, 1)}
    assert _prefixes(sequence) == {"classifier": (0, 3, 6)}


def test_a_single_block_under_a_list_name_is_a_stack_of_one() -> None:
    assert _prefixes({"model.layers.0.mlp.up.weight": (8, 8)}) == {"model.layers": (0,)}
    assert _prefixes({"merger.0.weight": (8, 8)}) == {}


def test_prefixes_come_in_natural_order() -> None:
    shapes = {f"stage{s}.{b}.conv.weight": (8, 8) for s in (10, 2, 1) for b in range(2)}
    assert list(_prefixes(shapes)) == ["stage1", "stage2", "stage10"]


def test_the_count_reaches_to_the_highest_block_even_with_gaps() -> None:
    shapes = {f"h.{i}.mlp.up.weight": (8, 8) for i in (0, 5)}
    assert find_stacks(shapes)["h"].count == 6


def test_forty_thousand_tensors_take_well_under_two_seconds_of_cpu() -> None:
    shapes = {
        f"model.layers.{layer}.mlp.experts.{expert}.{w}.weight": (8, 8)
        for layer in range(50)
        for expert in range(266)
        for w in ("gate_proj", "up_proj", "down_proj")
    }
    start = time.process_time()
    stacks = find_stacks(shapes)
    for name in shapes:
        place(name, stacks)
    assert time.process_time() - start < 2
