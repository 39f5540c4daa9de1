"""Findings about checkpoints that are to be combined."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import Checkpoint, agreeing, compare, open_checkpoint
from weightsmith.errors import CompatibilityError
from weightsmith.findings import Severity, errors_among

Llama = Callable[..., Checkpoint]


def _codes(findings: list) -> list[str]:
    return [finding.code for finding in findings]


def test_checkpoints_of_one_shape_have_nothing_against_them(llama: Llama) -> None:
    assert compare([llama("a"), llama("b"), llama("c")]) == []
    assert compare([]) == []


def test_missing_and_extra_tensors_are_one_error_per_checkpoint_with_names(llama: Llama) -> None:
    gone = tuple(f"model.layers.{i}.mlp.up_proj.weight" for i in range(2))
    findings = compare([llama("full"), llama("part", drop=gone, extra={"x.weight": (2,)})])
    assert _codes(findings) == ["missing-tensor", "missing-tensor"]
    assert "part' lacks 2 tensors" in findings[0].message
    assert repr(gone[0]) in findings[0].message
    assert "full' lacks 1 tensor that" in findings[1].message


def test_many_missing_tensors_are_counted_not_listed(llama: Llama) -> None:
    (finding,) = compare([llama("deep", layers=6), llama("flat", layers=2)])
    assert "lacks 16 tensors" in finding.message
    assert finding.message.count("weight'") == 3


def test_a_wrapper_prefix_is_named_where_no_name_is_common(folder: Callable) -> None:
    plain = open_checkpoint(folder("plain", {"h.0.w": (2, 2), "wte.weight": (4, 2)}))
    wrapped = open_checkpoint(
        folder("wrapped", {"transformer.h.0.w": (2, 2), "transformer.wte.weight": (4, 2)})
    )
    codes = compare([plain, wrapped])
    assert _codes(codes) == ["no-common-tensors", "no-common-tensors"]
    assert "begin with 'transformer.'" in codes[0].message


def test_different_shapes_are_an_error_with_both_shapes(llama: Llama) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    (finding,) = compare([llama("a"), llama("b", extra={name: (16, 8)})])
    assert finding.code == "shape-mismatch"
    assert "[16, 8] against [12, 8]" in finding.message


def test_different_vocabularies_ask_for_aligned_tokenizers(llama: Llama) -> None:
    (finding,) = compare([llama("a", vocab=32), llama("b", vocab=36)])
    assert finding.code == "vocabulary-mismatch"
    assert finding.severity is Severity.ERROR
    assert "36 rows" in finding.message
    assert "align the tokenizers" in finding.fix


def test_tied_and_untied_are_one_error_not_a_missing_head_too(llama: Llama) -> None:
    assert _codes(compare([llama("a"), llama("b", head=False)])) == ["tied-untied-mix"]


def test_a_tied_head_stored_in_one_file_only_is_no_error(llama: Llama) -> None:
    table = np.ones((32, 8), np.float32)
    copies = {"model.embed_tokens.weight": table, "lm_head.weight": table}
    both = llama("both", tie_word_embeddings=True, extra=copies)
    assert compare([both, llama("one", head=False)]) == []


def test_a_head_of_its_own_does_not_mix_with_a_tied_one_whatever_is_said(llama: Llama) -> None:
    own = llama("own", tie_word_embeddings=True)
    assert "tied-untied-mix" in _codes(compare([own, llama("one", head=False)]))


def test_a_head_that_is_simply_gone_is_a_missing_tensor(llama: Llama) -> None:
    (finding,) = compare([llama("a"), llama("b", head=False, tie_word_embeddings=False)])
    assert finding.code == "missing-tensor"
    assert "'lm_head.weight'" in finding.message


def test_a_mix_of_dtypes_is_a_note_that_says_the_result(folder: Callable) -> None:
    halves = {"a.weight": np.ones((2, 2), np.float16)}
    singles = {"a.weight": np.ones((2, 2), np.float32)}
    findings = compare(
        [open_checkpoint(folder("half", halves)), open_checkpoint(folder("single", singles))]
    )
    assert _codes(findings) == ["dtype-mix"]
    assert findings[0].severity is Severity.NOTE
    assert "the output is float32" in findings[0].message


def test_the_base_is_compared_too_and_once(llama: Llama) -> None:
    base, other = llama("base", vocab=36), llama("a")
    assert _codes(compare([other], base=base)) == ["vocabulary-mismatch"]
    assert _codes(compare([base, other], base=base)) == ["vocabulary-mismatch"]


def test_quantised_inputs_are_errors_and_come_before_notes(llama: Llama) -> None:
    odd = {"steps": np.array([1], np.int64)}
    findings = compare(
        [llama("a", extra=odd), llama("b", extra=odd, quantization_config={"quant_method": "awq"})]
    )
    assert _codes(findings) == ["quantised", "integer-tensors"]
    assert "awq" in findings[0].message
    assert len(errors_among(findings)) == 1


def test_integers_in_one_and_floats_in_another_are_an_error(llama: Llama) -> None:
    whole = {"steps": np.array([1], np.int64)}
    real = {"steps": np.array([1.0], np.float32)}
    codes = _codes(compare([llama("a", extra=whole), llama("b", extra=real)]))
    assert "integer-float-mix" in codes


def _integers(folder: Callable, name: str, values: list[int], dtype: type = np.int64) -> object:
    path = folder(name, {"x": np.array(values, dtype)})
    return open_checkpoint(path).tensors["x"]


def test_integer_tensors_are_the_bases_or_must_agree(folder: Callable) -> None:
    a = _integers(folder, "a", [1, 2, 3])
    b = _integers(folder, "b", [1, 2, 3])
    c = _integers(folder, "c", [1, 2, 4])
    assert agreeing([a, b]) is a
    assert agreeing([a, c], base=b) is b
    with pytest.raises(CompatibilityError, match=r"byte 16: name a base"):
        agreeing([a, b, c])
    with pytest.raises(CompatibilityError, match="shape or dtype"):
        agreeing([a, _integers(folder, "d", [1, 2, 3], np.int32)])


def test_a_difference_past_the_first_piece_is_found(tmp_path: object) -> None:
    values = np.zeros(3_000_000, np.uint8)
    other = values.copy()
    other[2_500_001] = 1
    tensors = []
    for i, array in enumerate((values, other)):
        path = tmp_path / f"{i}.safetensors"
        save_file({"x": array}, str(path))
        tensors.append(open_checkpoint(path).tensors["x"])
    with pytest.raises(CompatibilityError, match="byte 2500001"):
        agreeing(tensors)
