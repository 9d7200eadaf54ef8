from itertools import chain

import pytest

from benchmarks import workloads
from benchmarks.workloads import Workload


@pytest.mark.parametrize(
    ("workload", "tensors", "parameters"),
    [
        (workloads.resnet50(), 161, 25_557_032),
        (workloads.gpt2("small", 12, 768), 148, 124_439_808),
        (workloads.gpt2("xl", 48, 1600), 580, 1_557_611_200),
        (workloads.lora(), 256, 8_388_608),
        (workloads.tensors_of_1000(5000), 5000, 5_000_000),
        (workloads.one_tensor(25), 1, 33_554_432),
    ],
    ids=lambda value: value.name if isinstance(value, Workload) else None,
)
def test_shapes_add_up_to_the_published_counts(workload, tensors, parameters):
    assert len(workload.shapes) == tensors
    assert workload.parameters == parameters


def test_groups_share_out_every_tensor():
    work = Workload("", ((1,),) * 7).in_groups(3)
    assert sorted(chain(*work.dealt([*"abcdefg"]))) == [*"abcdefg"]
    assert [len(group) for group in work.dealt([*"abcdefg"])] == [3, 2, 2]


def test_a_tiny_workload_keeps_name_and_groups_that_it_can_fill():
    tiny = workloads.resnet50().in_groups(64).tiny()
    assert tiny.name == "ResNet-50, 64 groups"
    assert tiny.parameters < 2000
    assert all(tiny.dealt(list(tiny.shapes)))


def test_a_name_carries_its_exponent():
    assert workloads.one_tensor(28).name == "one tensor of 2²⁸"
