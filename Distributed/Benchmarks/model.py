#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# model.py - the cost model of Documentation/Distributed.md beside runs: constants measured, times predicted and measured.
#
#     Distributed/Benchmarks/model.py QUIET QUIET_RING [--ranks 1,2,3,4] [--rounds 3] [--link 1gbit,200mbit] [--queries 8192]
#
# Without --link ranks talk as on one machine, through its memory. With --link (as root, on Linux with ip, tc, unshare) each rank
# is a machine of its own in a network namespace, whose link to a switch sends so much; mpirun starts a daemon on each.
#
# Constants are of runs that are not predicted: the rates of a thread of `quiet bench` at half the length, hop and bytes per
# second of `quiet-ring links` on as many ranks. Ranks beyond the CPUs share them. Times are the least of --rounds runs, in turns.

import argparse
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile

HEADS, KV_HEADS, DIMENSION, BYTES = 2, 1, 128, 4
CPUS = len(os.sched_getaffinity(0))
ROOT = ["--allow-run-as-root"] if os.getuid() == 0 else []
HUB, NETWORK = "quiet-ring-hub", "10.77.0"


def run(command, **options):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300, **options)
    if result.returncode:
        sys.exit(f"model.py: {' '.join(command)}: {result.stderr}")
    return result.stdout


