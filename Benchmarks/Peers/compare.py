# SPDX-License-Identifier: Apache-2.0
"""compare.py - other libraries beside `quiet bench`: same shapes, threads and minutes, in turns; outputs compared.

Every round gives each variant one turn; a ratio is the median over the rounds of (its time / ours of the same round).
Before the rounds each variant's output is compared with `quiet attend` on the same tensors, whole, and with the
definition in float64 on sampled rows. Difference and error are the largest absolute ones over the largest |out|.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from safetensors.numpy import load_file, save_file

from cases import BENCHMARKS, CORNERS, load

sys.path.append(str(BENCHMARKS / "Tables"))
from bench import words
from machine import described, machine, results_folder

# Float32 with the coarsest exponential among the peers (20 units in the last place, PyTorch) stays below a fifth.
TOLERANCE = 1e-5
HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


class Worker:
    """A library in its own process (peers.py). A process that dies is an answer too, and is started again."""

    def __init__(self, package, threads):
        self.package, self.threads = package, threads
        self.process = None
        self.start()

    def start(self):
        command = [sys.executable, HERE / "peers.py", self.package, str(self.threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.hello = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        return {"failed": "took too long" if code == -14 else f"its process ended with code {code}"}

    def ask(self, **command):
        if self.process.poll() is not None:
            self.start()
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


class Quiet:
    """The `quiet` command line."""

    def __init__(self, binary, threads):
        self.binary, self.threads = binary, threads

    def run(self, *words):
        done = subprocess.run([self.binary, *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"
            )
        return json.loads(done.stdout)

    def attend(self, case, inputs, output, softmax, *options):
        sink = "softmax" if softmax else {"softmax1": "softmax1", "learned": "tensor=sinks"}[case.sink]
        words = ["--sink", sink, "--mask", case.mask, "--threads", self.threads, "--json"]
        if case.keyLengths:
            words += ["--key-lengths", ",".join(map(str, case.keyLengths))]
        self.run("attend", inputs, "--output", output, *words, *options)
        return load_file(output)["out"]

    def bench(self, case, seconds, *options, of="forward"):
        """One turn of a pass: forward, backward or decode."""
        limits = ["--threads", self.threads, "--seconds", seconds]
        return self.run("bench", "--pass", of, *words(dataclasses.asdict(case)), *limits, *options, "--json")


def start_workers(names, offer, options):
    """Workers of the libraries that offer something, and why others are not there."""
    workers = [Worker(package, options.threads) for package in names]
    unavailable = [f"{names[w.package]}: {w.hello['failed']}" for w in workers if "failed" in w.hello]
    return [worker for worker in workers if offer in worker.hello], [*options.unavailable, *unavailable]


def distance(a, b):
    """Largest |a - b| over largest |b|; infinite where a is not finite."""
    difference = np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-30)
    return float(difference) if np.isfinite(difference) else float("inf")


def agreement(case, out, definition, ours):
    result = {"error": distance(out[:, :, case.sampled()], definition)}
    if ours is not None:
        result["difference"] = distance(out, ours)
    result["agrees"] = max(result.values()) <= TOLERANCE
    return result


def is_softmax(variant):
    return variant in ("SDPA", "FlexAttention", "MultiHeadAttention", "GroupQueryAttention")


def compare(case, quiet, workers, folder, options):
    """One row of the table: our figures, and for each variant its figures or the reason why there are none."""
    inputs = case.inputs()
    files = {name: str(folder / name) for name in ("in.safetensors", "out.safetensors", "out.npy")}
    save_file(inputs, files["in.safetensors"])
    row = {"case": dataclasses.asdict(case), "quiet": {}, "peers": []}
    definition, ours = {}, {}
    for softmax in (False, True):
        definition[softmax], ours[softmax] = case.definition(inputs, softmax), None
        try:
            ours[softmax] = quiet.attend(case, files["in.safetensors"], files["out.safetensors"], softmax)
            row["quiet"]["softmax" if softmax else "softmax_1"] = agreement(
                case, ours[softmax], definition[softmax], None
            )
        except RuntimeError as why:
            row["quiet"]["failed"] = str(why)

    running = []
    for worker in workers:
        for variant in worker.hello.get("variants", []):
            softmax = is_softmax(variant)
            peer = {"library": PACKAGES[worker.package], "variant": variant, "softmax": softmax, "rounds_ms": []}
            reply = worker.ask(
                do="prepare", variant=variant, case=row["case"], inputs=files["in.safetensors"], output=files["out.npy"]
            )
            if reply.get("ok"):
                peer.update(agreement(case, np.load(files["out.npy"]), definition[softmax], ours[softmax]))
                running.append((worker, peer))
            else:
                peer.update(reply)
            row["peers"].append(peer)

    if not options.check and "failed" not in row["quiet"]:
        take_turns(case, quiet, running, row, options)
    for worker in workers:
        worker.ask(do="forget")
    return row


def take_turns(case, quiet, running, row, options):
    begin, turns = time.monotonic(), []
    for _ in range(options.rounds):
        turns.append(quiet.bench(case, options.seconds))
        for worker, peer in running:
            time.sleep(0.02)  # threads that spin after the last turn go to sleep
            reply = worker.ask(do="time", variant=peer["variant"], seconds=options.seconds)
            if "ms" in reply:
                peer["rounds_ms"].append(statistics.median(reply["ms"]))
            else:
                peer.update(reply)
        running = [(worker, peer) for worker, peer in running if "failed" not in peer]
        if time.monotonic() - begin > options.budget:
            break
    middle = lambda name: statistics.median(turn[name] for turn in turns)
    row["quiet"].update({n: middle(n) for n in ("median_ms", "gflops", "fma_peak_gflops", "fraction_of_peak")})
    row["quiet"].update({"kernels": turns[0]["kernels"], "rounds_ms": [turn["median_ms"] for turn in turns]})
    for _, peer in running:
        peer["median_ms"] = statistics.median(peer["rounds_ms"])
        peer["ratio"] = statistics.median(p / q for p, q in zip(peer["rounds_ms"], row["quiet"]["rounds_ms"]))


def gap(figures):
    """Why figures are missing, or None."""
    return f"failed: {figures['failed']}" if "failed" in figures else figures.get("absent")


def markdown(results):
    """The table of ratios, then the agreement, then every reason for a gap."""
    columns = [(p["library"], p["variant"]) for row in results["rows"][:1] for p in row["peers"]]
    lines = [
        "# Other libraries beside QuietAttention",
        "",
        *described(results["machine"], results["threads"]),
        "Written by `Benchmarks/Peers/run`; "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + "; each library's own option, and OMP_NUM_THREADS, set to the threads. Ours is softmax_1 or learned sinks.",
        "A ratio is the library's time over ours, median over rounds that take turns: above 1 we are faster.",
        "",
    ]
    head = ["shape", "ms", "GFLOP/s", "of peak"] + [f"{library}: {variant}" for library, variant in columns]
    if not results["checked_only"]:
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    notes, agree = {}, []
    for row in results["rows"]:
        name, ours = row["case"]["name"], row["quiet"]
        cells = (
            [f"{ours['median_ms']:.3f}", f"{ours['gflops']:.1f}", f"{ours['fraction_of_peak']:.2f}"]
            if "median_ms" in ours
            else ["", "", ""]
        )
        if gap(ours):
            notes.setdefault(f"QuietAttention: {gap(ours)}", []).append(name)
        for peer in row["peers"]:
            cells.append(f"{peer['ratio']:.2f}" if "ratio" in peer else "failed" if "failed" in peer else "")
            if gap(peer):
                notes.setdefault(f"{peer['library']} {peer['variant']}: {gap(peer)}", []).append(name)
            if "agrees" in peer:
                agree.append((name, peer, ours.get("softmax" if peer["softmax"] else "softmax_1")))
        if not results["checked_only"]:
            lines.append("| " + " | ".join([name, *cells]) + " |")
    lines += ["", f"## Agreement (largest absolute value over largest |out|, at most {TOLERANCE:g} asked)", ""]
    lines += ["| shape | variant | difference from ours | its error | our error | |", "|---|---|---|---|---|---|"]
    number = lambda value: "" if value is None else f"{value:.1e}"
    for name, peer, ours in agree:
        cells = [name, f"{peer['library']}: {peer['variant']}", number(peer.get("difference")), number(peer["error"])]
        cells += [number((ours or {}).get("error")), "agrees" if peer["agrees"] else "**DIFFERS**"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Errors are against the definition in float64, on sampled rows.", "", "## Not measured, and why", ""]
    gaps = [f"{reason} ({', '.join(names)})" for reason, names in notes.items()]
    lines += [f"- {note}" for note in results["unavailable"] + gaps] or ["- nothing"]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quiet", required=True, help="the quiet binary, release build")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="*", help="names out of shapes.json; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of one turn, which is at least one call")
    parser.add_argument("--budget", type=float, default=150, help="seconds a shape may take; its round is finished")
    parser.add_argument("--check", action="store_true", help="compare outputs only, on small shapes around the corners")
    parser.add_argument("--output", type=pathlib.Path, default=results_folder(), help="folder of the tables")
    parser.add_argument(
        "--unavailable", action="append", default=[], help="a package that could not be installed, and why"
    )
    options = parser.parse_args()

    workers, unavailable = start_workers(PACKAGES, "variants", options)
    results = {
        "machine": machine(),
        "threads": options.threads,
        "versions": {PACKAGES[w.package]: w.hello["version"] for w in workers},
        "tolerance": TOLERANCE,
        "checked_only": options.check,
        "unavailable": unavailable,
        "rows": [],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / ("agreement" if options.check else f"peers-{options.threads}")
    with tempfile.TemporaryDirectory() as folder:
        quiet = Quiet(options.quiet, options.threads)
        for case in CORNERS if options.check else load(options.shapes):
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            results["rows"].append(compare(case, quiet, workers, pathlib.Path(folder), options))
            stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
            stem.with_suffix(".md").write_text(markdown(results))
    for worker in workers:
        worker.stop()
    print(stem.with_suffix(".md").read_text())
    differing = [
        f"{r['case']['name']} {p['variant']}" for r in results["rows"] for p in r["peers"] if not p.get("agrees", True)
    ]
    if differing:
        sys.exit("outputs differ: " + ", ".join(differing))


if __name__ == "__main__":
    main()
