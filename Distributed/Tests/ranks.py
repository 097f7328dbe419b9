#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# ranks.py - quiet-ring on 1 to 4 ranks of this machine: the bits of one process, and how runs end when something fails.
#
#     Distributed/Tests/ranks.py QUIET QUIET_RING [digests] [files] [gradients] [faults] [kills]
#
# Ends with status 1 at the first surprise. Runs as root, too: mpirun is told so.

import glob
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

QUIET, RING = (os.path.abspath(path) for path in sys.argv[1:3])
STEPS = sys.argv[3:] or ["digests", "files", "gradients", "faults", "kills"]
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "btl", "self,vader,tcp"]
# Containers often may not read the memory of another process, and complain when a message tries to.
MPIRUN += ["--mca", "btl_vader_single_copy_mechanism", "none"]
MPIRUN += ["--mca", "btl_tcp_if_include", "lo"] + (["--allow-run-as-root"] if os.getuid() == 0 else [])

SMALL = "--query-heads 4 --kv-heads 2 --head-dim 40 --value-dim 24"
# Lengths that do not divide, chunks that nobody or only some see, empty and ragged sequences, few rows.
DIGESTS = [
    f"forward {SMALL} --queries 2500 --mask causal --sink learned",
    f"forward {SMALL} --queries 3100 --mask window=300",
    f"forward {SMALL} --queries 9000 --mask window=64",
    f"forward {SMALL} --queries 900 --keys 3500 --mask window=700,70 --storage f16",
    f"forward {SMALL} --queries 70 --keys 5000 --mask none --sink softmax",
    f"forward {SMALL} --batch 4 --queries 1300 --keys 2600 --key-lengths 0,1300,2600,1 --mask causal",
    f"forward {SMALL} --queries 2100 --mask causal --storage bf16 --positions rope --qk-norm rms",
    f"forward {SMALL} --queries 1500 --mask causal --scaling log=8 --sink log-keys=1 --softcap 4 --alibi",
    "forward --query-heads 1 --queries 1 --keys 1 --head-dim 3 --mask causal",
    "forward --query-heads 2 --queries 5 --key-lengths 0 --head-dim 4",
    f"backward {SMALL} --queries 2300 --mask causal --sink learned",
    f"backward {SMALL} --queries 5000 --mask window=64",
    f"backward {SMALL} --queries 500 --keys 2500 --mask none --storage bf16",
    f"backward {SMALL} --batch 4 --queries 700 --keys 2100 --key-lengths 0,700,2100,1 --mask causal",
    f"backward {SMALL} --queries 1200 --mask causal --softcap 4 --alibi --scaling log=8",
    f"backward {SMALL} --queries 2100 --mask causal --storage bf16 --positions rope --qk-norm rms",
    f"backward {SMALL} --batch 3 --queries 900 --keys 2300 --key-lengths 2300,0,1100 --mask window=500,60 --positions coca-slack "
    "--qk-norm layer --alibi --storage f16",
    f"decode {SMALL} --queries 2 --keys 9000 --mask causal --sink learned",
    f"decode {SMALL} --queries 1 --keys 6500 --mask window=900",
]
ONE_RANK = [DIGESTS[0], DIGESTS[10], DIGESTS[15], DIGESTS[17]]


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, **options)


def check(condition, message):
    if not condition:
        sys.exit(f"ranks.py: {message}")


def digest(command):
    result = run(command)
    check(result.returncode == 0, f"{' '.join(command)}: {result.stderr}")
    return json.loads(result.stdout)["digest"]


def ranks(count, *arguments):
    return MPIRUN + ["-np", str(count), RING, *arguments]


def side_by_side(body, cases):
    """Runs `body` of each case, a few at a time: the start of MPI waits for most of its time. Prints the lines that it returns."""
    with ThreadPoolExecutor(3) as pool:
        for line in pool.map(body, cases):
            print(line, flush=True)


def digest_of_ranks(case):
    name, *options = case.split()
    options += ["--threads", "1", "--seconds", "0.001"]
    # Decoding over tensors is the forward pass.
    single = "forward" if name == "decode" else name
    expected = digest([QUIET, "bench", "--pass", single, *options])
    # One rank is one process with the same cuts: shown once for each pass.
    for count in (1, 2, 3, 4) if case in ONE_RANK else (2, 3, 4):
        found = digest(ranks(count, "bench", "--pass", name, *options))
        check(found == expected, f"{case}: {found} on {count} ranks, {expected} in one process")
    return f"{expected}  {case}"


