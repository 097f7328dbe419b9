# SPDX-License-Identifier: Apache-2.0
"""backward.py - the backward pass: ours beside PyTorch's, in turns, and held to PyTorch's automatic differentiation.

    Benchmarks/Peers/run --backward [--check]

--check computes small problems in float64 with PyTorch's autograd, sinks included, and compares dq, dk, dv and dsink of
`quiet attend --gradients`; and of products of bfloat16 that their error is at most that of PyTorch's bfloat16. Otherwise the shapes below are timed: a ratio is the median over the rounds of PyTorch's time
over ours of the same round. PyTorch has no backward pass with a sink on a CPU: it computes plain softmax there.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
from safetensors.numpy import load_file, save_file

from cases import CORNERS, Case
from compare import Quiet, described, distance, machine, results_folder

CASES = [
    Case("12 heads, 1024 x 1024, d 64", 12, 1024, 64),
    Case("12 heads, 1024 x 1024, d 64, causal", 12, 1024, 64, mask="causal"),
    Case("8/2 heads, 4096 x 4096, d 128, causal", 8, 4096, 128, keyValueHeads=2, mask="causal"),
    Case("8 x 12 heads, 128 x 128, d 32", 12, 128, 32, batch=8),
    Case("one head, 4096 x 4096, d 64", 1, 4096, 64),
    Case("64/8 heads, 4096 x 4096, d 64, window 128, learned sinks", 64, 4096, 64, keyValueHeads=8, mask="window=128", sink="learned"),
]
KINDS = [("f32", "f32"), ("bf16", "f32"), ("bf16", "bf16")]  # storage, products
TOLERANCE = 3e-6
# Of PyTorch: a pass that takes longer is timed once, beside the first round, and not in every round.
LONGEST_SECONDS = 10


def scaled_dot_product(torch, case, tensors):
    """PyTorch's own attention, as a user would call it; plain softmax."""
    masks = {}
    if case.window:
        masks["attn_mask"] = torch.from_numpy(case.visible(range(case.queries)))
    elif case.mask == "causal":
        masks["is_causal"] = True
    return torch.nn.functional.scaled_dot_product_attention(*tensors, enable_gqa=case.group > 1, **masks)


def definition(torch, case, q, k, v, sinks):
    """The formula with sinks in whole matrices, for autograd."""
    k, v = (x.repeat_interleave(case.group, 1) for x in (k, v))
    seen = torch.from_numpy(case.visible(range(case.queries)))
    scores = (case.scale * q @ k.transpose(-1, -2)).masked_fill(~seen, -torch.inf)
    sink = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v


def check(torch, quiet, folder):
    failed = False
    for case in CORNERS:
        if case.keyLengths:
            continue
        inputs = case.inputs()
        dout = np.random.default_rng(2).standard_normal(
            (case.batch, case.queryHeads, case.queries, case.valueDimension), dtype=np.float32
        )
        source, result = str(folder / "in.safetensors"), str(folder / "out.safetensors")
        save_file({**inputs, "dout": dout}, source)
        sink = {"softmax1": "softmax1", "learned": "tensor=sinks"}[case.sink]
        quiet.run("attend", source, "--output", result, "--sink", sink, "--mask", case.mask, "--gradients", "--json")
        ours = load_file(result)
        with torch.enable_grad():
            leaves = [torch.from_numpy(inputs[n]).double().requires_grad_() for n in ("q", "k", "v", "sinks")]
            theirs = torch.autograd.grad(definition(torch, case, *leaves), leaves, torch.from_numpy(dout).double())
        errors = {n: distance(ours[n], g.numpy()) for n, g in zip(("dq", "dk", "dv", "dsink"), theirs)}
        failed |= max(errors.values()) > TOLERANCE
        print(f"{case.name}: " + ", ".join(f"{n} {e:.1e}" for n, e in errors.items()), flush=True)
    if failed:
        sys.exit(f"a gradient differs by more than {TOLERANCE} of its largest element")
    for length in (256, 2048):
        check_products(torch, quiet, folder, Case(f"bfloat16, {length} x {length}", 2, length, 64, mask="causal"))


