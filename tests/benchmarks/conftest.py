from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def compiled_code_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what ours compiles out of the user's cache, and put its mode back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LUCID_GPU_CPU", "auto")
        yield
