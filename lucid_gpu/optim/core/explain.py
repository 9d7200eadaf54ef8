"""explain: how a step will run, in words, without taking one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from lucid_gpu.device.arrays import as_array, device_of
from lucid_gpu.execution import compiled, cpu, plan, streamed

if TYPE_CHECKING:
    from lucid_gpu.optim.core.fused import FusedOptimizer


class Tensor(NamedTuple):
    """A parameter that would step."""

    name: str
    size: int
    variant: Any
    strided: list[str]
    """Which of its arrays keep it from being flattened together with the others."""


def explain(optimizer: FusedOptimizer) -> str:
    """Return how each device and dtype will step: launches, bytes, and slow paths with reasons.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: an option is out of bounds.
    """
    batches: dict[tuple[str, Any], list[Tensor]] = {}
    idle: list[str] = []
    for group in optimizer.param_groups:
        variant = optimizer.variant_of(group)
        for param, name in zip(group["params"], group["param_names"], strict=True):
            data, grad = as_array(param.data), as_array(param.grad)
            if data is None or grad is None:
                idle.append(name)
                continue
            used = optimizer.slots[: optimizer.used_slots(variant)]
            kept = optimizer.state.get(param, {})
            arrays = {"parameter": data, "gradient": grad}
            arrays |= {slot: kept[slot] for slot in used if slot in kept}
            tensor = Tensor(name, data.size, variant, _strided(arrays))
            batches.setdefault((device_of(data), data.dtype), []).append(tensor)
    lines = [
        f"{type(optimizer).__name__}: one step of {sum(map(len, batches.values()))} parameters"
    ]
    for (device, dtype), tensors in batches.items():
        lines += _batch_lines(optimizer, device, dtype, tensors)
    if idle:
        lines.append(f"no gradient, so no step: {_listed(idle)}")
    return "\n".join(lines)


def _batch_lines(
    optimizer: FusedOptimizer, device: str, dtype: Any, tensors: list[Tensor]
) -> list[str]:
    dense = [tensor for tensor in tensors if not tensor.strided]
    strided = [tensor for tensor in tensors if tensor.strided]
    elements = sum(tensor.size for tensor in tensors)
    lines = [f"{device}, {dtype}: {len(tensors)} tensors, {elements:,} elements"]
    if device == "cpu":
        threads = cpu.thread_count()
        code = "NumPy" if compiled.mode() == "numpy" else "compiled code"
        block = cpu.elements_of_a_flat_block(elements)
        lines.append(f"  {code} on {threads} threads, in blocks of {block:,} elements")
    else:
        kinds = sorted({tensor.variant for tensor in dense}, key=repr)
        chunks = sum(-(-tensor.size // plan.CHUNK_ELEMENTS) for tensor in dense)
        name = plan.kernel_name(type(optimizer), kinds, dtype) if chunks else "nothing to do"
        slots = max((optimizer.used_slots(kind) for kind in kinds), default=0)
        if optimizer.state_device is not None and slots:
            launches = f"1 launch for each {streamed.WINDOW_BYTES >> 20} MiB of slots"
        else:
            launches = f"1 launch of {chunks:,} blocks" if chunks else "no launch"
        lines.append(f"  {launches} for {len(dense)} contiguous tensors: {name}")
    for variant, count in Counter(tensor.variant for tensor in tensors).items():
        nbytes = dtype.itemsize * (3 + 2 * optimizer.used_slots(variant))
        switches = ", ".join(f"{k}={v}" for k, v in variant._asdict().items())
        lines.append(f"  {nbytes} bytes moved per element in {count} tensors with {switches}")
        crossing = dtype.itemsize * optimizer.used_slots(variant)
        if optimizer.state_device is not None and device != "cpu" and crossing:
            lines.append(f"    of which {crossing} come from the host, and as many return")
    if strided:
        cost = "updated along their strides" if device == "cpu" else "1 launch each"
        if device != "cpu" and optimizer.state_device is not None:
            cost += ", and the host waits for each"
        lines.append(f"  {len(strided)} tensors are not contiguous, {cost}:")
        lines += [
            f"    {tensor.name!r}: {' and '.join(tensor.strided)}; store a contiguous copy"
            for tensor in strided
        ]
    return lines


def _strided(arrays: dict[str, Any]) -> list[str]:
    """Return why the arrays cannot be flattened together; nothing if they can."""
    if plan.common_layout(list(arrays.values())):
        return []
    reasons = [
        f"the {what} has strides {array.strides}"
        for what, array in arrays.items()
        if not plan.common_layout([array])
    ]
    return reasons or ["its arrays mix C and Fortran order"]


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(repr, names[:8])) + more
