"""What steps on the CPU changes in the middle of a run, and no bit with it."""

import gc
import weakref

import numpy as np
import pytest

import lucid_gpu
from lucid_gpu import Parameter
from lucid_gpu.execution import building, threads
from lucid_gpu.optim import SGD, Adam
from tests.execution.compilers import failing, waiting

every_code = pytest.mark.parametrize("code", ["numpy", "compiled"])


@pytest.fixture
def automatic(monkeypatch):
    """Choose compiled code as soon as it is there."""
    monkeypatch.setenv("LUCID_GPU_CPU", "auto")


@pytest.fixture(autouse=True)
def unchosen():
    """Forget the choices of a test."""
    yield
    lucid_gpu.set_cpu_code(None)


def executor(optimizer):
    (part,) = optimizer._prepared.parts
    return part.executor


class Run:
    """Some parameters that are trained, the same in every run."""

    SHAPES = ((3000,), (5,), (), (3, 4), (0,))

    def __init__(self):
        self.draw = np.random.default_rng(2)
        self.params = [Parameter(self.values(shape)) for shape in self.SHAPES]
        self.optimizer = Adam(self.params)

    def values(self, shape):
        return np.array(self.draw.standard_normal(shape), np.float32)

    def step(self, change=lambda params: None):
        for param in self.params:
            param.grad = self.values(param.shape)
        change(self.params)
        self.optimizer.step()

    def result(self):
        slots = [own[name] for own in self.optimizer.state.values() for name in sorted(own)]
        arrays = [np.asarray(array) for array in [*(p.data for p in self.params), *slots]]
        return b"".join(array.tobytes() for array in arrays)


def outcome(code, *changes):
    """Return what is left of a run, each of whose steps a function may change."""
    lucid_gpu.set_cpu_code(code)
    run = Run()
    for change in changes:
        run.step(change)
    return run.result()


def test_code_that_comes_in_the_middle_of_a_run_changes_no_bit(use, automatic):
    compiler = use(waiting)
    run, found = Run(), []
    for number in range(6):
        run.step()
        found.append(executor(run.optimizer).describe())
        if number == 2:
            compiler.open()
            building.wait()
    assert found == ["NumPy, for compiled code is still being built"] * 3 + ["compiled code"] * 3
    assert run.result() == outcome("numpy", *[lambda params: None] * 6)


def test_the_first_step_does_not_wait_for_the_compiler(use, automatic):
    use(waiting)
    Run().step()
    (build,) = building._builds.values()
    assert build.is_pending


@pytest.mark.parametrize("command", ["no-such-compiler", "false", "true"])
def test_numpy_goes_on_where_there_is_no_code(fresh, automatic, monkeypatch, command):
    monkeypatch.setenv("CXX", command)
    run = Run()
    for _ in range(4):
        run.step()
        building.wait()
    assert executor(run.optimizer).describe().startswith("NumPy, for ")
    assert run.result() == outcome("numpy", *[lambda params: None] * 4)


def test_a_compiler_that_fails_is_run_once(use, automatic):
    compiler = use(failing)
    run = Run()
    for _ in range(3):
        run.step()
        building.wait()
    assert compiler.count == 1


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_the_error_says_what_to_do_and_nothing_steps(monkeypatch):
    lucid_gpu.set_cpu_code("compiled")
    monkeypatch.setenv("CXX", "no-such-compiler")
    param = Parameter([1.0])
    param.grad = param.data.copy()
    optimizer = SGD([param], momentum=0.9)
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler was found: install g\+\+"):
        optimizer.step()
    assert param.data.tolist() == [1.0]
    assert len(optimizer.state) == 0


def test_a_compiler_that_fails_is_quoted(use):
    use(failing)
    lucid_gpu.set_cpu_code("compiled")
    with pytest.raises(RuntimeError, match=r'choose "auto" or "numpy".*\n.*out of sorts'):
        Run().step()


def test_another_choice_counts_from_the_next_step_on_and_changes_no_bit():
    run, found = Run(), []
    for code in ("numpy", "compiled", "compiled", "numpy", "compiled"):
        lucid_gpu.set_cpu_code(code)
        run.step()
        found.append(executor(run.optimizer).describe())
    assert found == ["NumPy", *["compiled code"] * 2, "NumPy", "compiled code"]
    assert run.result() == outcome("numpy", *[lambda params: None] * 5)


def stay(params):
    """Leave all as it is."""


def drop(params):
    params[1].grad = None


def stride(params):
    params[0].grad = np.repeat(params[0].grad, 2)[::2]


def stride_another(params):
    params[3].grad = np.repeat(params[3].grad, 2, axis=1)[:, ::2]


def turn(params):
    params[3].grad = np.asfortranarray(params[3].grad)


def replace(params):
    params[0].data = params[0].data.copy()


