"""Claims about kernel text, that the C++ compiler checks."""

from __future__ import annotations

from lucid_gpu.execution import strided
from tests.emulation.compiler import Compiler


def compiles(rule, assertions):
    """Compile the rule's text with static assertions behind it; raises if one does not hold."""
    compiles_text(strided.source(rule.rule), assertions)


def compiles_text(text, assertions):
    """The same for any text."""
    checks = "\n".join(f'static_assert({claim}, "");' for claim in assertions)
    entries = {"checked": f'{checks}\nextern "C" void checked() {{}}'}
    Compiler().library(text, entries)


def layout_claims(record, struct):
    claims = [f"(sizeof({struct})) == {record.itemsize}"]
    for name in record.names:
        dtype, offset = record.fields[name][:2]
        claims.append(f"(__builtin_offsetof({struct}, {name})) == {offset}")
        claims.append(f"(sizeof({struct}::{name})) == {dtype.itemsize}")
    return claims
