# SPDX-License-Identifier: Apache-2.0
"""products.py - products of bfloat16: ours beside other libraries' bfloat16, and beside ours of float32, in turns.

Tensors are of bfloat16, apart from our output, which is float32, and OpenVINO, which takes float32 and a hint. A ratio is
the median over the rounds of (a time / that of our products of bfloat16 in the same round). Before the rounds the output
of each is compared with the definition in float64 over the tensors before they were rounded.
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
from safetensors.numpy import save_file

from cases import load
from compare import Quiet, described, distance, machine, results_folder, start_workers

SHAPES = ["gpt2-1024-full", "gpt2-1024-causal", "gqa-4096-causal", "encoder-128", "llama-2048-causal"]
# Of a head's largest output: inputs and weights have 8 bits.
TOLERANCE = 3e-2
FLOAT32_ERROR = 1e-5
PACKAGES = {"torch": "PyTorch", "openvino": "OpenVINO"}
OURS = {"bf16": ["--storage", "bf16", "--products", "bf16"], "f32": []}


def compare(case, quiet, workers, folder, options):
    inputs = case.inputs()
    files = {"inputs": str(folder / "in.safetensors"), "output": str(folder / "out.npy")}
    save_file(inputs, files["inputs"])
    definition = case.definition(inputs, softmax=True)
    error = lambda out: distance(out[:, :, case.sampled()], definition)
    out = quiet.attend(case, files["inputs"], str(folder / "out.safetensors"), True, "--products", "bf16")
    row = {"case": dataclasses.asdict(case), "error": error(out), "peers": []}
    running = []
    for worker in workers:
        for variant in worker.hello["products"]:
            peer = {"library": PACKAGES[worker.package], "variant": variant, "rounds_ms": []}
            row["peers"].append(peer)
            reply = worker.ask(do="prepare", variant=variant, case=row["case"], of="products", **files)
            if reply.get("ok"):
                peer["error"] = error(np.load(files["output"]))
                running.append((worker, peer))
            else:
                peer.update(reply)
    turns = {kind: [] for kind in OURS}
    for _ in range(options.rounds):
        for kind, words in OURS.items():
            turns[kind].append(quiet.bench(case, options.seconds, *words))
        for worker, peer in running:
            time.sleep(0.02)  # threads that spin after the last turn go to sleep
            reply = worker.ask(do="time", variant=peer["variant"], seconds=options.seconds)
            peer["rounds_ms"].append(statistics.median(reply["ms"]))
    for kind, rounds in turns.items():
        row[kind] = {"rounds_ms": [turn["median_ms"] for turn in rounds], "kernels": rounds[0]["kernels"]}
        for name in ("median_ms", "gflops", "products_peak_gflops", "fraction_of_peak"):
            row[kind][name] = statistics.median(turn[name] for turn in rounds)
    ours = row["bf16"]["rounds_ms"]
    row["float32_ratio"] = statistics.median(f / b for f, b in zip(row["f32"]["rounds_ms"], ours))
    for _, peer in running:
        peer["ratio"] = statistics.median(p / b for p, b in zip(peer["rounds_ms"], ours))
    for worker in workers:
        worker.ask(do="forget")
    return row


def markdown(results):
    columns = [(peer["library"], peer["variant"]) for row in results["rows"][:1] for peer in row["peers"]]
    lines = [
        "# Products of bfloat16",
        "",
        *described(results["machine"], results["threads"], "bfloat16"),
        "Written by `Benchmarks/Peers/run --products`; "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + ". Ours is softmax_1. The peak is that of the unit which multiplies bfloat16 on this kernel set, measured in the same"
        " runs: tiles or dots of pairs where the CPU has them, else multiply-adds of float32.",
        "A ratio is the time of the column over that of our products of bfloat16, median over rounds that take turns: above 1"
        " these are faster. Errors are the largest absolute ones over the largest output, against the definition in float64"
        " over the tensors before they were rounded to bfloat16, on sampled rows.",
        "",
    ]
    head = ["shape", "kernels", "ms", "GFLOP/s", "peak", "of peak", "ours, float32"]
    head += [f"{library}: {variant}" for library, variant in columns]
    head += ["our error"] + [f"{library}'s error" for library, _ in columns]
    lines += ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    notes = [f"- {note}" for note in results["unavailable"]]
    for row in results["rows"]:
        ours = row["bf16"]
        cells = [row["case"]["name"], ours["kernels"], f"{ours['median_ms']:.3f}", f"{ours['gflops']:.1f}"]
        cells += [f"{ours['products_peak_gflops']:.1f}", f"{ours['fraction_of_peak']:.2f}", f"{row['float32_ratio']:.2f}"]
        cells += [f"{peer['ratio']:.2f}" if "ratio" in peer else "" for peer in row["peers"]]
        cells += [f"{row['error']:.1e}"] + [f"{peer['error']:.1e}" if "error" in peer else "" for peer in row["peers"]]
        lines.append("| " + " | ".join(cells) + " |")
        for peer in row["peers"]:
            if "error" not in peer:
                why = peer.get("failed", peer.get("absent"))
                notes.append(f"- {row['case']['name']}, {peer['library']} {peer['variant']}: {why}")
            elif peer["error"] < FLOAT32_ERROR:
                notes.append(f"- {row['case']['name']}: {peer['library']} computed in float32, as its error says")
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quiet", required=True, help="the quiet binary, release build")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="names out of shapes.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of one turn, which is at least one call")
    parser.add_argument("--output", type=pathlib.Path, default=results_folder(), help="folder of the tables")
    parser.add_argument("--unavailable", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()

    workers, unavailable = start_workers(PACKAGES, "products", options)
    results = {
        "machine": machine(),
        "threads": options.threads,
        "versions": {PACKAGES[worker.package]: worker.hello["version"] for worker in workers},
        "unavailable": unavailable,
        "rows": [],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"products-{options.threads}"
    with tempfile.TemporaryDirectory() as folder:
        quiet = Quiet(options.quiet, options.threads)
        for case in load(options.shapes):
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            results["rows"].append(compare(case, quiet, workers, pathlib.Path(folder), options))
            stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
            stem.with_suffix(".md").write_text(markdown(results))
    for worker in workers:
        worker.stop()
    print(stem.with_suffix(".md").read_text())
    figures = [row["error"] for row in results["rows"]]
    figures += [peer.get("error", 0) for row in results["rows"] for peer in row["peers"]]
    if max(figures) > TOLERANCE:
        sys.exit(f"an output is off by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
