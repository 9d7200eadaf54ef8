"""Compiled code for the CPU: the same bits as NumPy, and NumPy wherever there is none."""

import inspect
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.execution import cpu, native
from lucid_gpu.optim import SGD, Adam, FusedOptimizer
from lucid_gpu.optim.fused import FusedOptimizer as Fused

PLAIN = Adam.Variant(False, "none", False)
OPTIONS = {
    "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "momentum": 0.9,
    "decoupled_weight_decay": True, "dampening": 0.1, "dampen_first": True,
}  # fmt: skip


def rules():
    exported = [getattr(optim, name) for name in optim.__all__]
    own = [kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Fused)]
    return [kind for kind in own if "switches" in kind.__dict__ and kind is not FusedOptimizer]


def cases():
    for rule in rules():
        variants = list(itertools.product(*rule.switches.values()))
        for number, choices in enumerate(variants):
            for dtype in (
                ("float32", "float64") if number in (0, len(variants) - 1) else ("float32",)
            ):
                label = "-".join([rule.__name__, *map(str, choices), dtype])
                yield pytest.param(rule, rule.Variant(*choices), np.dtype(dtype), id=label)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache that the tests of this module share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def fresh(kept, monkeypatch):
    """Forget builds, and put new ones where the tests may."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    forget = native.build.cache_clear
    forget()
    yield
    forget()


def arrays(rule, dtype, count=1003):
    """Return parameter, gradient and slots, with zeros, infinities and denormal numbers in them."""
    draw = np.random.default_rng(1)
    own = [draw.standard_normal(count).astype(dtype) for _ in range(2)]
    own += [np.abs(draw.standard_normal(count)).astype(dtype) for _ in rule.slots]
    tiny = np.finfo(dtype).smallest_subnormal
    own[0][:5] = 0, np.inf, -np.inf, tiny, -0.0
    own[1][2:8] = 0, -0.0, tiny, np.inf, -tiny, np.nan
    return own


@pytest.mark.parametrize(("rule", "variant", "dtype"), [*cases()])
def test_compiled_code_agrees_with_numpy_to_the_bit(rule, variant, dtype):
    scalars = rule.Scalars(*(np.array(k, dtype) for k in rule.scalars(OPTIONS, 3)))
    scratch = [np.empty(1003, dtype) for _ in range(rule.scratch)]
    compiled, expected = arrays(rule, dtype), arrays(rule, dtype)
    native.build(rule, variant, dtype).wait()(scalars, variant, *compiled, *scratch)
    with np.errstate(all="ignore"):
        rule.update(scalars, variant, *expected, *scratch)
    for ours, theirs in zip(compiled, expected, strict=True):
        is_nan = np.isnan(theirs)
        np.testing.assert_array_equal(np.isnan(ours), is_nan)
        assert ours[~is_nan].tobytes() == theirs[~is_nan].tobytes()


def trained(count, steps, dtype=np.float32):
    """Return what is left of a parameter after some steps of Adam."""
    draw = np.random.default_rng(2)
    param = Parameter(draw.standard_normal(count).astype(dtype))
    optimizer = Adam([param])
    for _ in range(steps):
        param.grad = draw.standard_normal(count).astype(dtype)
        optimizer.step()
    return param.numpy().tobytes()


def test_it_takes_over_once_the_work_is_worth_it(monkeypatch):
    asked = []
    real = native.build
    monkeypatch.setattr(native, "WORTHWHILE", 3000)
    monkeypatch.setattr(native, "build", lambda *variant: asked.append(variant) or real(*variant))
    trained(1000, 2)
    assert not asked
    trained(1000, 3)
    assert [rule for rule, *_ in asked] == [Adam]


def test_taking_over_does_not_show_in_the_bits(monkeypatch):
    expected = trained(5000, 8)
    monkeypatch.setattr(native, "WORTHWHILE", 4 * 5000)
    real = native.build
    waited = []

    def build(*variant):
        found = real(*variant)
        waited.append(found.wait())
        return found

    monkeypatch.setattr(native, "build", build)
    assert trained(5000, 8) == expected
    assert all(waited)
    assert len(waited) == 5


def test_without_a_compiler_numpy_goes_on(monkeypatch):
    expected = trained(100, 2)
    monkeypatch.setattr(native, "WORTHWHILE", 0)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native.compiler() is None
    assert trained(100, 2) == expected
    assert "never" in native.outlook()


def test_the_user_can_keep_it_to_numpy(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_CPU", "numpy")
    assert native.update_of(Adam, PLAIN, np.dtype(np.float32), 1 << 60) is Adam.update
    assert "'numpy'" in native.outlook()


def test_the_user_can_have_it_from_the_first_step_on(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_CPU", "compiled")
    assert native.update_of(Adam, PLAIN, np.dtype(np.float32), 0) is not Adam.update
    assert "at the first step" in native.outlook()


def test_an_unknown_mode_is_an_error_that_lists_the_known(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_CPU", "fast")
    with pytest.raises(ValueError, match="auto, numpy, compiled, not 'fast'"):
        trained(3, 1)


@pytest.mark.parametrize(
    "script", ["exit 1", "cat > /dev/null; exit 1", "cat > /dev/null; echo no > $FRESH"]
)
def test_a_compiler_that_fails_leaves_numpy(script, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    for_last = "for FRESH; do :; done\n"
    broken.write_text(f"#!/bin/sh\n{for_last}{script}\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    build = native.build(SGD, SGD.Variant("none", "none", False), np.dtype(np.float32))
    assert build.wait() is None


def test_a_cache_that_cannot_be_written_leaves_numpy(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    build = native.build(SGD, SGD.Variant("none", "none", False), np.dtype(np.float32))
    assert build.wait() is None


def test_the_next_process_finds_what_was_compiled(kept, monkeypatch):
    variant, dtype = SGD.Variant("heavy_ball", "none", False), np.dtype(np.float32)
    native.build(SGD, variant, dtype).wait()
    native.build.cache_clear()
    monkeypatch.setattr(native.subprocess, "Popen", lambda *_, **__: pytest.fail("compiled again"))
    assert native.build(SGD, variant, dtype).update() is not None
    assert {file.suffix for file in Path(kept, "lucid_gpu").iterdir()} == {".so"}


def test_elements_that_are_not_aligned_are_left_to_numpy(monkeypatch):
    variant, dtype = SGD.Variant("none", "none", False), np.dtype(np.float32)
    update = native.build(SGD, variant, dtype).wait()
    param = np.zeros(401, np.uint8)[1:].view(np.float32)
    scalars = SGD.Scalars(*(np.array(k, dtype) for k in (0, 0, 1, 0.5)))
    update(scalars, variant, param, np.ones(100, dtype), None, *np.empty((2, 100), dtype))
    assert param.tolist() == [-0.5] * 100


def test_blocks_of_strided_arrays_are_left_to_numpy(monkeypatch):
    monkeypatch.setattr(native, "WORTHWHILE", 0)
    monkeypatch.setattr(cpu, "PACKED_ELEMENTS", 0)
    native.build(SGD, SGD.Variant("none", "none", False), np.dtype(np.float32)).wait()
    whole = np.zeros((6, 8), np.float32)
    param = Parameter(whole[::2, ::2])
    param.grad = np.ones((3, 4), np.float32)
    SGD([param], lr=0.5).step()
    assert whole.sum() == -0.5 * 12
    assert (whole[::2, ::2] == -0.5).all()


def test_the_compiled_code_is_the_users_own(kept):
    folder = native.cache_directory()
    assert folder.stat().st_uid == os.getuid()
    assert folder.stat().st_mode & 0o077 == 0
