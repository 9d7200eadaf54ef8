"""The work that optimizers are compared on: shapes of real models, built from their formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

Shape: TypeAlias = tuple[int, ...]

QUICK_TENSORS, QUICK_ELEMENTS = 9, 60


@dataclass(frozen=True)
class Workload:
    """Tensors to step.

    Attributes:
        name: what the table calls it.
        shapes: of the tensors.
        groups: into how many groups of the same size they are dealt.
        note: what a reader must know of it.
    """

    name: str
    shapes: tuple[Shape, ...]
    groups: int = 1
    note: str = ""

    @property
    def parameters(self) -> int:
        """How many elements are updated."""
        return sum(map(math.prod, self.shapes))

    def in_groups(self, groups: int) -> Workload:
        """Return the same tensors in another number of groups."""
        plural = "s" if groups > 1 else ""
        return replace(self, name=f"{self.name}, {groups} group{plural}", groups=groups)

    def tiny(self) -> Workload:
        """Return a few tensors of a few elements under the same name."""
        shapes = self.shapes[:: max(1, len(self.shapes) // QUICK_TENSORS)]
        return replace(
            self,
            shapes=tuple((min(math.prod(shape), QUICK_ELEMENTS),) for shape in shapes),
            groups=min(self.groups, len(shapes)),
        )

    def dealt(self, tensors: list[Any]) -> list[list[Any]]:
        """Return one item per tensor as one list per group."""
        return [tensors[group :: self.groups] for group in range(self.groups)]


@dataclass(frozen=True)
class Rule:
    """An optimizer with its options, in this package's names."""

    name: str
    optimizer: str = "Adam"
    options: dict[str, Any] = field(default_factory=dict)


ADAM = Rule("Adam")
MOMENTUM = Rule("SGD with momentum", "SGD", {"momentum": 0.9})

SWITCHES = (
    ADAM,
    Rule("Adam, L2 decay", options={"weight_decay": 0.01}),
    Rule("AdamW", options={"weight_decay": 0.01, "decoupled_weight_decay": True}),
    Rule("Adam, amsgrad", options={"amsgrad": True}),
    Rule("Adam, amsgrad raw", options={"amsgrad": "raw"}),
    Rule("Adam, maximize", options={"maximize": True}),
    Rule("SGD", "SGD"),
    MOMENTUM,
    Rule("SGD, Nesterov", "SGD", {"momentum": 0.9, "nesterov": True}),
    Rule("SGD, dampening", "SGD", {"momentum": 0.9, "dampening": 0.5}),
    Rule("SGD, L2 decay", "SGD", {"momentum": 0.9, "weight_decay": 0.01}),
    Rule(
        "SGD, decoupled decay",
        "SGD",
        {"momentum": 0.9, "weight_decay": 0.01, "decoupled_weight_decay": True},
    ),
    Rule("SGD, maximize", "SGD", {"momentum": 0.9, "maximize": True}),
)


def one_tensor(exponent: int) -> Workload:
    """Return a single vector of a power of two elements."""
    digits = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return Workload(f"one tensor of 2{digits}", ((1 << exponent,),))


def tensors_of_1000(count: int) -> Workload:
    """Return vectors of 1000 elements."""
    name = "one tensor of 1000" if count == 1 else f"{count} tensors of 1000"
    return Workload(name, ((1000,),) * count)


def resnet50() -> Workload:
    """Return ResNet-50 with 1000 classes: 161 tensors, 25.6 M elements.

    Four stages of bottleneck blocks, each 1×1, 3×3, 1×1 with batch norms (He et al. 2015).
    """
    return Workload("ResNet-50", tuple(_resnet50_shapes()))


def _resnet50_shapes() -> Iterator[Shape]:
    def convolution(outputs: int, inputs: int, kernel: int) -> Iterator[Shape]:
        yield outputs, inputs, kernel, kernel
        yield from [(outputs,)] * 2  # batch norm: weight and bias

    yield from convolution(64, 3, 7)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            yield from convolution(width, inputs, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, inputs, 1)
            inputs = 4 * width
    yield 1000, inputs
    yield (1000,)


def gpt2(name: str, layers: int, width: int, note: str = "") -> Workload:
    """Return a GPT-2 with tied output embedding (Radford et al. 2019).

    Twelve layers of width 768 make the small one: 148 tensors, 124 M elements. 48 of 1600 make
    the largest: 580 tensors, 1.56 G elements.
    """
    block: list[Shape] = [
        *[(width,)] * 2,
        (width, 3 * width),
        (3 * width,),
        (width, width),
        (width,),
        *[(width,)] * 2,
        (width, 4 * width),
        (4 * width,),
        (4 * width, width),
        (width,),
    ]
    shapes = [(50257, width), (1024, width), *block * layers, *[(width,)] * 2]
    return Workload(name, tuple(shapes), note=note)


def lora() -> Workload:
    """Return a LoRA fine-tune of rank 8 on q, k, v and o of 32 layers of width 4096 (Hu 2021)."""
    return Workload("LoRA, 256 matrices", ((8, 4096), (4096, 8)) * (4 * 32))


def models(device: str) -> list[Workload]:
    """Return the work that the step question compares, the largest first."""
    if device == "cpu":
        scaled = "4 of the 48 layers, so that it fits beside its peers"
        largest = [gpt2("GPT-2 1.5B, 4 layers", 4, 1600, scaled), one_tensor(25)]
    else:
        largest = [gpt2("GPT-2 1.5B", 48, 1600), one_tensor(28)]
    return [
        *largest,
        gpt2("GPT-2 124M", 12, 768),
        resnet50(),
        lora(),
        tensors_of_1000(5000),
        tensors_of_1000(1),
    ]
