# SPDX-License-Identifier: Apache-2.0
"""decode.py - one query against a long cache: every storage of ours, and other libraries beside it, in turns.

A share is the bytes of keys and values per second over the read bandwidth that the same process measured in turns. A
ratio is the median over the rounds of (a library's time / ours of the same round), in the library's own storage type;
or of the rate of our next set of kernels over that of the first. Before the rounds its output is compared with the
definition in float64.
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

from cases import Case
from compare import Quiet, Worker, described, distance, machine, results_folder

CASES = [
    Case("32/8 heads, 4096 keys, d 128", 32, 1, 128, keyValueHeads=8, keys=4096),
    Case("32/8 heads, 32768 keys, d 128", 32, 1, 128, keyValueHeads=8, keys=32768),
    Case("16 heads, 8192 keys, d 64", 16, 1, 64, keys=8192),
]
# Of ours, and what they are in the words of the command line.
STORAGES = {
    "f32": ["--storage", "f32"],
    "bf16": ["--storage", "bf16"],
    "bf16 products": ["--storage", "bf16", "--products", "bf16"],
    "f16": ["--storage", "f16"],
    "int8": ["--storage", "int8"],
}
# Library, variant, the storage of ours it is measured against, largest difference from the definition.
PEERS = [
    ("torch", "SDPA", "f32", 1e-5),
    ("torch", "SDPA, bfloat16", "bf16", 3e-2),
    ("onnxruntime", "GQA, shared buffer", "f32", 1e-5),
]
NAMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}


def bench(quiet, case, storage, seconds, kernels):
    return quiet.bench(
        case, seconds, *STORAGES[storage], *(["--kernels", kernels] if kernels else []), of="decode"
    )


def next_kernels(quiet, kernels):
    """The set of kernels after `kernels`, or after the best, where its vectors are more than the baseline's."""
    available = quiet.run("info", "--json")["kernels_available"]
    rest = available[available.index(kernels or available[0]) + 1 :]
    return rest[0] if rest and rest[0] != "portable" else None


def compare(case, quiet, workers, folder, options):
    inputs = case.inputs()
    files = {"inputs": str(folder / "in.safetensors"), "output": str(folder / "out.npy")}
    save_file(inputs, files["inputs"])
    definition = case.definition(inputs, softmax=True)
    row = {"case": dataclasses.asdict(case), "quiet": {}, "peers": []}
    for package, variant, storage, tolerance in PEERS:
        peer = {"library": package, "variant": variant, "storage": storage, "rounds_ms": []}
        row["peers"].append(peer)
        if package not in workers:
            peer["failed"] = "not installed"
            continue
        reply = workers[package].ask(do="prepare", variant=variant, case=row["case"], of="decoding", **files)
        peer.update({} if reply.get("ok") else reply)
        if reply.get("ok"):
            peer["error"] = distance(np.load(files["output"]), definition)
            peer["agrees"] = peer["error"] <= tolerance
    turns = {storage: [] for storage in STORAGES}
    beside = {storage: [] for storage in STORAGES}
    for _ in range(options.rounds):
        for storage in STORAGES:
            turns[storage].append(bench(quiet, case, storage, options.seconds, options.kernels))
            if options.beside:
                beside[storage].append(bench(quiet, case, storage, options.seconds, options.beside))
            for peer in row["peers"]:
                if peer["storage"] != storage or "error" not in peer:
                    continue
                time.sleep(0.02)  # threads that spin after the last turn go to sleep
                reply = workers[peer["library"]].ask(do="time", variant=peer["variant"], seconds=options.seconds)
                peer["rounds_ms"].append(statistics.median(reply["ms"]))
    for storage, rounds in turns.items():
        middle = lambda value: statistics.median(map(value, rounds))
        row["quiet"][storage] = {
            "median_ms": middle(lambda r: r["median_ms"]),
            "append_ms": middle(lambda r: r["append_ms"]),
            "gbytes_per_s": middle(lambda r: r["gbytes_per_s"]),
            "read_gbytes_per_s": middle(lambda r: r["read_gbytes_per_s"]),
            "read_best_gbytes_per_s": middle(lambda r: r["read_best_gbytes_per_s"]),
            "share": middle(lambda r: r["gbytes_per_s"] / r["read_gbytes_per_s"]),
            "rounds_ms": [r["median_ms"] for r in rounds],
            "kernels": rounds[0]["kernels"],
        }
        if options.beside:
            pairs = zip(rounds, beside[storage])
            row["quiet"][storage]["beside"] = {
                "kernels": options.beside,
                "rounds_ms": [r["median_ms"] for r in beside[storage]],
                "ratio": statistics.median(r["median_ms"] / other["median_ms"] for r, other in pairs),
            }
    for peer in row["peers"]:
        if peer["rounds_ms"]:
            ours = row["quiet"][peer["storage"]]["rounds_ms"]
            peer["ratio"] = statistics.median(p / q for p, q in zip(peer["rounds_ms"], ours))
    for worker in workers.values():
        worker.ask(do="forget")
    return row


