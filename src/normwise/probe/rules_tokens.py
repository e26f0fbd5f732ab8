"""Findings about models of tokens: attention logits, the residual stream, and norms over the channels of a token."""

from __future__ import annotations

from collections.abc import Iterator

from normwise.findings import Diagnosis, TokenNorm
from normwise.probe.rules import Hit, Rule, at, count

# Those who clip attention logits keep them below this (Kimi K2, arXiv 2507.20534).
LOGITS = 100.0
# Writes of equal size at most double the stream from half the depth to its end, where all point the same way.
GROWTH, _FEWEST = 4.0, 4
# A channel that is so much larger than others (arXiv 2208.07339 starts at 20), and holds so much of what is divided by.
OUTLIER, SHARE = 20.0, 0.5
# Of a type's eps: how far a scale may be off that was taken in more bits and rounded once per value, and 3 times that.
_OFF = 0.15
_RESOLUTION = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
# The smallest number of float16 that is not 0; in bfloat16, a thousandth of what rounding adds to a mean square of 1.
_LEAST_EPS = 6e-8
# What weights about 1 and about 0 are: their medians, and the share below 0 that plain scales hardly have.
_ABOUT_1, _ABOUT_0, _BELOW = (0.8, 1.25), 0.3, 0.15


def attention_logits(seen: Diagnosis) -> Iterator[Hit]:
    """Attention logits so large that softmax has one winner."""
    for attention in [] if seen.tokens is None else seen.tokens.attentions:
        if attention.largest <= LOGITS:
            continue
        message = (
            f"its attention logits reach {attention.largest:.3g} (up to {LOGITS:g} is safe), and "
            f"{attention.saturated:.0%} of the queries have 99 % of their weight on one key"
        )
        fix = "model = normwise.qk_norm(model, loader)  # norms of queries and keys, then train on"
        if attention.norms:
            message += f"; queries and keys are normalized by {', '.join(attention.norms)}, whose weights have grown"
            fix = "\n".join(
                f"with torch.no_grad():\n    {at(name)}.weight.mul_({(LOGITS / 2 / attention.largest) ** 0.5:.2g})"
                for name in attention.norms
            )
        elif not attention.makers:
            fix = ""
        evidence: dict[str, float | None] = {"largest": attention.largest, "saturated": attention.saturated}
        yield Hit(attention.makers[0] if attention.makers else "", message, evidence, fix)


