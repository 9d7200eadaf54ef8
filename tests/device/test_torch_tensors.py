"""Tensors of PyTorch as arrays, and what is said of those that cannot be."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lucid_gpu.device import gpu, torch_tensors
from lucid_gpu.device.arrays import as_array, kind_of

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")


def test_nothing_is_a_tensor_where_pytorch_was_not_imported(monkeypatch):
    tensor = torch.ones(2)
    monkeypatch.delitem(sys.modules, "torch")
    assert not torch_tensors.is_tensor(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0, dtype=torch.float64).reshape(2, 3).t(),
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.nn.Parameter(torch.ones(3)),
        torch.ones(3, requires_grad=True) * 2,
        torch.ones(1).expand(4),
    ],
)
def test_an_array_shares_the_memory_of_its_tensor(tensor):
    array = as_array(tensor)
    assert type(array) is np.ndarray
    assert array.shape == tuple(tensor.shape)
    if array.size:
        assert [step // array.itemsize for step in array.strides] == list(tensor.stride())
        assert array.ctypes.data == tensor.data_ptr()


def test_bfloat16_has_the_dtype_of_that_name():
    array = as_array(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert array.dtype.name == "bfloat16"
    assert array.astype(np.float32).tolist() == [1.5, -2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int16])
def test_an_array_and_its_tensor_share_memory_on_the_way_back_too(dtype):
    tensor = torch.tensor([1, 2, 3], dtype=dtype)
    back = torch_tensors.from_array(as_array(tensor))
    assert back.dtype is dtype
    back.zero_()
    assert not tensor.any()


STRANGE = {
    "of layout sparse_coo": lambda: torch.eye(2).to_sparse(),
    "of layout sparse_csr": lambda: torch.eye(2).to_sparse_csr(),
    "on device meta": lambda: torch.ones(2, device="meta"),
    "of torch.quint8": lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.quint8),
}


@pytest.mark.filterwarnings(
    "ignore:Sparse CSR", "ignore:.*quantize.*", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("words", STRANGE)
def test_what_cannot_be_an_array_is_called_by_what_it_is(words):
    tensor = STRANGE[words]()
    assert as_array(tensor) is None
    assert words in kind_of(tensor)


def test_a_tensor_on_a_gpu_without_cupy_says_what_is_missing(without_cupy):
    where = SimpleNamespace(type="cuda")
    tensor = SimpleNamespace(layout=torch.strided, device=where, dtype=torch.float32)
    tensor.detach = lambda: tensor
    with pytest.raises(gpu.DeviceUnavailableError, match="CuPy cannot be imported"):
        torch_tensors.as_array(tensor)


def test_a_tensor_that_is_given_other_data_has_another_place():
    param = torch.nn.Parameter(torch.ones(2, 3))
    places = [torch_tensors.place(param)]
    for data in (param.data.clone(), param.data.t(), param.data.double()):
        param.data = data
        places.append(torch_tensors.place(param))
    assert len(set(places)) == 4


def test_a_sparse_tensor_has_no_place():
    assert torch_tensors.place(torch.eye(2).to_sparse()) is None


def test_a_write_that_is_noted_counts():
    param = torch.nn.Parameter(torch.ones(2))
    torch_tensors.note_writes([param])
    assert param._version == 1


def test_writes_of_others_are_told_from_those_that_are_expected():
    tensors = [torch.ones(2), torch.ones(3)]
    versions = torch_tensors.Versions(tensors)
    assert not versions.have_changed()
    torch_tensors.note_writes(tensors)
    versions.expect(2)
    assert not versions.have_changed()
    tensors[1].zero_()
    assert versions.have_changed()
    assert not versions.have_changed()
