"""The room opens lightly: its modules are imported when they are named."""

import subprocess
import sys

import pytest

from inversefed import zoo


def test_the_list_of_modules_is_true():
    assert [getattr(zoo, name).__name__ for name in zoo.__all__] == [f"inversefed.zoo.{name}" for name in zoo.__all__]
    with pytest.raises(AttributeError, match="no attribute 'nets'"):
        _ = zoo.nets


def test_importing_the_room_does_not_import_torchvision():
    code = "import sys, inversefed.zoo; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