def growing_stream(seen: Diagnosis) -> Iterator[Hit]:
    """A residual stream that multiplies instead of adding up."""
    # Where norms stand behind the additions, the stream has one size.
    if seen.tokens is None or seen.tokens.placement in ("post", None) or len(seen.tokens.stream) < _FEWEST:
        return
    sizes = seen.tokens.stream
    middle, last = sizes[len(sizes) // 2 - 1], sizes[-1]
    if not last > GROWTH * middle:
        return
    message = (
        f"the residual stream grows from {middle:.3g} at half the depth to {last:.3g} at the end ({last / middle:.3g} "
        "times): branches of equal size at most double it"
    )
    fix = (
        "# scale each branch's last layer by 1 / sqrt(2 * depth) at the start, or normalize the branches' results, too"
    )
    yield Hit("", message, {"first": sizes[0], "middle": middle, "last": last}, fix)


def outlier_channels(seen: Diagnosis) -> Iterator[Hit]:
    """One channel that holds most of what tokens are divided by."""
    for norm in _norms(seen):
        if norm.outlier is None or norm.outlier_share is None or norm.outlier < OUTLIER:
            continue
        if norm.outlier_share < SHARE:
            continue
        message = (
            f"channel {norm.largest_channel} of its input is {norm.outlier:.3g} times as large as the typical one, and "
            f"makes {norm.outlier_share:.0%} of what each token is divided by"
        )
        yield Hit(
            norm.name, message, {"ratio": norm.outlier, "share": norm.outlier_share, "channel": norm.largest_channel}
        )


def final_at_zero(seen: Diagnosis) -> Iterator[Hit]:
    """A last norm that lets nothing through."""
    for norm in _norms(seen):
        if norm.scale_size is None or norm.role != "final" or norm.scale_size > 1e-6:
            continue
        whose = "plain weights" if not norm.offset else "weights that are offsets from 1"
        message = f"the norm behind the last block scales by 0 ({whose}): the outputs do not depend on the input"
        fix = f"with torch.no_grad():\n    {at(norm.name)}.weight.fill_({1 - norm.offset:g})"
        yield Hit(norm.name, message, {"scale": norm.scale_size}, fix)


def wrong_convention(seen: Diagnosis) -> Iterator[Hit]:
    """Weights about 1 where 1 is added, and about 0 where it is not."""
    for offset in sorted({norm.offset for norm in _norms(seen)}):
        norms = [norm for norm in _norms(seen) if norm.offset == offset and norm.weight_median is not None]
        wrong = [norm for norm in norms if _misread(norm)]
        # Some layers may have learned to be so; a checkpoint that is misread shows it in most.
        if not wrong or 2 * len(wrong) <= len(norms):
            continue
        medians = sorted(norm.weight_median or 0.0 for norm in wrong)
        median, below = medians[len(medians) // 2], sum(n.weight_below or 0.0 for n in wrong) / len(wrong)
        told = f"the weights of {count(len(wrong), 'norm')} are about {median:.2g} ({below:.0%} below 0)"
        if offset:
            message = f"{told}, and the layers scale by 1 + w: twice what weights about 1 mean"
            change = "weight.sub_(1.0)"
        else:
            message = f"{told}, and the layers scale by w alone: so offsets from 1 (Gemma's convention) look"
            change = "weight.add_(1.0)"
        names = ", ".join(f'"{norm.name}"' for norm in wrong)
        fix = f"with torch.no_grad():\n    for name in [{names}]:\n        model.get_submodule(name).{change}"
        yield Hit(wrong[0].name, message, {"median": median, "below": below, "layers": len(wrong)}, fix)


def _misread(norm: TokenNorm) -> bool:
    median, below = norm.weight_median or 0.0, norm.weight_below or 0.0
    if norm.offset:
        return _ABOUT_1[0] <= median <= _ABOUT_1[1] and below == 0 and (norm.weight_spread or 0.0) < 0.5
    return abs(median) < _ABOUT_0 and below >= _BELOW


def eps_out_of_reach(seen: Diagnosis) -> Iterator[Hit]:
    """An eps that 16 bits cannot hold, or that is nothing beside their rounding."""
    for norm in _norms(seen):
        if norm.dtype not in _RESOLUTION or (norm.eps >= _LEAST_EPS and not norm.zero_token):
            continue
        if not norm.eps and not norm.zero_token:
            continue
        becomes = (
            "a token of zeros becomes NaN or infinite"
            if norm.zero_token
            else f"a token that is constant up to rounding is scaled by up to {norm.eps**-0.5:.2g}"
        )
        message = f"its eps of {norm.eps:g} is below what {norm.dtype} resolves: {becomes}"
        fix = f"{at(norm.name)}.eps = 1e-5"
        evidence: dict[str, float | None] = {"eps": norm.eps, "zero_token": float(norm.zero_token)}
        yield Hit(norm.name, message, evidence, fix, None if norm.zero_token else "info")


def rough_statistics(seen: Diagnosis) -> Iterator[Hit]:
    """Statistics that are taken in 16 bits."""
    for norm in _norms(seen):
        resolution = _RESOLUTION.get(norm.dtype)
        if resolution is None or norm.statistics_error is None or norm.statistics_error <= _OFF * resolution:
            continue
        message = (
            f"it takes its statistics in {norm.dtype}: what a token is multiplied by is off by "
            f"{norm.statistics_error:.2g}, relative, where float32 inside gives less than {_OFF * resolution:.2g}"
        )
        fix = "# in its forward(): normalize x.float(), and give the result .to(x.dtype)"
        yield Hit(norm.name, message, {"error": norm.statistics_error}, fix)


def _norms(seen: Diagnosis) -> list[TokenNorm]:
    return [] if seen.tokens is None else seen.tokens.norms


RULES = [
    Rule(
        "attention-logits",
        "warning",
        attention_logits,
        "Queries learn from one key alone, gradients of the others vanish, and in 16 bits logits so large are coarse.",
    ),
    Rule(
        "growing-stream",
        "warning",
        growing_stream,
        "Later blocks drown the earlier ones, and hardly any gradient comes to these.",
    ),
    Rule(
        "outlier-channel",
        "info",
        outlier_channels,
        "One channel decides how large all others come out; 8-bit types lose these.",
    ),
    Rule("final-norm-at-0", "error", final_at_zero, "Nothing before it gets a gradient until its weight has moved."),
    Rule(
        "weight-convention",
        "warning",
        wrong_convention,
        "Every output of these layers is off by a factor, and so is what the next layers were trained for.",
    ),
    Rule("eps-resolution", "warning", eps_out_of_reach, "Nothing keeps the division from a token that hardly varies."),
    Rule(
        "rough-statistics", "warning", rough_statistics, "Every value of a token is off together, in every layer anew."
    ),
]