class Machine:
    """All ranks on this machine."""

    name = "one machine"

    def mpirun(self, ranks):
        return ["mpirun", "--oversubscribe", "--bind-to", "core" if ranks <= CPUS else "none", *ROOT, "--mca", "btl",
                "self,vader", "--mca", "btl_vader_single_copy_mechanism", "none", "-np", str(ranks)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Link:
    """Each rank a machine of its own, in a network namespace with a host name: machine i at 10.77.0.i."""

    def __init__(self, rate, machines):
        self.name, self.rate, self.machines = rate, rate, machines

    def space(self, machine):
        return f"quiet-ring-{machine}"

    def __enter__(self):
        run(["ip", "netns", "add", HUB])
        run(["ip", "-n", HUB, "link", "add", "name", "switch0", "type", "bridge"])
        run(["ip", "-n", HUB, "link", "set", "dev", "switch0", "up"])
        for machine in range(1, self.machines + 1):
            space, port = self.space(machine), f"port{machine}"
            run(["ip", "netns", "add", space])
            run(["ip", "link", "add", "link0", "netns", space, "type", "veth", "peer", "name", port, "netns", HUB])
            run(["ip", "-n", HUB, "link", "set", "dev", port, "master", "switch0", "up"])
            run(["ip", "-n", space, "address", "add", f"{NETWORK}.{machine}/24", "dev", "link0"])
            run(["ip", "-n", space, "link", "set", "dev", "link0", "up"])
            run(["ip", "-n", space, "link", "set", "dev", "lo", "up"])
            run(["ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", "link0", "root", "tbf", "rate", self.rate,
                 "burst", "128kb", "latency", "50ms"])
        # mpirun calls it as it would ssh: HOST COMMAND...
        self.folder = tempfile.TemporaryDirectory()
        self.agent = f"{self.folder.name}/agent"
        with open(self.agent, "w") as file:
            file.write(f'#!/bin/sh\nhost=quiet-ring-${{1##*.}}\nshift\nexec ip netns exec "$host" unshare --uts '
                       f'sh -c "hostname $host; $*"\n')
        os.chmod(self.agent, stat.S_IRWXU)
        return self

    def __exit__(self, *_):
        for space in [*map(self.space, range(1, self.machines + 1)), HUB]:
            subprocess.run(["ip", "netns", "delete", space], check=False)
        self.folder.cleanup()

    def mpirun(self, ranks):
        hosts = ",".join(f"{NETWORK}.{machine}" for machine in range(1, ranks + 1))
        command = ["mpirun", "--bind-to", "none", *ROOT, "--mca", "plm_rsh_agent", self.agent, "--mca",
                   "oob_tcp_if_include", f"{NETWORK}.0/24", "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include",
                   f"{NETWORK}.0/24", "-H", hosts, "-np", str(ranks)]
        first = self.space(1)
        return ["ip", "netns", "exec", first, "unshare", "--uts", "sh", "-c", f'hostname {first}; exec "$0" "$@"', *command]


def shape(queries):
    return ["--query-heads", str(HEADS), "--kv-heads", str(KV_HEADS), "--queries", str(queries), "--head-dim",
            str(DIMENSION), "--mask", "causal", "--threads", "1", "--seconds", "0.5"]


def channels(name):
    return DIMENSION * (2 if name == "forward" else 5)


def predict(name, queries, ranks, rate, link):
    """Seconds of computation and of sending: the formulas of Distributed.md."""
    pairs = HEADS * queries * (queries + 1) / 2
    compute = 2 * pairs * channels(name) / (rate * min(ranks, CPUS))
    if ranks == 1:
        return compute, 0.0
    if name == "forward":
        return compute, queries * KV_HEADS * 2 * DIMENSION * BYTES * (ranks - 1) / ranks / link["bytes_per_second"]
    # All rows meet the first chunk, on one rank, and the last stripe then all chunks.
    alone = 2 * KV_HEADS * queries * (1024 * HEADS / KV_HEADS + 512) * channels(name) / rate
    row = 4 * DIMENSION + 12 + 2 * DIMENSION * BYTES
    sent = HEADS * queries * ((queries / 2048 + 0.5) * row + 4 * DIMENSION) * (ranks - 1) / ranks
    return max(compute, alone), sent / ranks / link["bytes_per_second"]


def table(place, arguments, counts, rates):
    links = {ranks: json.loads(run([*place.mpirun(ranks), arguments.ring, "links", "--messages", "20"]))
             for ranks in counts if ranks > 1}
    print()
    for ranks, link in links.items():
        print(f"{place.name}, {ranks} ranks: hop {link['hop_s'] * 1e6:.0f} us, {link['bytes_per_second'] / 1e6:.0f} MB/s from each")
    print("\n| pass | ranks | compute | send | predicted | measured | over predicted | waiting |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in ("forward", "backward"):
        best = {}
        for _ in range(arguments.rounds):
            for ranks in counts:
                result = json.loads(run([*place.mpirun(ranks), arguments.ring, "bench", "--pass", name,
                                         *shape(arguments.queries)]))
                if ranks not in best or result["min_ms"] < best[ranks]["min_ms"]:
                    best[ranks] = result
        for ranks in counts:
            compute, send = predict(name, arguments.queries, ranks, rates[name], links.get(ranks))
            predicted, measured = max(compute, send), best[ranks]["min_ms"] / 1e3
            print(f"| {name} | {ranks} | {compute:.2f} s | {send:.2f} s | {predicted:.2f} s | {measured:.2f} s "
                  f"| {measured / predicted:.2f} | {best[ranks]['waiting_ms'] / 1e3:.2f} s |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("quiet", type=os.path.abspath)
    parser.add_argument("ring", type=os.path.abspath)
    parser.add_argument("--ranks", default="1,2,3,4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--link", default="")
    parser.add_argument("--queries", type=int, default=8192)
    arguments = parser.parse_args()
    # Ended by a signal, too, the namespaces go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    counts = [int(count) for count in arguments.ranks.split(",")]
    rates = {}
    for name in ("forward", "backward"):
        results = [json.loads(run([arguments.quiet, "bench", "--pass", name, *shape(arguments.queries // 2)]))
                   for _ in range(arguments.rounds)]
        pairs = HEADS * (arguments.queries // 2) * (arguments.queries // 2 + 1) / 2
        rates[name] = 2 * pairs * channels(name) / (min(result["min_ms"] for result in results) / 1e3)
    print(f"{HEADS} heads over {KV_HEADS}, {arguments.queries}, d {DIMENSION}, causal, f32, ranks of one thread on {CPUS} CPUs; "
          f"a thread computes {rates['forward'] / 1e9:.0f} GFLOP/s forward, {rates['backward'] / 1e9:.0f} backward")
    for rate in filter(None, arguments.link.split(",")) if arguments.link else [""]:
        with Link(rate, max(counts)) if rate else Machine() as place:
            table(place, arguments, [count for count in counts if not rate or count > 1], rates)


main()