def shift(params):
    memory = np.zeros(4 * params[0].size + 1, np.uint8)
    memory[1:].view(np.float32)[:] = params[0].data
    params[0].data = memory[1:].view(np.float32)


def map_file(params):
    params[1].grad = params[1].grad.view(np.memmap)


CHANGES = {
    "a gradient goes and comes": (stay, drop, stay, drop, stay),
    "a gradient comes late": (drop, drop, stay, stay),
    "a gradient is strided": (stay, stride, stay, stride, stride, stay),
    "one gradient is strided, then another": (stay, stride, stride_another, stay),
    "a gradient is in Fortran order": (stay, turn, stay),
    "data is replaced": (stay, replace, stay, stay),
    "data is no longer aligned": (stay, shift, stay, replace, stay),
    "a gradient is a memory map": (map_file, map_file, stay),
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_what_changes_between_steps_does_so_for_compiled_code_too(changes):
    assert outcome("compiled", *changes) == outcome("numpy", *changes)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_nothing_is_prepared_anew_for_it(changes):
    lucid_gpu.set_cpu_code("compiled")
    run = Run()
    run.step(changes[0])
    prepared, before = run.optimizer._prepared, executor(run.optimizer)
    for change in changes[1:]:
        run.step(change)
    assert run.optimizer._prepared is prepared
    assert executor(run.optimizer) is before


def test_arrays_that_are_not_contiguous_are_left_to_numpy():
    lucid_gpu.set_cpu_code("compiled")
    whole = np.zeros((6, 8), np.float32)
    params = [Parameter(whole[::2, ::2]), Parameter(np.zeros(3, np.float32))]
    for param in params:
        param.grad = np.ones(param.shape, np.float32)
    SGD(params, lr=0.5).step()
    assert whole.sum() == -0.5 * 12
    assert (whole[::2, ::2] == -0.5).all()
    assert params[1].data.tolist() == [-0.5] * 3


class Foreign:
    """A parameter of another library, which notes no changes."""

    def __init__(self, data, grad):
        self.data, self.grad = data, grad


@every_code
def test_a_parameter_of_another_library_steps(code):
    lucid_gpu.set_cpu_code(code)
    params = [Foreign(np.ones(3, np.float32), None) for _ in range(2)]
    optimizer = SGD(params, lr=0.5)
    for number in range(4):
        params[0].grad = np.full(3, 2.0**-number, np.float32)
        optimizer.step()
    assert params[0].data.tolist() == [1 - 0.5 * (1 + 0.5 + 0.25 + 0.125)] * 3
    assert params[1].data.tolist() == [1.0] * 3


@every_code
def test_gradients_that_take_the_place_of_others_in_memory_are_read(code):
    lucid_gpu.set_cpu_code(code)
    param = Parameter(np.zeros(3, np.float32))
    optimizer, total = SGD([param], lr=1.0), 0.0
    for number in range(100):
        total += number
        param.grad = None
        param.grad = np.full((number % 3 + 1, 3), number, np.float32)[-1]
        optimizer.step()
    assert param.data.tolist() == [-total] * 3


@every_code
def test_a_step_lets_go_of_its_gradients(code):
    lucid_gpu.set_cpu_code(code)
    params = [Parameter(np.zeros(n, np.float32)) for n in (3, 4, 5000)]
    params.append(Parameter(np.zeros((4, 6), np.float32)[:, ::2]))
    for param in params:
        param.grad = np.ones(param.shape, np.float32)
    optimizer = SGD(params)
    for _ in range(2):
        optimizer.step()
    left = [weakref.ref(param.grad) for param in params]
    for param in params:
        param.grad = None
    gc.collect()
    assert [grad() for grad in left] == [None] * 4


@every_code
def test_a_text_that_is_given_a_gradient_later_is_refused(code):
    lucid_gpu.set_cpu_code(code)
    param, text = Parameter(np.ones(3, np.float32)), Parameter("hello", name="words")
    param.grad = np.ones(3, np.float32)
    optimizer = Adam([("w", param), ("words", text)])
    optimizer.step()
    param.grad, text.grad = np.ones(3, np.float32), "world"
    with pytest.raises(TypeError, match="'words' holds a str"):
        optimizer.step()
    assert optimizer.state[param]["step"] == 1


def test_gradients_that_are_replaced_during_a_step_live_until_it_is_done(monkeypatch):
    lucid_gpu.set_cpu_code("compiled")
    param = Parameter(np.zeros(3, np.float32))
    optimizer, alive = SGD([param]), []
    together = threads.together

    def replaced_meanwhile(*arguments):
        grad = weakref.ref(param.grad)
        param.grad = None
        gc.collect()
        alive.append(grad() is not None)
        together(*arguments)

    monkeypatch.setattr(threads, "together", replaced_meanwhile)
    for _ in range(3):
        param.grad = np.ones(3, np.float32)
        optimizer.step()
    assert alive == [True] * 3
