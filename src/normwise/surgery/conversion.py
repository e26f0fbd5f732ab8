"""The account of a conversion: what was replaced, carried and lost, how far outputs moved, and how to undo it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from normwise.methods import METHODS, traits_of
from normwise.parametrize._splits import Split
from normwise.results import Result, Tabular, layers
from normwise.surgery.carry import AFFINE, restored, translated
from normwise.surgery.exchange import Exchange, Pair
from normwise.surgery.layouts import core
from normwise.surgery.running import Left


@dataclass(frozen=True)
class Drift:
    """How far a layer's output is from the old one's, as a share of its size (root mean squares).

    ``own`` compares both on the old network's input, so it is due to this layer alone; ``here`` compares what comes out
    at this place of the old and of the new network, everything before included.
    """

    own: float | None
    here: float | None


@dataclass
class Replacement:
    """One layer's account; ``names`` are all under which it is registered."""

    names: list[str]
    old: str
    new: str
    carried: list[str]
    lost: list[str]
    drift: Drift | None = None
    refitted: Drift | None = None


@dataclass(repr=False)
class Record(Result):
    """A conversion's account as plain data.

    ``output_drift`` and ``output_refitted`` are of the model's output, before and after the affine was re-fitted.
    ``weights`` names the modules that got weight norm, or lost it.
    """

    to: str
    replaced: list[Replacement] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    output_drift: float | None = None
    output_refitted: float | None = None
    notes: list[str] = field(default_factory=list)
    version: int = 1

    _kind: ClassVar[str] = "conversion"
    _newest: ClassVar[int] = 1

    def to_json(self) -> str:
        """Strict JSON; drifts that are not finite are ``null``."""
        # Strict JSON has no infinity.
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        return text.replace("Infinity", "null").replace("NaN", "null") + "\n"

    def _headline(self) -> str:
        return f"to {self.to}: {layers(len(self.replaced))} replaced, {len(self.left)} left"

    def _facts(self) -> list[tuple[str, str]]:
        told = {"Output drift": self.output_drift, "Output drift, re-fitted": self.output_refitted}
        return [(title, f"{value:.3g}") for title, value in told.items() if value is not None]

    def _notes(self) -> list[str]:
        lost, left = ([f"{title}: {line}" for line in lines] for title, lines in _told(self).items())
        return [*self.notes, *lost, *left]

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "layer": ", ".join(r.names),
                "old": r.old,
                "new": r.new,
                "carried": ", ".join(r.carried),
                "lost": "; ".join(r.lost),
                "drift": r.drift and r.drift.here,
                "refitted": r.refitted and r.refitted.here,
            }
            for r in self.replaced
        ]

    def __str__(self) -> str:
        """The account as a table."""
        return table(self)


