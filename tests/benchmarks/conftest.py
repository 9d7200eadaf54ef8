from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def mode_as_it_was() -> Iterator[None]:
    """Put back the mode that the contenders set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUCID_GPU_CPU", "numpy")
        yield
