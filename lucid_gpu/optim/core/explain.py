"""explain: a prepared step in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lucid_gpu.device.arrays import address, as_array, device_of, is_cupy
from lucid_gpu.execution import cpu, formats, plan, streamed
from lucid_gpu.execution.rule import BFLOAT16

if TYPE_CHECKING:
    from lucid_gpu.execution.rule import Rule, Storage
    from lucid_gpu.optim.core.parts import Part
    from lucid_gpu.optim.core.prepared import PreparedStep
    from lucid_gpu.optim.core.tensors import Tensor


class _Stepping(NamedTuple):
    """A tensor that has a gradient, and which of its arrays are slow.

    Attributes:
        tensor: the tensor.
        strided: what keeps it from the one launch.
        misaligned: what is not read 16 bytes at a time there.
    """

    tensor: Tensor
    strided: list[str]
    misaligned: list[str]


def described(name: str, step: PreparedStep) -> str:
    """Return how each device and storage will step: launches, bytes, slow paths with reasons.

    Args:
        name: of the optimizer's class.
        step: what it will do.
    """
    count = int(step.has_gradient.sum())
    lines = [f"{name}: one step of {count} parameters", *_measuring_lines(step)]
    for part in step.parts:
        stepping = _stepping(step, part)
        if stepping:
            lines += _part_lines(step, part, stepping)
    pairs = zip(step.inputs.names, step.has_gradient, strict=True)
    idle = [own for own, has_gradient in pairs if not has_gradient]
    if idle:
        lines.append(f"no gradient, so no step: {_listed(idle)}")
    return "\n".join(lines)


def _measuring_lines(step: PreparedStep) -> list[str]:
    """Return what is done with the norm of all gradients, if it is measured."""
    terms = step.terms
    done = []
    if terms.max_norm is not None:
        done.append(f"clipped to the norm {terms.max_norm}")
    if terms.may_skip:
        done.append("skipped unless all elements are finite")
    if terms.telemetry:
        done.append("told by report(), with norms of parameters and of their updates")
    if not done:
        return []
    places = sorted({part.device for part in step.parts})
    gathered = f"  sums of {' and '.join(places)} are gathered on {step.home}"
    waits = ": each step waits for the GPUs" if step.home == "cpu" else ", without a wait"
    own = [gathered + waits] if len(places) > 1 else []
    hands_on = any(part.group.rule.carries for part in step.parts)
    if terms.may_skip and hands_on and step.home != "cpu":
        own.append(
            "  each step waits until it is known whether the one before was skipped: the rule "
            "hands numbers from step to step"
        )
    return [f"gradients are measured first: {', '.join(done)}", *own]


def described_own(name: str, pairs: list[tuple[str, Any]], has_masters: bool) -> str:
    """Return which parameters a step in array code will update.

    Args:
        name: of the optimizer's class.
        pairs: the name and the parameter of each.
        has_masters: whether it keeps the exact values of parameters of 16 bits.
    """
    stepping = [(own, as_array(param.data)) for own, param in pairs if param.grad is not None]
    lines = [f"{name}: one step of {len(stepping)} parameters, in array code"]
    kinds = Counter((device_of(data), data.dtype) for _, data in stepping if data is not None)
    for (device, dtype), count in kinds.items():
        is_exact = has_masters and dtype in formats.HALVES
        beside = "; float32 masters in the slot 'master'" if is_exact else ""
        lines.append(f"{device}, {dtype}: {count} tensors{beside}")
    idle = [own for own, param in pairs if param.grad is None]
    if idle:
        lines.append(f"no gradient, so no step: {_listed(idle)}")
    return "\n".join(lines)


def _stepping(step: PreparedStep, part: Part) -> list[_Stepping]:
    found = []
    grads = step.inputs.gradients()
    for tensor in part.tensors:
        if step.has_gradient[tensor.position]:
            kept = step.slots_of(tensor)
            arrays = {"parameter": tensor.data, "gradient": as_array(grads[tensor.position])}
            arrays |= {slot: kept[slot] for slot in tensor.used if slot in kept}
            strided = _strided(arrays, part.group.orders)
            is_fused = tensor.data.size and not strided and all(map(is_cupy, arrays.values()))
            found.append(_Stepping(tensor, strided, _misaligned(arrays) if is_fused else []))
    return found


def _part_lines(step: PreparedStep, part: Part, stepping: list[_Stepping]) -> list[str]:
    rule, storage = part.group.rule, part.group.storage
    tensors = [each.tensor for each in stepping]
    strided = [each for each in stepping if each.strided]
    elements = sum(tensor.data.size for tensor in tensors)
    lines = [f"{part.device}, {storage.param}: {len(tensors)} tensors, {elements:,} elements"]
    lines += _storage_lines(storage)
    is_hosted = step.is_hosted and part.device != "cpu"
    if part.device == "cpu":
        lines.append(f"  {cpu.described(part.executor)}")
    else:
        dense = [each.tensor for each in stepping if not each.strided]
        lines.append(_launch_line(rule, part, dense, is_hosted))
    for (variant, frame), count in Counter(_kind(step, rule, each) for each in tensors).items():
        lines += _variant_lines(part, variant, frame, count, is_hosted)
    if strided:
        launches = _launches(len(plan.phases(rule)))
        cost = "updated along their strides" if part.device == "cpu" else f"{launches} each"
        if is_hosted:
            cost += ", and the host waits for each"
        lines.append(f"  {len(strided)} tensors are not contiguous, {cost}:")
        lines += [
            f"    {each.tensor.name!r}: {' and '.join(each.strided)}; store a contiguous copy"
            for each in strided
        ]
    misaligned = [each for each in stepping if each.misaligned]
    if misaligned:
        lines.append(f"  {len(misaligned)} tensors have arrays at different alignments:")
        lines += [
            f"    {each.tensor.name!r}: {' and '.join(each.misaligned)} cannot be read 16 bytes at "
            "a time beside the others; store an aligned copy"
            for each in misaligned
        ]
    return lines


def _storage_lines(storage: Storage) -> list[str]:
    """Return what the arrays are stored as, where that is not what computes."""
    if storage.is_uniform:
        return []
    exact = {
        "float32": "float32 masters in the slot 'master'",
        "split": "masters split between the parameter and the slot 'master_low'",
        "none": "no masters" + (", rounded stochastically" if storage.param == BFLOAT16 else ""),
    }[storage.master]
    state = sorted({str(dtype) for dtype in storage.slots})
    rounded = ", rounded stochastically" if BFLOAT16 in storage.slots else ""
    return [f"  gradients {storage.grad}; {exact}; state {' and '.join(state)}{rounded}"]


def _launch_line(rule: Rule, part: Part, dense: list[Tensor], is_hosted: bool) -> str:
    chunks = sum(-(-tensor.data.size // plan.CHUNK_ELEMENTS) for tensor in dense)
    kinds = sorted({tensor.variant for tensor in part.tensors}, key=repr)
    phases = len(plan.phases(rule))
    names = [
        plan.kernel_name(rule, kinds, part.group.storage, phase, part.group.telemetry)
        for phase in range(phases)
    ]
    name = " and ".join(names) if chunks else "nothing to do"
    if is_hosted and any(tensor.used for tensor in part.tensors):
        launches = f"{_launches(phases)} for each {streamed.WINDOW_BYTES >> 20} MiB of slots"
    elif chunks:
        launches = f"{_launches(phases)} of {chunks:,} blocks"
    else:
        launches = "no launch"
    return f"  {launches} for {len(dense)} contiguous tensors: {name}"


def _launches(count: int) -> str:
    return "1 launch" if count == 1 else f"{count} launches"


def _kind(step: PreparedStep, rule: Rule, tensor: Tensor) -> tuple[Any, str]:
    """Return the variant of a tensor, and in words what the frame does ahead of it."""
    group = step.inputs.groups[tensor.group]
    return tensor.variant, f"decay={rule.decay_kind(group)}, maximize={group['maximize']}"


def _variant_lines(part: Part, variant: Any, frame: str, count: int, is_hosted: bool) -> list[str]:
    rule, storage = part.group.rule, part.group.storage
    crossing = sum(dtype.itemsize for dtype in storage.used(rule, variant).values())
    # Beside a float32 master, the parameter itself is written only.
    passes = 1 if storage.master == "float32" else 2
    nbytes = passes * storage.param.itemsize + storage.grad.itemsize + 2 * crossing
    if rule.sums:
        nbytes += _read_again(rule, variant, storage)
        crossing *= len(plan.phases(rule))
    switches = "".join(f"{k}={v}, " for k, v in variant._asdict().items())
    lines = [f"  {nbytes} bytes moved per element in {count} tensors with {switches}{frame}"]
    if is_hosted and crossing:
        lines.append(f"    of which {crossing} come from the host, and as many return")
    return lines


def _read_again(rule: Rule, variant: Any, storage: Storage) -> int:
    """Return how many bytes per element both phases of a rule read."""
    beside = sum(dtype.itemsize for dtype in storage.beside.values())
    exact = beside if storage.master == "float32" else storage.param.itemsize + beside
    slots = sum(dtype.itemsize for dtype in storage.used(rule, variant).values()) - beside
    return exact + (slots if rule.slots_move_first else storage.grad.itemsize)


def _strided(arrays: Mapping[str, Any], orders: int) -> list[str]:
    """Return why the arrays cannot be flattened together in one of the orders, if they cannot."""
    if plan.common_layout(list(arrays.values())) & orders:
        return []
    reasons = [
        f"the {what} has strides {array.strides}"
        for what, array in arrays.items()
        if not plan.common_layout([array]) & orders
    ]
    return reasons or ["its arrays mix C and Fortran order"]


def _misaligned(arrays: Mapping[str, Any]) -> list[str]:
    """Return which arrays the kernel reads element by element, while it reads others as vectors."""
    names = [f"the {what}" for what in arrays]
    addresses = [address(array) for array in arrays.values()]
    itemsizes = [array.itemsize for array in arrays.values()]
    return [names[position] for position in plan.misaligned(addresses, itemsizes)]


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(repr, names[:8])) + more