class Conversion(Tabular):
    """What :func:`normwise.convert` did; ``print`` shows the table, :meth:`undo` takes it back.

    Attributes:
        model: the converted model.
        record: the account as plain data, for :meth:`to_dict` and JSON.

    Example:
        >>> from normwise.surgery import convert
        >>> conversion = convert(torch.nn.Sequential(torch.nn.BatchNorm1d(4)), "layer")
        >>> conversion.record.replaced[0].carried
        ['weight', 'bias', 'eps 1e-05']
    """

    _kind: ClassVar[str] = "conversion"

    def __init__(self, exchange: Exchange, model: torch.nn.Module, record: Record) -> None:
        self._exchange = exchange
        self._undo: list[Callable[[], object]] = []
        self._undone = False
        self._splits: list[tuple[str, Split]] = []
        self.model = model
        self.record = record

    def undo(self) -> torch.nn.Module:
        """Put the original modules back, with the values they had, and the optimizer's parameters and state.

        Returns:
            The model as it was.

        Example:
            >>> from normwise.surgery import convert
            >>> norm = torch.nn.BatchNorm1d(4)
            >>> convert(torch.nn.Sequential(norm), "layer").undo()[0] is norm
            True
        """
        if not self._undone:
            root = self._exchange.model
            before = self._exchange.put_old()
            self._exchange.restore_values()
            for step in reversed(self._undo):
                step()
            self.model = before if self.model is root else self.model
            self._undone = True
        return self.model

    def forward_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate a state_dict of the original model into one of the converted model.

        What the old layers do not have (mixing weights, fresh statistics) comes from the converted model. The affine
        is the checkpoint's own: a re-fit was measured on other values and does not enter.

        Args:
            state: any checkpoint of the original model.

        Returns:
            A state_dict that the converted model loads strictly.

        Example:
            >>> from normwise.surgery import convert
            >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4))
            >>> state = model.state_dict()
            >>> sorted(convert(model, "layer").forward_state(state))
            ['0.bias', '0.weight']
        """
        return self._mapped(state, translated, "new")

    def backward_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate a state_dict of the converted model into one of the original model.

        Statistics that the new layers do not keep come from the original layers.

        Args:
            state: any checkpoint of the converted model.

        Returns:
            A state_dict that the original model loads strictly.

        Example:
            >>> from normwise.surgery import convert
            >>> conversion = convert(torch.nn.Sequential(torch.nn.BatchNorm1d(4)), "layer")
            >>> len(conversion.backward_state(conversion.model.state_dict()))
            5
        """
        return self._mapped(state, restored, "old")

    def _mapped(self, state: Mapping[str, Tensor], change: Callable, side: str) -> dict[str, Tensor]:
        result = dict(state)
        for pair, account in zip(self._exchange.pairs, self.record.replaced, strict=True):
            other = "old" if side == "new" else "new"
            for name in pair.found.names:
                prefix = f"{name}." if name else ""
                keys = {key: f"{prefix}{key}" for key in getattr(pair, other).state_dict()}
                own = {key: result.pop(full) for key, full in keys.items() if full in result}
                if self.record.to in METHODS:
                    offset = getattr(core(pair.new), "offset", 0.0)
                    changed = own | change(own, pair.found.layer, self.record.to, offset)
                else:
                    changed = _own_mapped(own, pair, account, side)
                for key, value in getattr(pair, side).state_dict().items():
                    result[prefix + key] = changed.get(key, value).detach().clone()
        return self._weights_mapped(result, joined=(side == "new") != traits_of(self.record.to).on_weights)

    def _weights_mapped(self, state: dict[str, Tensor], joined: bool) -> dict[str, Tensor]:
        """Split or join the weights that weight norm was put on or taken off."""
        for module, split in self._splits:
            prefix = f"{module}." if module else ""
            weight, (g, v) = prefix + split.name, (prefix + key for key in split.keys)
            if joined and g in state:
                state[weight] = split.norm(state.pop(g), state.pop(v)).detach().clone()
            elif not joined and weight in state:
                state[g], state[v] = (t.detach().clone() for t in split.norm.right_inverse(state.pop(weight)))
        return state

    def to_dict(self) -> dict:
        """The account as plain lists, dicts, strings and numbers; drifts that are not finite become ``None``.

        Returns:
            A dict that is strict JSON.

        Example:
            >>> from normwise.surgery import convert
            >>> convert(torch.nn.Sequential(torch.nn.BatchNorm1d(4)), "layer").to_dict()["to"]
            'layer'
        """
        return json.loads(self.record.to_json())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the account as JSON; the model is torch's to save, by its ``state_dict``.

        Args:
            path: the file; what normwise did not write is not replaced.

        Raises:
            InputError: a file is there that holds something else.
            StoreError: the file cannot be written.
        """
        self.record.save(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Record:
        """Read the account that :meth:`save` wrote.

        Args:
            path: the file.

        Returns:
            The account, as in ``record``.

        Raises:
            StoreError: the file cannot be read, or is no account of a conversion.
        """
        return Record.load(path)

    def _headline(self) -> str:
        return self.record._headline()

    def _facts(self) -> list[tuple[str, str]]:
        return self.record._facts()

    def _notes(self) -> list[str]:
        return self.record._notes()

    def _rows(self) -> list[dict[str, Any]]:
        return self.record._rows()

    def __str__(self) -> str:
        """The account as a table."""
        return str(self.record)


def _own_mapped(given: dict[str, Tensor], pair: Pair, account: Replacement, side: str) -> dict[str, Tensor]:
    """What a layer of one's own and the old one have in common: weight and bias if carried, and what follows."""
    inner = "layer." if core(pair.new) is not pair.new else ""
    shared = {key: value for key, value in given.items() if "." in key and not key.startswith("layer.")}
    for name in set(AFFINE) & set(account.carried):
        old, new = name, inner + name
        here, there = (old, new) if side == "new" else (new, old)
        if here in given:
            shared[there] = given[here]
    return shared


def table(record: Record) -> str:
    """Draw a conversion's account as text."""
    count = len(record.replaced)
    lines = [f"to {record.to}: {count} layer{'s' * (count != 1)} replaced"]
    rows = [
        [", ".join(r.names), f"{r.old} → {r.new}", _drift_text(r), "carried " + ", ".join(r.carried)]
        for r in record.replaced
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines += ["  " + "  ".join([c.ljust(w) for c, w in zip(row, widths, strict=False) if w] + row[3:]) for row in rows]
    if record.output_drift is not None:
        after = "" if record.output_refitted is None else f", {record.output_refitted:.3g} after the re-fit"
        lines.append(f"output drift {record.output_drift:.3g}{after}")
    if record.weights:
        done = "put on" if traits_of(record.to).on_weights else "taken off"
        lines.append(f"weight norm {done}: {', '.join(record.weights)}")
    lines += [
        line for title, said in _told(record).items() if said for line in (f"{title}:", *(f"  {s}" for s in said))
    ]
    return "\n".join(lines + [f"note: {note}" for note in record.notes])


def _drift_text(r: Replacement) -> str:
    parts = [d for d in (r.drift, r.refitted) if d is not None and d.here is not None]
    return "drift " + " → ".join(f"{d.here:.3g}" for d in parts) if parts else ""


def _told(record: Record) -> dict[str, list[str]]:
    """What was lost and what was left, each text once."""
    return {
        "lost": _grouped([(text, r.names[0]) for r in record.replaced for text in r.lost]),
        "left as they were": _grouped([(x.reason, x.layer) for x in record.left]),
    }


def _grouped(items: list[tuple[str, str]]) -> list[str]:
    """Say each text once, with the layers it holds for."""
    layers: dict[str, list[str]] = {}
    for text, name in items:
        layers.setdefault(text, []).append(name)
    return [
        f"{text} ({len(names)} layer{'s' * (len(names) != 1)}: {', '.join(names[:4])}{', …' * (len(names) > 4)})"
        for text, names in layers.items()
    ]
