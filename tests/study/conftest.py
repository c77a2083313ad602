"""What the tests of this folder share."""

from pathlib import Path

import pytest

from medcm_cli.haemophilia.virtual import write_study
from tests.helpers import SMALL


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "data"
    write_study(folder, SMALL)
    return folder
