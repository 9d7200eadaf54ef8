"""PyTorch's AveragedModel as the oracle of averages."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.averages import Average

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")
swa = torch.optim.swa_utils

ULPS = 2
"""Of the largest that a value has been: PyTorch fuses the multiplications of moving averages."""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decay", [None, 0.9, 0.999, 0.3, 0.0, 1.0])
def test_twenty_averages_are_those_of_pytorch_but_for_rounding(decay, dtype, rng):
    models = rng.normal(size=(20, 1037)).astype(dtype)
    module = torch.nn.ParameterList([torch.from_numpy(models[0].copy())])
    options = {} if decay is None else {"multi_avg_fn": swa.get_ema_multi_avg_fn(decay)}
    theirs, param = swa.AveragedModel(module, **options), Parameter(models[0].copy(), name="w")
    ours = Average([param], decay)
    largest = np.zeros(1037, dtype)
    for model in models:
        param.data[...] = model
        with torch.no_grad():
            module[0].copy_(torch.from_numpy(model))
        ours.update()
        theirs.update_parameters(module)
        their = theirs.module[0].detach().numpy()
        largest = np.maximum(largest, np.abs(model))
        apart = np.abs(ours.averages["w"] - their) / np.spacing(largest)
        assert apart.max() <= ULPS
    assert ours.n_averaged == theirs.n_averaged == 20
