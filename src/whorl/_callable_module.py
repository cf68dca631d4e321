"""A module that can be called like its function of the same name.

`whorl.report` is both a function (`whorl.report([result])`) and a package; the import system binds the package to that
name as soon as anything imports it. So the package itself answers the call.
"""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(module_name: str) -> None:
    """Let a call of the module be a call of its function of the same name."""
    sys.modules[module_name].__class__ = _CallableModule
