from collections.abc import Iterator

import pytest

from lucid_gpu import set_cpu_code


@pytest.fixture(scope="package", autouse=True)
def code_as_it_was() -> Iterator[None]:
    """Forget what the contenders choose."""
    yield
    set_cpu_code(None)
