"""The tables of docs/methods.md: the family, and what other libraries call its members."""

from __future__ import annotations

import re

from normwise.methods import METHODS, Method, parse_spec
from normwise.nn import norm_layer

LIBRARIES = ("torch.nn", "timm.layers", "transformers", "flax.nnx", "keras.layers")
# The same formula elsewhere, in the order of LIBRARIES;
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "batch": ("BatchNorm1d, 2d, 3d", "BatchNormAct2d", "torch's", "BatchNorm", "BatchNormalization"),
    "instance": ("InstanceNorm1d, 2d, 3d", "-", "torch's", "InstanceNorm", "GroupNormalization(groups=-1)"),
    "group": ("GroupNorm", "GroupNorm", "torch's", "GroupNorm", "GroupNormalization"),
    "layer(axis=1)": ("GroupNorm(1, C)", "GroupNorm1", "-", "GroupNorm(num_groups=1)", "GroupNormalization(groups=1)"),
    "layer(axis=-1)": ("LayerNorm(C)", "LayerNorm", "torch's", "LayerNorm", "LayerNormalization"),
    "layer(per_token=True, axis=1)": ("-", "LayerNorm2d", "ConvNextLayerNorm", "-", "LayerNormalization(axis=1)"),
    "layer(affine=False, axis=-1)": (
        "LayerNorm(C, elementwise_affine=False)",
        "LayerNorm(affine=False)",
        "OlmoLayerNorm",
        "LayerNorm(use_scale=False, use_bias=False)",
        "LayerNormalization(scale=False, center=False)",
    ),
    "rms(axis=-1)": ("RMSNorm(C)", "RmsNorm", "LlamaRMSNorm, Qwen3RMSNorm, T5LayerNorm", "RMSNorm", "RMSNormalization"),
    "rms(axis=1)": ("-", "RmsNorm2d", "-", "-", "RMSNormalization(axis=1)"),
    "rms(offset=1, axis=-1)": ("-", "-", "GemmaRMSNorm, Gemma3RMSNorm, Qwen3NextRMSNorm", "-", "-"),
    "rms(affine=False, axis=-1)": (
        "RMSNorm(C, elementwise_affine=False)",
        "RmsNorm(affine=False)",
        "Llama4TextL2Norm",
        "RMSNorm(use_scale=False)",
        "-",
    ),
    "l2(affine=False, axis=-1)": ("functional.normalize", "-", "-", "-", "UnitNormalization"),
    "dyt": ("-", "-", "-", "-", "-"),
    "derf": ("-", "-", "-", "-", "-"),
    "filter_response": ("-", "FilterResponseNormAct2d", "-", "-", "-"),
    "weight": ("utils.parametrizations.weight_norm", "-", "torch's", "WeightNorm", "-"),
}


def _coded(name: str) -> str:
    return name if name in ("-", "torch's") else f"`{name}`"


def _formula(method: Method) -> str:
    found = re.search(r"y = .*?(?=, | with |\. |: |; |``|$)", " ".join((type(method).__doc__ or "").split()))
    return "-" if found is None else f"`{found[0]}`"


def _statistics(method: Method) -> str:
    if not method.pools:
        return "none"
    own = {"instance": "a channel of a sample", "group": "a group of channels", "batch": "a channel of the batch"}
    own["layer"] = "a position" if method.per_token else "a sample"
    own["layer"] += "; where channels come last, a position" if method.per_token is None else ""
    return ", ".join(own[pool] for pool in method.pools)


def _axes(method: Method, axis: int) -> str:
    """The axes of (N, C, H, W), or of (B, L, C), that share a statistic."""
    if not method.pools:
        return "-"
    if method.by_position(axis):
        return "C"
    return {"batch": "N, H, W", "instance": "H, W", "group": "C of a group, H, W", "layer": "C, H, W"}[method.pools[0]]


def family() -> str:
    rows = ["| method | formula | statistics of | learned beside weight and bias | source |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        learned = ", ".join(method.learned) or "-"
        rows.append(f"| `{name}` | {_formula(method)} | {_statistics(method)} | {learned} | {method.paper} |")
    return "\n".join(rows) + "\n"


def names() -> str:
    heads = " | ".join(f"`{library}`" for library in LIBRARIES)
    rows = [f"| method | statistics over | `normwise.nn` | {heads} |", "|---" * (len(LIBRARIES) + 3) + "|"]
    for spec, names in ELSEWHERE.items():
        name, options = parse_spec(spec)
        method, rest = METHODS[name].taking(options)
        ours = "weight_norm" if method.on_weights else type(norm_layer(spec)(8)).__name__
        rows.append(
            f"| `{spec}` | {_axes(method, rest.get('axis', 1))} | `{ours}` | {' | '.join(map(_coded, names))} |"
        )
    return "\n".join(rows) + "\n"


def parts() -> dict[str, str]:
    return {"family": family(), "names": names()}
