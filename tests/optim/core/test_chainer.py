"""Files of Chainer, loaded here. The numbers are those of Chainer 7.8.1."""

from __future__ import annotations

import io

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim import chainer

MOMENTS = {"m": [0.028, 0.01875], "v": [0.00032193775, 0.0001623650625]}
BY_ADAM = ([0.8418420352773465, -1.8951650565593532], [0.7200831275892133, -2.0479436035637124])
BY_MOMENTUM = ([0.902, -1.98125], [0.754408, -2.1634812500000002])

CASES = {
    "SGD": (optim.SGD, {"lr": 0.1}, {}, [0.965, -2.015], [0.955, -2.075]),
    "MomentumSGD": (
        optim.SGD,
        {"lr": 0.1, "momentum": 0.9},
        {"v": [-0.028, -0.01875]},
        *BY_MOMENTUM,
    ),
    "CorrectedMomentumSGD": (
        optim.SGD,
        {"lr": 0.1, "momentum": 0.9},
        {"v": [-0.28, -0.1875]},
        *BY_MOMENTUM,
    ),
    "AdaDelta": (
        optim.Adadelta,
        {"rho": 0.95},
        {
            "msg": [0.014750000000000013, 0.007795312500000007],
            "msdx": [1.378435388752912e-06, 2.4676434000876067e-06],
        },
        [0.9971480190802733, -2.0030119206038197],
        [0.9956285266351377, -2.0111865839838723],
    ),
    "AdaGrad": (
        optim.Adagrad,
        {"lr": 0.1, "eps": 1e-8},
        {"h": [0.3225, 0.1625]},
        [0.9271123429335608, -2.011559909163471],
        [0.9017807661501784, -2.103433771670893],
    ),
    "RMSprop": (
        optim.RMSprop,
        {"lr": 0.1},
        {"ms": [0.003169000000000003, 0.0016115625000000014]},
        [0.2713741766301697, -2.120306636953862],
        [0.016046797176333616, -3.0441775056230105],
    ),
    "RMSpropGraves": (
        optim.RMSprop,
        {"lr": 0.01, "alpha": 0.95, "eps": 1e-4, "momentum": 0.9},
        {
            "n": [0.014750000000000013, 0.007795312500000007],
            "g": [0.015687500000000014, 0.008468750000000008],
            "delta": [-0.02689733688346506, -0.012528566221610655],
        },
        [0.9067199593179466, -1.9436342103950683],
        [0.7764833551278137, -2.0732584020753313],
    ),
    "Adam": (optim.Adam, {"lr": 0.1}, MOMENTS, *BY_ADAM),
    "AdamW": (optim.AdamW, {"lr": 0.1, "weight_decay": 0.0}, MOMENTS, *BY_ADAM),
    "AMSGrad": (optim.Adam, {"lr": 0.1}, {**MOMENTS, "vhat": MOMENTS["v"]}, *BY_ADAM),
}
"""Class, options, the arrays after three steps, the parameter then and three steps later."""

GRADIENTS = [(0.3, 0.5), (0.2, -0.1), (-0.4, 0.2)]


def file(arrays, path="", name="l1/W", count=3):
    """What `save_npz` makes of an optimizer of one parameter."""
    content = {"t": count, "epoch": 0, f"{name}/t": count}
    content |= {f"{name}/{key}": np.array(value) for key, value in arrays.items()}
    stream = io.BytesIO()
    np.savez(stream, **{f"{path}{key}": value for key, value in content.items()})
    stream.seek(0)
    return np.load(stream)


@pytest.mark.parametrize("path", ["", "updater/optimizer:main/"], ids=["model", "trainer"])
@pytest.mark.parametrize("algorithm", CASES)
def test_a_run_goes_on_as_in_chainer(algorithm, path):
    rule, options, arrays, data, later = CASES[algorithm]
    param = Parameter(np.array(data))
    optimizer = rule([param], **options)
    lr = options.get("lr")
    optimizer.load_state_dict(chainer.translate(file(arrays, path), algorithm, lr, path))
    assert optimizer.state[param]["step"] == 3
    for gradient in GRADIENTS:
        param.grad = np.array(gradient)
        optimizer.step()
    np.testing.assert_allclose(param.numpy(), later, rtol=2e-6)


def test_every_class_that_it_translates_has_a_case():
    assert set(CASES) == set(chainer.SLOTS)


@pytest.mark.parametrize("algorithm", chainer.OTHERS)
def test_classes_without_a_counterpart_are_refused(algorithm):
    with pytest.raises(ValueError, match=f"^{algorithm} of Chainer has no counterpart here: .*; b"):
        chainer.translate(file({}), algorithm)


def test_parameters_are_matched_by_their_paths():
    saved = {"W/t": 1, "W/h": np.array([1.0]), "l1/b/t": 2, "l1/b/h": np.array([2.0])}
    params = [Parameter(np.zeros(1), name=name) for name in ("l1/b", "W")]
    optimizer = optim.Adagrad(params)
    optimizer.load_state_dict(chainer.translate({"t": 2, "epoch": 0, **saved}, "AdaGrad"))
    assert [optimizer.state[param]["sum"].tolist() for param in params] == [[2.0], [1.0]]
    assert [optimizer.state[param]["step"] for param in params] == [2, 1]


def test_a_parameter_that_has_not_stepped_has_no_state():
    translated = chainer.translate(file({}, count=0), "Adam")
    assert translated["state"] == {0: {}}


def test_a_learning_rate_is_needed_where_the_momentum_holds_it():
    with pytest.raises(ValueError, match="momentum of MomentumSGD was saved times lr: pass lr"):
        chainer.translate(file({"v": [1.0]}), "MomentumSGD")


@pytest.mark.parametrize(("lr", "error"), [(0, ValueError), (np.nan, ValueError), ("1", TypeError)])
def test_a_learning_rate_that_is_none_is_refused(lr, error):
    with pytest.raises(error, match=r"^lr must be"):
        chainer.translate(file({"v": [1.0]}), "MomentumSGD", lr)


@pytest.mark.parametrize(
    ("saved", "algorithm", "path", "error", "text"),
    [
        ([], "Adam", "", TypeError, "mapping, not a list: pass numpy.load"),
        (file({}), "Adamax", "", ValueError, "one of SGD, MomentumSGD, .*, not 'Adamax'"),
        (file({"h": [1.0]}), "Adam", "", ValueError, "of 'l1/W' there is h, but Adam keeps m, v"),
        (file({"h": [1.0]}), "SGD", "", ValueError, "there is h, but SGD keeps none"),
        (file({"h": [1.0]}), "AdaGrad", "model/", ValueError, "no parameter below path 'model/'"),
    ],
)
def test_what_it_cannot_translate_is_refused(saved, algorithm, path, error, text):
    with pytest.raises(error, match=text):
        chainer.translate(saved, algorithm, path=path)
