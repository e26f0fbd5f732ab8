"""Claims 14 to 17: what is said of the norms of transformers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from normwise.claims.claim import TIMES, Claim, Experiment, Part, Runs, Unit
from normwise.claims.figures import bars
from normwise.nn import NormFactory, norm_layer
from normwise.study.optimize import Steps
from normwise.study.tasks import Task, load_task
from normwise.study.tasks.decoder import Decoder
from normwise.study.tasks.language import shortened

# Characters of a window, and windows to evaluate on: a small decoder's trial takes seconds.
_WINDOW, _EVALUATED = 32, 256
_LRS = (0.001, 0.004, 0.016)
_STEPS, _QUICK_STEPS = 400, 20
# Windows of the little text: some 60,000 characters, which the trial reads seven times.
_LITTLE = 1920
_BITS = Unit("bits a character")
_SIZE = {"width": 48, "depth": 2, "heads": 2}

# --- what is trained ------------------------------------------------------------------------------------------------


def novels(windows: int | None = None, **model: Any) -> Callable[[], Task]:
    """Give a small decoder on Jane Austen's novels in windows of 32 characters; few of them, where ``windows`` says."""
    return functools.partial(_novels, windows, **model)


def _novels(windows: int | None, **model: Any) -> Task:
    task = load_task("austen")
    splits = shortened(task.splits, _WINDOW, _EVALUATED)
    tokens = 1 + max(int(t.max()) for part in splits for t in part.sketch())
    make = functools.partial(_decoder, tokens=tokens, **{**_SIZE, **model})
    return dataclasses.replace(
        task, splits=splits._replace(train=splits.train.take(slice(windows))), make_model=make, source=None
    )


def _decoder(norm: NormFactory, qk_norm: bool = False, **options: Any) -> nn.Module:
    return Decoder(norm, qk_norm=norm_layer("rms") if qk_norm else None, **options)


