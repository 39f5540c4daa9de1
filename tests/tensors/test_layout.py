"""Output shards: greedy in the given order, named as on the Hub, every byte's place known beforehand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import OutputError, UsageError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.layout import Entry, plan_layout
from weightsmith.tensors.files.shard_index import encode_index


def entries(*sizes: int, dtype: DType = DType.UINT8) -> list[Entry]:
    return [(f"t{i}", dtype, (size,)) for i, size in enumerate(sizes)]


def grouped(layout: object) -> list[list[str]]:
    return [[p.name for p in shard.placements] for shard in layout.shards]  # type: ignore[attr-defined]


def test_one_shard_is_a_single_file_without_an_index() -> None:
    layout = plan_layout(entries(4, 4, 2), shard_bytes=10)
    assert [shard.file_name for shard in layout.shards] == ["model.safetensors"]
    assert not layout.indices
    assert layout.total_size == 10


def test_a_shard_is_closed_before_it_would_overflow() -> None:
    assert grouped(plan_layout(entries(4, 6, 1, 9, 5, 5, 5), shard_bytes=10)) == [
        ["t0", "t1"],
        ["t2", "t3"],
        ["t4", "t5"],
        ["t6"],
    ]


def test_a_tensor_larger_than_a_shard_gets_its_own() -> None:
    assert grouped(plan_layout(entries(1, 25, 1, 1), shard_bytes=10)) == [
        ["t0"],
        ["t1"],
        ["t2", "t3"],
    ]


def test_several_shards_are_numbered_and_indexed_as_on_the_hub() -> None:
    layout = plan_layout(entries(8, 8, 8), shard_bytes=8)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [shard.file_name for shard in layout.shards] == names
    (index,) = layout.indices.values()
    assert json.loads(index) == {
        "metadata": {"total_size": 24},
        "weight_map": dict(zip(["t0", "t1", "t2"], names, strict=True)),
    }


def test_wider_dtypes_come_first_so_that_every_tensor_is_aligned() -> None:
    mixed: list[Entry] = [
        ("flag", DType.BOOL, (3,)),
        ("half", DType.BFLOAT16, (3,)),
        ("count", DType.INT64, ()),
        ("more", DType.BFLOAT16, (1,)),
    ]
    (shard,) = plan_layout(mixed).shards
    assert [p.name for p in shard.placements] == ["count", "half", "more", "flag"]
    assert all(p.offset % p.dtype.itemsize == 0 for p in shard.placements)


def test_no_tensors_give_one_empty_file() -> None:
    layout = plan_layout([])
    assert len(layout.shards) == 1
    assert layout.file_bytes == len(layout.shards[0].header)


@given(
    st.lists(
        st.tuples(st.sampled_from(list(DType)), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
        max_size=12,
    ),
    st.integers(1, 200),
)
def test_places_are_gapless_and_every_tensor_has_one(
    facts: list[tuple[DType, tuple[int, ...]]], limit: int
) -> None:
    given_entries = [(f"t{i}", *fact) for i, fact in enumerate(facts)]
    layout = plan_layout(given_entries, limit)
    for position, shard in enumerate(layout.shards):
        offset = len(shard.header)
        for p in shard.placements:
            assert (p.offset, p.shard) == (offset, position)
            assert layout.placement(p.name) is p
            offset += p.nbytes
        assert offset == shard.size
        assert (
            shard.size - len(shard.header) <= limit
            or sum(p.nbytes > 0 for p in shard.placements) == 1
        )
    assert sorted(n for group in grouped(layout) for n in group) == sorted(
        n for n, _, _ in given_entries
    )
    assert layout.total_size == layout.file_bytes - sum(
        len(shard.header) for shard in layout.shards
    )
    assert layout == plan_layout(given_entries, limit)


def test_a_name_given_twice_is_refused_even_across_shards() -> None:
    with pytest.raises(OutputError, match="'t0' would be written twice"):
        plan_layout([*entries(8, 8), *entries(8)], shard_bytes=8)


@pytest.mark.parametrize("size", [0, -1])
def test_a_shard_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="shard size"):
        plan_layout(entries(1), size)


def test_the_index_is_the_json_that_hubs_have_with_two_spaces() -> None:
    weight_map = {"a.weight": "model-00001-of-00002.safetensors", 'é"\\': "model-2.safetensors"}
    document = {"metadata": {"total_size": 12}, "weight_map": weight_map}
    expected = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    assert encode_index(weight_map, 12) == expected.encode()
