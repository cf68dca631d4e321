"""`import whorl` and `whorl --help` stay light, and what is public exists."""

import subprocess
import sys

import pytest

import whorl

HEAVY = {"torch", "transformers", "scipy", "sklearn", "plotly", "numpy", "huggingface_hub", "pydantic"}


def heavy_after(statement, heavy):
    code = f"import sys\n{statement}\nprint(*sorted({heavy!r} & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_is_light_and_the_check_can_fail():
    assert heavy_after("import whorl", HEAVY) == []
    assert heavy_after("import decimal", {"decimal"}) == ["decimal"]


def test_command_line_module_is_light():
    assert heavy_after("import whorl.cli.main", HEAVY) == []


def test_reading_and_comparing_need_no_torch():
    assert heavy_after("import whorl; whorl.compare; whorl.fingerprint; whorl.report", {"torch", "transformers"}) == []


POSIX_ONLY = """
import os, pkgutil, importlib, sys
for name in ("pread", "sched_getaffinity", "O_NONBLOCK", "O_CLOEXEC", "geteuid", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
sys.modules.update(dict.fromkeys(("fcntl", "resource", "termios", "grp")))
import whorl
for module in pkgutil.walk_packages(whorl.__path__, "whorl."):
    if not module.name.startswith("whorl.lab"):
        importlib.import_module(module.name)
print(len(sys.modules))
"""


def test_nothing_needs_what_only_some_systems_have():
    done = subprocess.run([sys.executable, "-c", POSIX_ONLY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", whorl.__all__)
def test_public_names_exist(name):
    assert getattr(whorl, name) is not None
    assert name in dir(whorl)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        whorl.nothing  # noqa: B018
