"""Switchable norm by its formulas over the data, and layers to try it on."""

import torch

from normwise.nn import SwitchableNorm2d


def oracle(x, over, means, variances, weight, bias, variance, groups=2, running=None, eps=1e-5):
    """Luo et al. 2019, eq. 2 to 5, over the data itself; ``official`` has σ²_in unbiased throughout."""
    N, C = x.shape[:2]
    groups = groups if C % groups == 0 else 1
    flat = x.reshape(N, C, -1)
    M = flat.shape[2]
    mu_in = flat.mean(2)
    var_in = flat.var(2, correction=1 if variance == "official" else 0)
    grouped = lambda t: t.reshape(N, groups, -1)  # noqa: E731
    spread = lambda t: t.expand(N, groups, C // groups).reshape(N, C)  # noqa: E731
    if variance == "paper":
        found = {
            "instance": (mu_in, var_in),
            "layer": (flat.mean((1, 2))[:, None], flat.var((1, 2), correction=0)[:, None]),
            "batch": (flat.mean((0, 2))[None], flat.var((0, 2), correction=0)[None]),
            "group": tuple(spread(t[..., None]) for t in (grouped(flat).mean(2), grouped(flat).var(2, correction=0))),
        }
    else:
        # σ²_k = mean(σ²_in + μ_in²) − mean(μ_in)², the published way to pool.
        second = var_in + mu_in.square()
        pooled = lambda f: (f(mu_in), f(second) - f(mu_in).square())  # noqa: E731
        found = {
            "instance": (mu_in, var_in),
            "layer": pooled(lambda t: t.mean(1, keepdim=True)),
            "batch": pooled(lambda t: t.mean(0, keepdim=True)),
            "group": pooled(lambda t: spread(grouped(t).mean(2, keepdim=True))),
        }
    if running is not None:
        found["batch"] = tuple(t[None] for t in running)
    mean = sum(w * found[k][0] for w, k in zip(means, over, strict=True))
    var = sum(w * found[k][1] for w, k in zip(variances, over, strict=True))
    y = (flat - mean[..., None]) / (var[..., None] + eps).sqrt()
    assert M > 1
    return (y * weight[:, None] + bias[:, None]).reshape(x.shape)


def shaken(cls=SwitchableNorm2d, channels=4, **options):
    torch.manual_seed(0)
    layer = cls(channels, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        if layer.running_mean is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return layer


def settled(member):
    layer = SwitchableNorm2d(3, sparse=True)
    with torch.no_grad():
        for logits in (layer.mean_weight, layer.var_weight):
            logits[layer.over.index(member)] += 5
    return layer.eval()