def check_products(torch, quiet, folder, case):
    """Our products of bfloat16 and PyTorch's, of softmax, in the 2-norm against float64 over the rounded tensors."""
    rounded = {n: torch.from_numpy(x).bfloat16() for n, x in case.inputs().items() if n in "qkv"}
    rounded["dout"] = torch.from_numpy(np.random.default_rng(2).standard_normal(rounded["q"].shape, dtype=np.float32)).bfloat16()
    source, result = str(folder / "in.safetensors"), str(folder / "out.safetensors")
    save_file({n: x.float().numpy() for n, x in rounded.items()}, source)
    options = ["--sink", "softmax", "--mask", case.mask, "--products", "bf16", "--gradients", "--json"]
    quiet.run("attend", source, "--output", result, *options)
    ours = load_file(result)

    def gradients(kind):
        with torch.enable_grad():
            leaves = [rounded[n].to(kind).requires_grad_() for n in "qkv"]
            out = scaled_dot_product(torch, case, leaves)
            return [g.double().numpy() for g in torch.autograd.grad(out, leaves, rounded["dout"].to(kind))]

    norm = lambda x, y: float(np.linalg.norm(x - y) / np.linalg.norm(y))
    rows = list(zip(("dq", "dk", "dv"), gradients(torch.bfloat16), gradients(torch.float64)))
    errors = [(n, norm(ours[n], exact), norm(theirs, exact)) for n, theirs, exact in rows]
    print(f"{case.name}: " + ", ".join(f"{n} {a:.1e} (PyTorch {b:.1e})" for n, a, b in errors), flush=True)
    if any(a > b for _, a, b in errors):
        sys.exit("products of bfloat16 have a larger error than PyTorch's")


def prepared(torch, case, storage):
    """A function that runs PyTorch's backward pass once; its forward pass has run."""
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[storage]
    inputs = case.inputs()
    with torch.enable_grad():
        leaves = [torch.from_numpy(inputs[name]).to(kind).requires_grad_() for name in ("q", "k", "v")]
        out = scaled_dot_product(torch, case, leaves)
    dout = torch.randn(out.shape, dtype=kind)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


def seconds_of(run, limit):
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < limit:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare(torch, case, storage, products, quiet, options):
    theirs = prepared(torch, case, storage)
    first = seconds_of(theirs, 0)
    row = {"case": dataclasses.asdict(case), "storage": storage, "products": products, "ours": [], "torch_ms": []}
    words = ["--storage", storage, "--products", products]
    for _ in range(options.rounds):
        row["ours"].append(quiet.bench(case, options.seconds, *words, of="backward"))
        row["torch_ms"].append((first if first > LONGEST_SECONDS else seconds_of(theirs, options.seconds)) * 1e3)
    middle = lambda name: statistics.median(r[name] for r in row["ours"])
    row.update({n: middle(n) for n in ("median_ms", "forward_ms", "gflops", "fraction_of_peak")})
    row["ratio"] = statistics.median(t / r["median_ms"] for t, r in zip(row["torch_ms"], row["ours"]))
    return row


def markdown(results):
    lines = [
        "# The backward pass",
        "",
        *described(results["machine"], results["threads"]),
        f"Written by `Benchmarks/Peers/run --backward`; PyTorch {results['version']}. Ours is with the sink, PyTorch's plain "
        "softmax. GFLOP/s count 10 operations for each pair of query and key and channel, of half the pairs where a causal "
        "mask is square, of the visible ones under a window; of peak: over the peak of what multiplies in the same process, "
        "tiles or dots of pairs where there are such for products of bfloat16, else fused multiply-adds. "
        "A ratio is PyTorch's time over ours, median over rounds that take turns: above 1 we are faster. Where one pass of "
        f"PyTorch takes more than {LONGEST_SECONDS} s it ran once. A step is forward and backward; GFLOP/s, share and ratio are those of backward.",
        "",
        "| shape | storage | products | kernels | backward, ms | forward, ms | a step, ms | GFLOP/s | of peak | PyTorch |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['case']['name']} | {row['storage']} | {row['products']} | {row['ours'][0]['kernels']} | {row['median_ms']:.4g} | "
            f"{row['forward_ms']:.4g} | {row['median_ms'] + row['forward_ms']:.4g} | {row['gflops']:.1f} | {row['fraction_of_peak']:.2f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quiet", required=True, help="the quiet binary, release build")
    parser.add_argument("--check", action="store_true", help="compare gradients instead of times")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one turn, which is at least one call")
    parser.add_argument("--only", help="a part of the shapes' names")
    parser.add_argument("--output", type=pathlib.Path, default=results_folder(), help="folder of the tables")
    parser.add_argument("--unavailable", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("the backward pass is compared with PyTorch, which is not installed")
    torch.set_num_threads(options.threads)
    quiet = Quiet(options.quiet, options.threads)
    if options.check:
        with tempfile.TemporaryDirectory() as folder:
            check(torch, quiet, pathlib.Path(folder))
        return
    results = {"machine": machine(), "threads": options.threads, "version": torch.__version__, "rows": []}
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"backward-{options.threads}"
    for case in CASES:
        if options.only and options.only not in case.name:
            continue
        for storage, products in KINDS:
            print(f"{case.name}, {storage}, products {products} ...", file=sys.stderr, flush=True)
            results["rows"].append(compare(torch, case, storage, products, quiet, options))
            for row in results["rows"][-1:]:
                row["ours"] = [{n: r[n] for n in ("kernels", "median_ms", "fraction_of_peak", "digest")} for r in row["ours"]]
            stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
            stem.with_suffix(".md").write_text(markdown(results))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
