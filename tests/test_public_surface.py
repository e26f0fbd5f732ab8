"""What is public is listed, importable and documented with an example; what is internal has a docstring."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from types import ModuleType

import pytest

import normwise
from normwise.errors import MissingDependencyError

RECORDS = ("normwise.records", "normwise.findings", "normwise.outcomes")


def public_modules() -> list[str]:
    found = ["normwise"]
    for info in pkgutil.walk_packages(normwise.__path__, "normwise."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            found.append(info.name)
    return found


def imported(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations in the imports of other packages
            return importlib.import_module(name)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        pytest.skip("Triton is not installed: its kernels cannot be imported")


@pytest.mark.parametrize("name", public_modules())
def test_all_lists_what_exists(name: str) -> None:
    module = imported(name)
    for public in getattr(module, "__all__", []):
        assert getattr(module, public) is not None, f"{name}.{public} is listed and missing"


def documented(module: ModuleType) -> list[tuple[str, object]]:
    """What a module offers: what it lists, which is public, or else what it defines, which is internal."""
    listed = getattr(module, "__all__", None)
    names = listed or [n for n, t in vars(module).items() if not n.startswith("_") and home(t) == module.__name__]
    things = [(n, getattr(module, n)) for n in names]
    return [
        (n, t) for n, t in things if home(t).startswith("normwise") and (inspect.isclass(t) or inspect.isfunction(t))
    ]


def home(thing: object) -> str:
    return getattr(thing, "__module__", None) or ""


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    module = imported(name)
    for public, thing in documented(module):
        text = inspect.getdoc(thing) or ""
        assert text, f"{name}.{public} has no docstring"
        own = thing.__doc__ or ""
        is_record = thing.__module__.startswith(RECORDS) and inspect.isclass(thing)
        is_protocol = getattr(thing, "_is_protocol", False)
        # Commands carry their examples in the help text, and the module level of the command line is not a library.
        if (
            not hasattr(module, "__all__")
            or name == "normwise.kernels"
            or is_record
            or is_protocol
            or thing.__module__.endswith(("cli", "commands"))
        ):
            continue
        assert ">>>" in own, f"{thing.__module__}.{public} has no example in its docstring"
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert "Args:" in own or not signature.parameters, (
                f"{thing.__module__}.{public} does not tell its arguments"
            )
            silent = signature.return_annotation in ("None", None)
            assert "Returns:" in own or "Yields:" in own or silent, f"{thing.__module__}.{public}: what does it return?"


def test_dir_and_lazy_names_agree() -> None:
    assert set(normwise.__all__) <= set(dir(normwise))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = normwise.nothing
