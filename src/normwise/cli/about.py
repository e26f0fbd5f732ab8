"""``normwise methods | env``: what there is."""

from __future__ import annotations

import json
import platform
import re
from contextlib import suppress
from importlib import metadata
from typing import Annotated

from cyclopts import App, Parameter

from normwise._version import __version__

# Not among the requirements of any extra.
_WORKED_WITH = (
    *("accelerate", "lightning", "mlflow", "mlflow-skinny", "numpy", "pytorch-lightning", "timm", "torchvision"),
    *("transformers", "wandb"),
)

app = App(name="about", help="What there is.")


@app.command
def methods() -> None:
    """List the methods that can be compared, and the paper of each."""
    from normwise.methods import METHODS

    width = max(map(len, METHODS))
    for method in METHODS.values():
        print(f"{method.name:<{width}}  {method.summary}" + (f" ({method.paper})" if method.paper != "-" else ""))


@app.command
def env(*, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """Say which versions and kernels are in use here, and how to get the native ones.

    For a bug report: normwise env --json

    Args:
        as_json: Print JSON, with the system and the versions of the packages that normwise works with.
    """
    from normwise import kernels

    facts = {"normwise": __version__, **kernels.describe_environment()}
    if as_json:
        import torch

        facts |= {"accelerator": str(torch.accelerator.current_accelerator()), "system": platform.platform()}
        print(json.dumps({**facts, "packages": _versions()}, indent=2))
        return
    width = max(map(len, facts))
    for title, value in facts.items():
        print(f"{title:<{width}}  {value}")


def _versions() -> dict[str, str]:
    """The installed packages among all that some part of normwise works with."""
    names, found = set(_WORKED_WITH), {}
    with suppress(metadata.PackageNotFoundError):  # run from its sources
        needed = metadata.requires("normwise") or []
        names |= {re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in needed}
    for name in sorted(names - {"normwise", "torch"}):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
