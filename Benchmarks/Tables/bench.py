# SPDX-License-Identifier: Apache-2.0
"""bench.py - `quiet bench`: building it, the shapes of shapes.json in its words, and the variants of a pass."""

import json
import os
import subprocess
import sys

from machine import BENCHMARKS, REPOSITORY

# What each option costs is measured on one shape; the options of `quiet bench` that stand for each variant of the pass.
RULES = ["--scaling", "clipped-log=512", "--softcap", "50", "--alibi"]
VARIANTS = {
    "plain softmax_1": [],
    "float16 tensors": ["--storage", "f16"],
    "bfloat16 tensors": ["--storage", "bf16"],
    "rows and heads interleaved (bshd)": ["--layout", "bshd"],
    "row factors": RULES[:2],
    "softcap": RULES[2:4],
    "ALiBi": RULES[4:],
    "row factors, softcap, ALiBi": RULES,
    "the same and RoPE": [*RULES, "--positions", "rope"],
    "RoPE": ["--positions", "rope"],
    "RoPE, interleaved pairs": ["--positions", "rope-interleaved"],
    "QK-norm (RMS) and RoPE": ["--positions", "rope", "--qk-norm", "rms"],
    "CoCA, strict": ["--positions", "coca-strict"],
    "sigmoid": ["--normaliser", "sigmoid"],
    "squared ReLU": ["--normaliser", "relu2"],
    "squared ReLU, normalised": ["--normaliser", "relu2-normalised"],
    "softpick": ["--normaliser", "softpick"],
    "clipped softmax": ["--normaliser", "clipped=-0.03"],
    "AVX2 kernels": ["--kernels", "x86_64_v3"],
}


def built(package=REPOSITORY):
    """The `quiet` of a package, built for release, or the one that QUIET names."""
    if package == REPOSITORY and "QUIET" in os.environ:
        return os.environ["QUIET"]
    build = ["swift", "build", "--package-path", str(package), "-c", "release"]
    subprocess.run([*build, "--product", "quiet"], check=True, stdout=sys.stderr)
    path = subprocess.run([*build, "--show-bin-path"], check=True, capture_output=True, text=True).stdout.strip()
    return path + "/quiet"


def shapes():
    """The shapes of shapes.json by name, each a dictionary, in its order."""
    return {shape["name"]: shape for shape in json.loads((BENCHMARKS / "shapes.json").read_text())["shapes"]}


def words(shape):
    """A shape in the words of `quiet bench`; packed sequences have none."""
    names = {
        "batch": "--batch", "queryHeads": "--query-heads", "keyValueHeads": "--kv-heads", "queries": "--queries",
        "keys": "--keys", "headDimension": "--head-dim", "valueDimension": "--value-dim", "mask": "--mask",
        "sink": "--sink",
    }  # fmt: skip
    found = [word for name, option in names.items() if name in shape for word in (option, str(shape[name]))]
    if shape.get("keyLengths"):
        found += ["--key-lengths", ",".join(map(str, shape["keyLengths"]))]
    return found
