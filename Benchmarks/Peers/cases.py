# SPDX-License-Identifier: Apache-2.0
"""cases.py - the shapes of Benchmarks/shapes.json, their inputs, and the definition of attention in float64."""

import json
import pathlib
from dataclasses import dataclass

import numpy as np

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent


class Absent(Exception):
    """This case is not offered; the text says why."""


def require(condition, why):
    if not condition:
        raise Absent(why)


@dataclass(frozen=True)
class Case:
    """One problem: self-attention unless keys is given; masks and sinks in the words of the command line."""

    name: str
    queryHeads: int
    queries: int
    headDimension: int
    batch: int = 1
    keyValueHeads: int = 0  # 0: as queryHeads
    keys: int = 0  # 0: as queries
    valueDimension: int = 0  # 0: as headDimension
    mask: str = "none"  # none, causal, window=<w>
    sink: str = "softmax1"  # softmax1, learned: one seeded logit per query head
    keyLengths: tuple = ()  # keys of each batch item that are not padding

    def __post_init__(self):
        for field, default in (
            ("keyValueHeads", self.queryHeads),
            ("keys", self.queries),
            ("valueDimension", self.headDimension),
        ):
            object.__setattr__(self, field, getattr(self, field) or default)
        object.__setattr__(self, "keyLengths", tuple(self.keyLengths))

    @property
    def group(self):
        return self.queryHeads // self.keyValueHeads

    @property
    def scale(self):
        return self.headDimension**-0.5

    @property
    def window(self):
        return int(self.mask.removeprefix("window=")) if self.mask.startswith("window=") else None

    def visible(self, rows):
        """Boolean [rows, keys]: which keys each of these query rows sees; causal is aligned bottom right."""
        last = np.asarray(rows)[:, None] + (self.keys - self.queries)
        keys = np.arange(self.keys)[None, :]
        seen = np.ones((len(rows), self.keys), bool) if self.mask == "none" else keys <= last
        return seen & (keys > last - self.window) if self.window else seen

    def inputs(self, seed=1):
        """float32 tensors [batch, heads, sequence, dim] of zero mean and unit variance, and sinks [queryHeads]."""
        random = np.random.default_rng(seed)

        def normal(*shape):
            return random.standard_normal(shape, dtype=np.float32)

        sinks = normal(self.queryHeads) if self.sink == "learned" else np.zeros(self.queryHeads, np.float32)
        return {
            "q": normal(self.batch, self.queryHeads, self.queries, self.headDimension),
            "k": normal(self.batch, self.keyValueHeads, self.keys, self.headDimension),
            "v": normal(self.batch, self.keyValueHeads, self.keys, self.valueDimension),
            "sinks": sinks,
        }

    def sampled(self, count=6):
        """A few query rows, always the first and the last."""
        return np.unique(np.linspace(0, self.queries - 1, count).astype(int))

    def definition(self, inputs, softmax):
        """out[i] = sum_j e^x[j] v[j] / (e^s + sum_j e^x[j]) of the sampled rows in float64; s = -inf if softmax."""
        rows = self.sampled()
        seen = self.visible(rows)
        out = np.zeros((self.batch, self.queryHeads, len(rows), self.valueDimension))
        for b, h in np.ndindex(self.batch, self.queryHeads):
            keys = inputs["k"][b, h // self.group].astype(np.float64)
            scores = self.scale * inputs["q"][b, h, rows].astype(np.float64) @ keys.T
            scores[~seen] = -np.inf
            if self.keyLengths:
                scores[:, self.keyLengths[b] :] = -np.inf
            sink = -np.inf if softmax else float(inputs["sinks"][h])
            top = np.maximum(scores.max(axis=1, keepdims=True), sink)
            weights = np.exp(scores - top)
            total = weights.sum(axis=1, keepdims=True) + np.exp(sink - top)
            out[b, h] = weights / total @ inputs["v"][b, h // self.group]
        return out


def load(names=None):
    """The shapes of shapes.json as cases, in its order. Packed sequences are not cases: no peer has them on a CPU."""
    shapes = json.loads((BENCHMARKS / "shapes.json").read_text())["shapes"]
    return [Case(**s) for s in shapes if "sequences" not in s and (not names or s["name"] in names)]


# Small, and around the corners: for checking that outputs agree, not for timing.
CORNERS = [
    Case("corner-full", 3, 100, 64, batch=2),
    Case("corner-causal", 4, 201, 40, mask="causal"),
    Case("corner-grouped", 8, 130, 64, keyValueHeads=2, mask="causal"),
    Case("corner-head-sinks", 8, 200, 64, keyValueHeads=2, mask="causal", sink="learned"),
    Case("corner-window-head-sinks", 8, 300, 64, keyValueHeads=2, mask="window=50", sink="learned"),
    Case("corner-value-dimension", 4, 150, 72, valueDimension=40, mask="causal"),
    Case("corner-few-keys", 2, 64, 16, keys=3),
]
