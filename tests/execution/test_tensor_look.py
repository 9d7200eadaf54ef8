"""TensorLook: what compiled code sees of tensors and their gradients."""

from __future__ import annotations

import numpy as np
import pytest

import lucid_gpu
from lucid_gpu.execution.tensor_look import KINDS, Changes, Found, TensorLook

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")

NOTHING = Changes(False, False, False)


@pytest.fixture(autouse=True)
def compiled():
    lucid_gpu.set_cpu_code("compiled")
    yield
    lucid_gpu.set_cpu_code(None)


class Watched:
    """Tensors with gradients, looked at again and again."""

    def __init__(self, *shapes):
        self.tensors = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        self.grads = [torch.ones(shape) for shape in shapes]
        self.found, self.before = Found(len(shapes)), Found(len(shapes))
        self._look = TensorLook(torch.Tensor)
        assert self._look.is_ready()
        self.look()

    def look(self):
        self.found, self.before = self.before, self.found
        return self._look.look(self.tensors, self.grads, self.before, self.found)


def test_addresses_are_those_that_pytorch_tells():
    watched = Watched((2, 3), (), (4,))
    assert watched.found.places.tolist() == [each.data_ptr() for each in watched.tensors]
    assert watched.found.addresses.tolist() == [each.data_ptr() for each in watched.grads]
    assert watched.found.layouts.tolist() == [3, 3, 3]


def test_what_stays_is_said_to_stay():
    watched = Watched((2, 3), (4,))
    assert watched.look() == NOTHING


OTHER_DATA = {
    "elsewhere": lambda data: data.clone(),
    "transposed": lambda data: data.t(),
    "reshaped": lambda data: data.reshape(3, 2),
    "shorter": lambda data: data[:1],
    "of another type": lambda data: data.view(torch.int32),
}


@pytest.mark.parametrize("change", OTHER_DATA)
def test_other_data_are_noticed_even_at_the_same_address(change):
    watched = Watched((2, 3), (4,))
    watched.tensors[0].requires_grad_(False)
    watched.tensors[0].data = OTHER_DATA[change](watched.tensors[0].data)
    assert watched.look().tensors
    differs = (watched.found.places != watched.before.places) | (
        watched.found.prints != watched.before.prints
    )
    assert differs.tolist() == [True, False]


def test_a_gradient_elsewhere_is_noticed():
    watched = Watched((2, 3), (4,))
    watched.grads[1] = watched.grads[1].clone()
    assert watched.look() == Changes(False, True, False)


def test_a_gradient_that_is_gone_is_noticed():
    watched = Watched((2, 3), (4,))
    watched.grads[1] = None
    assert watched.look().layouts
    assert watched.found.layouts.tolist() == [3, 0]
    assert watched.found.addresses[1] == 0


UNLIKE = {
    "transposed": lambda grad: grad.t().contiguous().t(),
    "strided": lambda grad: torch.stack([grad, grad], -1)[..., 0],
    "expanded": lambda grad: grad[:1].expand(2, 3),
    "of another shape": lambda grad: grad.reshape(3, 2),
    "of another type": lambda grad: grad.double(),
    "of half the size": lambda grad: grad.bfloat16(),
    "of another rank": lambda grad: grad.reshape(-1),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_a_gradient_that_is_laid_out_otherwise_is_told_apart(kind):
    watched = Watched((2, 3), (4,))
    watched.grads[0] = UNLIKE[kind](watched.grads[0])
    watched.look()
    assert watched.found.layouts.tolist() == [1, 3]


def test_a_gradient_may_be_asked_to_be_of_another_type_than_its_tensor():
    tensors = [torch.ones(2, 3, dtype=torch.bfloat16) for _ in range(3)]
    grads = [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, 3).half()]
    found, before = (Found(3, [KINDS["float32"], 0, KINDS["float32"]]) for _ in range(2))
    look = TensorLook(torch.Tensor)
    assert look.is_ready()
    look.look(tensors, grads, before, found)
    assert found.layouts.tolist() == [3, 3, 1]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_kinds_are_those_of_dlpack(name):
    found, before = Found(1, [KINDS[name]]), Found(1, [KINDS[name]])
    look = TensorLook(torch.Tensor)
    assert look.is_ready()
    look.look([torch.ones(2)], [torch.ones(2, dtype=getattr(torch, name))], before, found)
    assert found.layouts.tolist() == [3]


def test_strides_of_axes_of_one_element_do_not_matter():
    watched = Watched((3, 1, 2))
    watched.grads[0] = torch.ones(6).as_strided((3, 1, 2), (2, 77, 1))
    watched.look()
    assert watched.found.layouts.tolist() == [3]


def test_a_gradient_between_elements_is_told_apart():
    watched = Watched((2,))
    memory = torch.zeros(12, dtype=torch.uint8).numpy()
    watched.grads[0] = torch.frombuffer(memory.data, dtype=torch.float32, offset=2, count=2)
    watched.look()
    assert watched.found.layouts.tolist() == [1]


@pytest.mark.parametrize(
    "strange", [lambda: torch.eye(2).to_sparse(), lambda: torch.ones(2, device="meta")]
)
def test_what_has_no_memory_raises(strange):
    watched = Watched((2,))
    watched.grads[0] = strange()
    with pytest.raises(RuntimeError):
        watched.look()


def test_it_is_never_ready_without_a_compiler(fresh, monkeypatch):
    monkeypatch.setattr("lucid_gpu.execution.building.compiler", lambda: None)
    lucid_gpu.set_cpu_code("auto")
    look = TensorLook(torch.Tensor)
    assert [look.is_ready(), look.is_ready()] == [False, False]


def test_the_compiler_is_not_waited_for_unless_its_code_was_chosen(fresh):
    lucid_gpu.set_cpu_code("auto")
    look = TensorLook(torch.Tensor)
    assert not look.is_ready()
    lucid_gpu.set_cpu_code("compiled")
    assert look.is_ready()


def test_it_is_not_ready_where_numpy_was_chosen():
    lucid_gpu.set_cpu_code("numpy")
    assert not TensorLook(torch.Tensor).is_ready()


def test_it_is_not_ready_for_tensors_that_offer_no_functions():
    assert not TensorLook(np.ndarray).is_ready() or hasattr(np.ndarray, "__dlpack_c_exchange_api__")
