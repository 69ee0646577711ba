import pytest

from tests.support import tiny_base as tiny


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("tiny-base"))