def digests():
    side_by_side(digest_of_ranks, DIGESTS)
    sets = json.loads(run([QUIET, "info", "--json"]).stdout)["kernels_available"]

    def same_with(name):
        for case in (DIGESTS[0], DIGESTS[10], DIGESTS[15]):
            options = case.split()[1:] + ["--seconds", "0.001", "--threads", "2"]
            arguments = ["bench", "--pass", case.split()[0], *options, "--kernels"]
            expected = digest([QUIET, *arguments, sets[0]])
            check(digest(ranks(3, *arguments, name)) == expected, f"{case}: another digest with {name}")
        return f"kernels {name}: the same"

    side_by_side(same_with, sets)


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, bits) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(bits)]}
        data += bits
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def floats(count, seed, nan=range(0)):
    # A prime number of draws, over and over: rows differ.
    generator = random.Random(seed)
    draws = [generator.gauss(0, 1) for _ in range(min(count, 49_999))]
    values = (draws * (count // max(len(draws), 1) + 1))[:count]
    for index in nan:
        values[index] = float("nan")
    return struct.pack(f"<{count}f", *values)


def problem(path, batch=2, heads=2, queries=1500, keys=2200, dimension=8, hidden=100, query_heads=None):
    """Keys and values from keys - hidden on are NaN: padding."""
    query_heads = query_heads or heads
    shape = [batch, heads, keys, dimension]
    padding = [i for i in range(batch * heads * keys * dimension) if i // dimension % keys >= keys - hidden]
    count, rows = batch * heads * dimension, batch * query_heads * queries
    write_safetensors(path, {
        "q": ("F32", [batch, query_heads, queries, dimension], floats(rows * dimension, 1)),
        "k": ("F32", shape, floats(count * keys, 2, padding)),
        "v": ("F32", shape, floats(count * keys, 3, padding)),
        "dout": ("F32", [batch, query_heads, queries, dimension], floats(rows * dimension, 4)),
        "dlse": ("F32", [batch, query_heads, queries], floats(rows, 5)),
        "logits": ("F32", [query_heads], floats(query_heads, 6)),
        "slopes": ("F32", [query_heads], floats(query_heads, 7)),
        "gains": ("F32", [query_heads, dimension], floats(query_heads * dimension, 8)),
        "gain": ("F32", [dimension], floats(dimension, 9)),
        "zeros": ("F32", [query_heads], bytes(4 * query_heads)),
    })


def transposed(path, source, halves=()):
    """The problem of `source` as [batch, sequence, heads, dimension], and those tensors rounded to BF16 by truncation."""
    with open(source, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header, data = json.loads(file.read(length)), file.read()
    tensors = {}
    for name, entry in header.items():
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        bits, dtype = data[start:end], "F32"
        if len(shape) == 4:
            batch, heads, rows, dimension = shape
            row = 4 * dimension
            bits = b"".join(bits[((b * heads + h) * rows + r) * row:][:row]
                            for b in range(batch) for r in range(rows) for h in range(heads))
            shape = [batch, rows, heads, dimension]
        if name in halves:
            dtype, bits = "BF16", b"".join(bits[at + 2:at + 4] for at in range(0, len(bits), 4))
        tensors[name] = (dtype, shape, bits)
    write_safetensors(path, tensors)


def files():
    with tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/in.safetensors"
        problem(source)
        for options in (
            ["--mask", "causal", "--key-lengths", "2100,1500", "--lse"],
            ["--mask", "window=400", "--key-lengths", "2100,1000", "--sink", "n=3", "--positions", "rope"],
        ):
            one = run([QUIET, "attend", source, "--output", f"{folder}/one", *options])
            check(one.returncode == 0, one.stderr)
            for count in (1, 3):
                many = run(ranks(count, "attend", source, "--output", f"{folder}/many", *options))
                check(many.returncode == 0, many.stderr)
                with open(f"{folder}/one", "rb") as a, open(f"{folder}/many", "rb") as b:
                    check(a.read() == b.read(), f"attend {options}: another file from {count} ranks")
            print(f"attend {' '.join(options)}: the same file", flush=True)
        check(sorted(os.listdir(folder)) == ["in.safetensors", "many", "one"], f"left behind: {os.listdir(folder)}")


def gradients():
    """dq, dk, dv and what heads and norms have in the file of one process: ragged batches with NaN behind their ends, and an
    empty sequence."""
    sets = json.loads(run([QUIET, "info", "--json"]).stdout)["kernels_available"]
    with tempfile.TemporaryDirectory() as folder:
        source, behind, halves = (f"{folder}/{name}.safetensors" for name in ("in", "behind", "halves"))
        problem(source, batch=3, heads=1, query_heads=2, queries=700, keys=2200)
        transposed(behind, source)
        transposed(halves, source, ("q", "k", "v", "dout"))
        ragged = ["--key-lengths", "2100,0,1500", "--gradients"]
        cases = (
            (source, (1, 2, 3, 4), ["--mask", "causal", "--lse", "--lse-gradient", "dlse", "--sink", "tensor=logits"]),
            (source, (2, 4), ["--mask", "window=300", "--output-gradient", "q", "--softcap", "4", "--alibi"]),
            (source, (3,), ["--mask", "window=64,9", "--sink", "softmax", "--lse-gradient", "dlse"]),
            (source, (1, 2, 3, 4), ["--mask", "causal", "--positions", "rope", "--qk-norm", "rms", "--query-gain", "gains",
                                    "--key-gain", "gain", "--alibi-slopes", "slopes", "--ssmax", "slopes"]),
            (behind, (2,), ["--layout", "bshd", "--mask", "window=300", "--positions", "coca-strict", "--qk-norm", "layer",
                            "--query-gain", "gain", "--query-bias", "gains", "--key-bias", "gain", "--lse-gradient", "dlse"]),
            (halves, (4,), ["--layout", "bshd", "--mask", "window=700,30", "--positions", "rope", "--alibi-slopes", "slopes",
                            "--sink", "tensor=logits", "--softcap", "3"]),
            (behind, (3,), ["--layout", "bshd", "--mask", "causal", "--scaling", "log=8"]),
            (halves, (2,), ["--layout", "bshd", "--mask", "causal", "--lse-gradient", "dlse"]),
        )

        def same_files(case):
            path, counts, options = case
            own = tempfile.mkdtemp(dir=folder)
            arguments = ["--output", f"{own}/one", *ragged, *options, "--threads", "1"]
            one = run([QUIET, "attend", path, *arguments, "--kernels", sets[0]])
            check(one.returncode == 0, one.stderr)
            with open(f"{own}/one", "rb") as file:
                expected = file.read()
            arguments[1] = f"{own}/many"
            for count, name in [(count, sets[0]) for count in counts] + [(3, name) for name in sets[1:]]:
                many = run(ranks(count, "attend", path, *arguments, "--kernels", name))
                check(many.returncode == 0, many.stderr)
                with open(f"{own}/many", "rb") as file:
                    check(file.read() == expected, f"{options}: another file from {count} ranks with {name}")
            return f"attend --gradients {' '.join(options)}: the same file"

        side_by_side(same_files, cases)


def ends(what, command, expected, status=None, within=60, **options):
    """Runs a command that must fail soon, with a line that holds `expected`."""
    start = time.monotonic()
    result = run(command, **options)
    seconds = time.monotonic() - start
    check(result.returncode != 0, f"{what}: ended with status 0")
    check(status is None or result.returncode == status, f"{what}: status {result.returncode}: {result.stderr}")
    lines = [line for line in result.stderr.splitlines() if line.startswith("quiet-ring: ")]
    check(len(lines) == 1 and expected in lines[0], f"{what}: {result.stderr}")
    check(seconds < within, f"{what}: took {seconds:.1f} s")
    print(f"{what}: {lines[0]} ({seconds:.1f} s)", flush=True)


def on_rank_1(before, *arguments):
    """Two ranks, of which rank 1 first runs something in its shell."""
    script = f'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then {before}; fi; exec "$0" "$@"'
    return MPIRUN + ["-np", "2", "sh", "-c", script, RING, *arguments]


def seconds_of_cpu(pid):
    """That a process has used so far, all its threads; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(is_so, process, what, within=60):
    """Waits for something that a run does, however slow the machine."""
    deadline = time.monotonic() + within
    while not is_so():
        if process.poll() is not None:
            sys.exit(f"ranks.py: {what}: it ended too early: {process.communicate()}")
        if time.monotonic() > deadline:
            process.terminate()
            sys.exit(f"ranks.py: {what}: it did not start: {process.communicate()}")
        time.sleep(0.05)


def interrupted(what, how, command, folder, starts=None, expected=""):
    """Signals rank 1 while it computes: the run ends with a status that is not 0, and leaves nothing.

    It computes when `starts` says so of its process. A hang is what does not end in two minutes: how long a run takes to end
    by itself is printed, and not judged, for that is up to what else the machine does.
    """
    pid_file = f"{folder}/pid"
    command = [part.replace("PID_FILE", pid_file) for part in command]
    before = set(os.listdir(folder))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: os.path.exists(pid_file) and open(pid_file).read().endswith("\n"), process, what)
    pid = int(open(pid_file).read())
    # The start of MPI waits for all ranks, and uses little: who has used so much computes.
    wait_until(lambda: seconds_of_cpu(pid) > 1.5 and (starts is None or starts()), process, what)
    start = time.monotonic()
    os.kill(pid, how)
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        sys.exit(f"ranks.py: {what}: hangs")
    seconds = time.monotonic() - start
    os.remove(pid_file)
    check(process.returncode != 0, f"{what}: ended with status 0")
    check(expected in errors, f"{what}: {errors}")
    # mpirun may end a moment before the ranks that it has told to end.
    deadline = time.monotonic() + 20
    while (left := set(os.listdir(folder)) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    check(not left, f"{what}: left behind: {left}; {errors}")
    print(f"{what}: status {process.returncode} after {seconds:.1f} s", flush=True)


def faults():
    with tempfile.TemporaryDirectory() as folder:
        source, out = f"{folder}/in.safetensors", f"{folder}/out"
        problem(source, batch=1, queries=300, keys=1200)
        attend = ["attend", "in.safetensors", "--output", out]
        ends("gradients beside a bias", ranks(2, "attend", source, "--output", out, "--gradients", "--bias", "q"),
             "--bias: is not offered", status=64)
        ends("the gradient of an s of 0", ranks(2, "attend", source, "--output", out, "--gradients", "--ssmax", "zeros"),
             "scaling.scalableSoftmax[0]", status=1)
        ends("a gradient of another shape", ranks(2, "attend", source, "--output", out, "--gradients", "--lse-gradient",
             "dout"), "expected the shape", status=1)
        ends("no such option", ranks(2, "attend", source, "--output", out, "--oops"), "Unknown option", status=64)
        ends("no file", ranks(2, "attend", f"{folder}/none", "--output", out), "cannot open", status=1)
        ends("no file on one rank", on_rank_1("cd /", *attend), "rank 1: cannot open", status=1, cwd=folder)
        ends("another file on one rank", on_rank_1(f"mkdir -p {folder}/b; cd {folder}/b; cp ../other in.safetensors",
             *attend), "rank 1: has a file", status=1, cwd=other_file(folder))
        kernels = "QUIET_ATTENTION_KERNELS=portable; export QUIET_ATTENTION_KERNELS"
        ends("other kernels on one rank", on_rank_1(kernels, *attend), "rank 1: has kernels portable", 1, cwd=folder)
        ends("other options on one rank", on_rank_1('set -- "$@" --lse', *attend), "rank 1: has arguments", 1, cwd=folder)
        ends("no memory on one rank", on_rank_1("ulimit -v 800000", "bench", "--queries", "30000", "--head-dim", "256",
             "--query-heads", "8"), "rank 1: no memory", status=1)
        ends("an output that cannot be written", ranks(2, "attend", source, "--output", "/nowhere/out"), "cannot write")
        check(not os.path.exists(out) and not glob.glob(f"{folder}/.quiet-*"), "an output was left behind")


def kills():
    """Ranks that are killed or stopped while they compute."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = f"{folder}/in.safetensors", f"{folder}/out"
        attend = ["attend", "in.safetensors", "--output", out]
        long = ["bench", "--queries", "6000", "--seconds", "600", "--mask", "causal", "--threads", "1"]
        pid = 'echo $$ > "PID_FILE"'
        interrupted("a rank is killed", signal.SIGKILL, on_rank_1(pid, *long), folder)
        interrupted("a rank stands still", signal.SIGSTOP, on_rank_1(pid, *long, "--patience", "5"), folder,
                    expected="waited 5.0 s in vain for")
        problem(source, batch=1, heads=2, queries=9000, keys=9000, dimension=64, hidden=0)
        slow = [*attend, "--mask", "causal", "--kernels", "portable", "--threads", "1"]
        interrupted("a rank is killed before the output is written", signal.SIGKILL,
                    ["env", "-C", folder, *on_rank_1(pid, *slow)], folder,
                    starts=lambda: glob.glob(f"{folder}/.quiet-*"))


def other_file(folder):
    problem(f"{folder}/other", batch=1, queries=300, keys=1100)
    return folder


begin = time.monotonic()
for step in STEPS:
    start = time.monotonic()
    {"digests": digests, "files": files, "gradients": gradients, "faults": faults, "kills": kills}[step]()
    print(f"{step}: {time.monotonic() - start:.0f} s", flush=True)
print(f"all: {time.monotonic() - begin:.0f} s", flush=True)
