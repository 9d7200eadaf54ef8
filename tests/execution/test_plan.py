"""A step as tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid_gpu.execution import plan
from lucid_gpu.execution.plan import TensorGroup, common_layout, cut
from lucid_gpu.execution.rule import BFLOAT16, FrameScalars, Storage
from lucid_gpu.optim import SGD, Adam
from tests import rules
from tests.execution.claims import compiles, layout_claims

every_rule = pytest.mark.parametrize("rule", rules.rules(), ids=lambda rule: rule.__name__)
every_dtype = pytest.mark.parametrize("dtype", rules.DTYPES)


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 20))
def test_chunks_cover_every_element_once(sizes, chunk_elements):
    seen = [[] for _ in sizes]
    for start, tensor, count in cut(np.array(sizes, np.int64), chunk_elements).tolist():
        assert 0 < count <= chunk_elements
        seen[tensor] += range(start, start + count)
    assert seen == [list(range(size)) for size in sizes]


def test_chunks_count_beyond_32_bits():
    sizes = np.array([3, 2**33 + 5], np.int64)
    chunks = cut(sizes, 1 << 20)
    own = chunks[chunks["tensor"] == 1]
    assert own["start"].dtype == np.int64
    np.testing.assert_array_equal(np.diff(own["start"]), 1 << 20)
    assert own[-1].tolist() == (2**33, 1, 5)
    assert int(own["count"].sum(dtype=np.int64)) == 2**33 + 5


def group_of(rule, variants, sizes):
    params = [np.zeros(size, np.float32) for size in sizes]
    slots = [
        tuple(np.zeros_like(param) for _ in rule.used_slots(variant))
        for param, variant in zip(params, variants, strict=True)
    ]
    return TensorGroup(rule.rule, rules.storage(rule, "float32"), params, slots, list(variants))


def test_each_tensor_has_its_addresses_and_variant():
    plain, _, raw = rules.variants(Adam)
    tensors = group_of(Adam, [plain, plain, raw], [5, 0, 7])
    own = plan.build(tensors, plan.whole(tensors), [[10, 11, 12], [20, 21, 22], [30, 31, 32, 33]])
    assert [own.kinds[record["variant"]] for record in own.tensors] == [plain, plain, raw]
    assert len(own.kinds) == 2
    assert own.tensors["array"].tolist() == [[10, 11, 12, 0], [20, 21, 22, 0], [30, 31, 32, 33]]
    assert own.chunks["tensor"].tolist() == [0, 2]


def test_variants_that_no_tensor_takes_are_not_compiled():
    variant = rules.variants(SGD)[1]
    tensors = group_of(SGD, [variant], [4])
    assert plan.build(tensors, plan.whole(tensors), [[1]]).kinds == [variant]


def test_a_switch_counts_as_the_position_of_its_choice():
    variant = Adam.Variant(amsgrad=True)
    assert plan.functor(Adam.rule, variant, "float32") == "Adam<float, 1>"
    assert plan.functor(Adam.rule, variant._replace(amsgrad="raw"), "f8") == "Adam<double, 2>"


def test_a_kernel_is_named_by_what_computes_and_by_what_each_array_is_stored_as():
    single, double = np.dtype("f4"), np.dtype("f8")
    storage = Storage(single, double, (single, double, single))
    plain, _, raw = rules.variants(Adam)
    assert plan.kernel_name(Adam.rule, [plain, raw], storage) == (
        "fused_step<float, float, double, Stored<Adam<float, 0>, float, double>, "
        "Stored<Adam<float, 2>, float, double, float>>"
    )


def test_selecting_tensors_keeps_their_arrays_and_variants():
    heavy, none = rules.variants(SGD)[1], rules.variants(SGD)[0]
    tensors = group_of(SGD, [none, heavy, none], [1, 2, 3])
    chosen = tensors.select(np.array([2, 1]))
    assert [param.size for param in chosen.params] == [3, 2]
    assert chosen.variants == [none, heavy]
    assert [len(slots) for slots in chosen.slots] == [0, 1]


@pytest.mark.parametrize(
    ("orders", "dense"),
    [("C", True), ("F", True), ("CC", True), ("CF", False), ("CS", False), ("S", False)],
)
def test_arrays_are_dense_together_if_one_order_fits_all(orders, dense):
    base = np.zeros((4, 6))
    arrays = {"C": base, "F": np.asfortranarray(base), "S": base[:, ::2]}
    assert (common_layout([arrays[order] for order in orders]) != 0) == dense


@every_rule
def test_records_lie_as_the_structs_of_the_kernel(rule):
    compiles(rule, layout_claims(plan.CHUNK, "Chunk"))
    width = rule.rule.width
    for dtype, master, arrays in (("f4", "none", 1), (BFLOAT16, "split", 2)):
        own = np.dtype(dtype)
        record = plan.tensor_record(rule.rule, Storage(own, own, (), master))
        compiles(rule, layout_claims(record, f"Tensor<{width + arrays}>"))
    compiles(rule, layout_claims(plan.ARGUMENT, f"Argument<{width}>"))
    compiles(rule, [f"kThreads == {plan.THREADS}"])


@every_rule
@every_dtype
def test_scalars_lie_as_the_members_of_a_row(rule, dtype):
    functor = plan.functor(rule.rule, rules.variants(rule)[-1], dtype)
    row = f"Row<{functor}, {plan.c_type(dtype)}>"
    record = plan.row_record(rule.rule, dtype)
    claims = [f"(sizeof({row})) == {record.itemsize}"]
    members = [f"frame.{name}" for name in FrameScalars._fields]
    members += [*(f"rule.{name}" for name in rule.Scalars._fields), "steps"]
    for name, member in zip(record.names, members, strict=True):
        claims.append(
            f"(__builtin_offsetof(decltype({row}{{}}), {member})) == {record.fields[name][1]}"
        )
    compiles(rule, claims)


def test_a_rule_may_call_a_scalar_as_the_frame_calls_one():
    rule = dataclasses.replace(SGD.rule, Scalars=FrameScalars)
    assert plan.row_record(rule, "float32").itemsize == 4 * (2 * len(FrameScalars._fields) + 1)


@every_rule
def test_used_slots_are_those_of_the_functor(rule):
    claims = []
    for variant in rules.variants(rule):
        functor = plan.functor(rule.rule, variant, "float32")
        claims.append(f"({functor}::used) == {len(rule.used_slots(variant))}")
        claims.append(f"({functor}::slots) == {rule.rule.width}")
    compiles(rule, claims)


def test_a_false_claim_does_not_compile():
    with pytest.raises(RuntimeError, match="static assertion failed"):
        compiles(SGD, ["kThreads == 1"])