def markdown(results):
    lines = [
        "# Decoding: one query against a cache",
        "",
        *described(results["machine"], results["threads"]),
        "Written by `Benchmarks/Peers/run --decode`; "
        + ", ".join(f"{NAMES[name]} {version}" for name, version in results["versions"].items())
        + ". Ours is softmax_1. A share is the bytes of keys and values per second over the bandwidth of reading alone: "
        "medians of turns in the same process, reading with the number of streams that is fastest; above 1, keys and "
        "values stay in cache from one call to the next.",
        "A ratio is the library's time over ours, median over rounds that take turns: above 1 we are faster. Of another "
        "set of our kernels it is that set's rate over the first's.",
        "",
    ]
    head = ["shape", "storage", "kernels", "ms", "append, ms", "GB/s", "reading", "share"]
    beside = next((ours["beside"] for row in results["rows"] for ours in row["quiet"].values() if "beside" in ours), None)
    head += [beside["kernels"]] if beside else []
    head += [f"{NAMES[package]}: {variant}" for package, variant, _, _ in PEERS]
    lines += ["| " + " | ".join(head) + " |", "|---|---|---|" + "---:|" * (len(head) - 3)]
    notes = []
    for row in results["rows"]:
        for storage, ours in row["quiet"].items():
            cells = [row["case"]["name"], storage, ours["kernels"], f"{ours['median_ms']:.3f}"]
            cells += [f"{ours['append_ms']:.4f}", f"{ours['gbytes_per_s']:.1f}"]
            cells += [f"{ours['read_gbytes_per_s']:.1f}", f"{ours['share']:.2f}"]
            cells += [f"{ours['beside']['ratio']:.2f}"] if beside else []
            cells += [
                f"{peer['ratio']:.1f}" if "ratio" in peer and peer["storage"] == storage else ""
                for peer in row["peers"]
            ]
            lines.append("| " + " | ".join(cells) + " |")
        for peer in row["peers"]:
            name = f"{row['case']['name']}, {NAMES[peer['library']]} {peer['variant']}"
            if "failed" in peer or "absent" in peer:
                notes.append(f"{name}: {peer.get('failed', peer.get('absent'))}")
            else:
                verdict = "agrees" if peer["agrees"] else "**DIFFERS**"
                notes.append(f"{name}: {verdict}, {peer['error']:.1e} from the definition")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quiet", required=True, help="the quiet binary, release build")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.4, help="of one turn, which is at least one call")
    parser.add_argument("--kernels", help="ours; default: the best set")
    parser.add_argument("--beside", help="another set of ours; default: the next one, if it is not the portable one")
    parser.add_argument("--only", help="a part of the shapes' names")
    parser.add_argument("--output", type=pathlib.Path, default=results_folder(), help="folder of the tables")
    parser.add_argument("--unavailable", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()

    workers = {package: Worker(package, options.threads) for package in NAMES}
    workers = {package: worker for package, worker in workers.items() if "decoding" in worker.hello}
    results = {
        "machine": machine(),
        "threads": options.threads,
        "versions": {package: worker.hello["version"] for package, worker in workers.items()},
        "rows": [],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    kernels = f"-{options.kernels}" if options.kernels else ""
    stem = options.output / f"decode-{options.threads}{kernels}"
    with tempfile.TemporaryDirectory() as folder:
        quiet = Quiet(options.quiet, options.threads)
        options.beside = options.beside or next_kernels(quiet, options.kernels)
        for case in CASES:
            if options.only and options.only not in case.name:
                continue
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            results["rows"].append(compare(case, quiet, workers, pathlib.Path(folder), options))
            stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
            stem.with_suffix(".md").write_text(markdown(results))
    for worker in workers.values():
        worker.stop()
    print(stem.with_suffix(".md").read_text())
    if any(not peer.get("agrees", True) for row in results["rows"] for peer in row["peers"]):
        sys.exit("outputs differ")


if __name__ == "__main__":
    main()