def _adam(model: nn.Module, lr: float, steps: int, warm_up: float) -> tuple[Steps, Steps]:
    """Adam, unclipped as when the claim was made, with a linear warm-up over a share of the steps, then constant."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))
    warm = max(round(warm_up * steps), 1)
    factor = functools.partial(_warmed, warm)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _warmed(warm: int, step: int) -> float:
    return min((step + 1) / warm, 1.0)


def _bits(runs: Runs, experiment: Experiment, method: str) -> np.ndarray:
    # Scores are minus the bits; those of a run that was lost are what guessing takes.
    return -runs.test(experiment, method)


def _experiment(name: str, methods: tuple[str, ...], task: Callable[[], Task], **options: Any) -> Experiment:
    given: dict[str, Any] = {"lrs": _LRS, "steps": _STEPS, "quick_steps": _QUICK_STEPS} | options
    return Experiment(name, task, methods, **given)


# --- 14: RMS norm and layer norm ------------------------------------------------------------------------------------

TEXT = _experiment("text", ("layer", "rms", "dyt", "derf"), novels())

RMS_IS_LAYER = Claim(
    number=14,
    name="rms-is-layer",
    title="RMS norm does what layer norm does, at a lower cost",
    claim="Layer norm's centring is dispensable: RMS norm, which only scales, reaches a comparable performance and is "
    "faster.",
    source="Zhang & Sennrich 2019, arXiv 1910.07467",
    how="A decoder of two blocks with rotary positions, SwiGLU and norms before each part predicts the next character "
    "of Jane Austen's novels. Bits a character on a novel not trained on, each method at its own learning rate, and "
    "the time of a training step.",
    experiments=(TEXT,),
    parts=(
        Part(
            "RMS norm needs at most 0.02 bits a character more or less than layer norm",
            lambda runs: _bits(runs, TEXT, "rms") - _bits(runs, TEXT, "layer"),
            at_least=-0.02,
            at_most=0.02,
            unit=_BITS,
            published="comparable in every task",
            brief="as good",
        ),
        Part(
            "A training step with RMS norm takes at most 0.99 times as long",
            lambda runs: _step(runs, "rms") / _step(runs, "layer"),
            at_most=0.99,
            unit=TIMES,
            ratio=True,
            published="0.36 to 0.93 times the running time, in other models",
            brief="faster",
        ),
    ),
    figures=(
        lambda runs: bars(
            "Bits a character on a novel not trained on",
            "",
            [(f"{m} norm", m, _bits(runs, TEXT, m)) for m in ("layer", "rms")],
        ),
    ),
    notes=("Times are of the CPU that ran the claim, on which norms are a small part of a step.",),
)


def _step(runs: Runs, method: str) -> np.ndarray:
    return np.array([t.step_seconds for t in runs.trials(TEXT, method)], dtype=float)


# --- 15: where post-norm needs a warm-up ----------------------------------------------------------------------------

_SHARE = 0.2


def _placed(placement: str, warm_up: float) -> Experiment:
    def task() -> Task:
        optimizer = functools.partial(_adam, warm_up=warm_up)
        name = f"Adam, {f'warm-up over {warm_up:.0%} of the steps' if warm_up else 'no warm-up'}"
        made = novels(placement=placement, depth=6)()
        return dataclasses.replace(made, optimizer=optimizer, optimizer_name=name, schedule_name="then constant")

    return _experiment(f"text-{placement}-{'warm' if warm_up else 'cold'}", ("layer",), task)


PRE_WARM, PRE_COLD, POST_WARM, POST_COLD = (_placed(p, share) for p in ("pre", "post") for share in (_SHARE, 0.0))


def _gain(runs: Runs, warm: Experiment, cold: Experiment) -> np.ndarray:
    return _bits(runs, cold, "layer") - _bits(runs, warm, "layer")


WARM_UP = Claim(
    number=15,
    name="post-norm-warm-up",
    title="Post-norm needs a warm-up of the learning rate; pre-norm does not",
    claim="With layer norm behind each residual sum, gradients near the output are large at the start, so that "
    "training needs a warm-up; with layer norm inside the residual branches they are well behaved and it does not.",
    source="Xiong et al. 2020, arXiv 2002.04745",
    how="Decoders of six blocks on Jane Austen's novels, trained by Adam without clipping at a constant rate, with a "
    "linear warm-up over the first fifth of the steps or none, each at its own learning rate.",
    experiments=(PRE_WARM, PRE_COLD, POST_WARM, POST_COLD),
    parts=(
        Part(
            "A warm-up saves post-norm at least 0.05 bits a character",
            lambda runs: _gain(runs, POST_WARM, POST_COLD),
            at_least=0.05,
            unit=_BITS,
            published="34 BLEU with, 8 without",
            brief="post-norm needs it",
        ),
        Part(
            "A warm-up saves pre-norm at most 0.02 bits a character",
            lambda runs: _gain(runs, PRE_WARM, PRE_COLD),
            at_most=0.02,
            unit=_BITS,
            published="no difference",
            brief="pre-norm does not",
        ),
    ),
    figures=(
        lambda runs: bars(
            "Bits a character on a novel not trained on",
            "",
            [
                (label, "layer", _bits(runs, experiment, "layer"))
                for label, experiment in (
                    ("pre, warm-up", PRE_WARM),
                    ("pre, none", PRE_COLD),
                    ("post, warm-up", POST_WARM),
                    ("post, none", POST_COLD),
                )
            ],
        ),
    ),
)

# --- 16: transformers without normalization -------------------------------------------------------------------------

LITTLE = _experiment("text-little", ("layer", "dyt", "derf"), novels(windows=_LITTLE))


def _no_worse(method: str, experiment: Experiment, where: str) -> Part:
    title = {"dyt": "DyT", "derf": "Derf"}[method]
    return Part(
        f"{where}: {title} needs at most 0.02 bits a character more than layer norm",
        lambda runs: _bits(runs, experiment, method) - _bits(runs, experiment, "layer"),
        at_most=0.02,
        unit=_BITS,
        published={"dyt": "matches or exceeds", "derf": "exceeds both"}[method],
        brief=f"{title} with {where.lower()}",
    )


WITHOUT = Claim(
    number=16,
    name="dyt-derf",
    title="An elementwise tanh or erf can take layer norm's place",
    claim="Transformers without normalization match or exceed those with it, where DyT(x) = w · tanh(a x) + b takes "
    "the norm's place, or Derf(x) = w · erf(a x + s) + b.",
    source="Zhu et al. 2025, arXiv 2503.10622; Chen et al. 2025, arXiv 2512.10938; doubted in arXiv 2604.23434",
    how="The decoder of claim 14 on three novels, of which it sees a fifth, and on 60,000 characters, which it sees "
    "seven times. Each method at its own learning rate.",
    experiments=(TEXT, LITTLE),
    parts=tuple(
        _no_worse(method, experiment, where)
        for experiment, where in ((TEXT, "Much text"), (LITTLE, "Little text"))
        for method in ("dyt", "derf")
    ),
    figures=tuple(
        functools.partial(
            lambda runs, experiment, title: bars(
                title, "", [(m, m, _bits(runs, experiment, m)) for m in ("layer", "dyt", "derf")]
            ),
            experiment=experiment,
            title=f"Bits a character, {where}",
        )
        for experiment, where in ((TEXT, "much text"), (LITTLE, "little text"))
    ),
)

# --- 17: QK norm ----------------------------------------------------------------------------------------------------

_RATES = (0.004, 0.016, 0.064)
# The stream's norm is the same on both sides.
_QK = {
    (normed, rate): _experiment(
        f"text-{'qk' if normed else 'plain'}-{rate}", ("rms",), novels(qk_norm=normed, depth=4), lrs=(rate,)
    )
    for normed in (False, True)
    for rate in _RATES
}


def _harm(runs: Runs, normed: bool, rate: float) -> np.ndarray:
    """What a rate costs against the best of the rates, in bits."""
    all_rates = np.stack([_bits(runs, _QK[normed, r], "rms") for r in _RATES])
    return np.asarray(all_rates[_RATES.index(rate)] - all_rates.min(0))


QK_NORM = Claim(
    number=17,
    name="qk-norm",
    title="Norms of queries and keys allow larger learning rates",
    claim="Attention logits that grow make training diverge at large learning rates; with queries and keys normalized "
    "they cannot, and larger rates do.",
    source="Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442",
    how="Decoders of four blocks with RMS norm on Jane Austen's novels, with and without RMS norm of queries and keys, "
    f"at the learning rates {', '.join(map(str, _RATES))}.",
    experiments=tuple(_QK.values()),
    parts=(
        Part(
            f"At the rate {_RATES[-1]} QK norm saves at least 0.05 bits a character",
            lambda runs: _bits(runs, _QK[False, _RATES[-1]], "rms") - _bits(runs, _QK[True, _RATES[-1]], "rms"),
            at_least=0.05,
            unit=_BITS,
            brief="better at a large rate",
        ),
        Part(
            f"The rate {_RATES[-1]} costs at least 0.05 bits less, against the best rate, with QK norm than without",
            lambda runs: _harm(runs, False, _RATES[-1]) - _harm(runs, True, _RATES[-1]),
            at_least=0.05,
            unit=_BITS,
            brief="a large rate costs less",
        ),
        Part(
            "At the best of the rates QK norm costs at most 0.02 bits a character",
            lambda runs: _best(runs, True) - _best(runs, False),
            at_most=0.02,
            unit=_BITS,
            decides=False,
        ),
    ),
    figures=(
        lambda runs: bars(
            "Bits a character by learning rate",
            "",
            [
                (f"{'QK norm' if normed else 'without'}, {rate}", "rms", _bits(runs, _QK[normed, rate], "rms"))
                for normed in (False, True)
                for rate in _RATES
            ],
        ),
    ),
)


def _best(runs: Runs, normed: bool) -> np.ndarray:
    found = [_bits(runs, _QK[normed, rate], "rms") for rate in _RATES]
    return np.asarray(found[int(np.argmin([math.fsum(bits) for bits in found]))])


CLAIMS = (RMS_IS_LAYER, WARM_UP, WITHOUT, QK_NORM)
