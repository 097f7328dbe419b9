# SPDX-License-Identifier: Apache-2.0
"""machine.py - what a reader needs to place a figure: CPU, its vector features, system, compiler, commit, date; and the
folder of Results/ that tables of this CPU are in."""

import datetime
import os
import pathlib
import platform
import re
import subprocess

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = BENCHMARKS.parent
RESULTS = BENCHMARKS / "Results"


def output(*words):
    """What a command prints, or nothing if it cannot run."""
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def cpu():
    """Name of the CPU, and its features for vectors."""
    info = pathlib.Path("/proc/cpuinfo")
    if not info.exists():
        return output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine(), ""
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get("model name", platform.machine())
    name += "".join(f", {word} {fields[word]}" for word in ("cpu family", "model") if word in fields)
    wanted = ("avx", "fma", "f16c", "asimd", "sve", "bf16", "amx")
    features = (fields.get("flags") or fields.get("Features", "")).split()
    return name, " ".join(feature for feature in features if feature.startswith(wanted))


def machine():
    name, features = cpu()
    git = lambda *words: output("git", "-C", str(REPOSITORY), *words)
    # Tables and README are written by the measurements themselves.
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":!Benchmarks/Results", ":!README.md")
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "features": features,
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": (output("swift", "--version").splitlines() or [""])[0] + ", release build",
        "commit": git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else ""),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def folder(about):
    """Where tables of a machine are, below Results/: figures of one CPU never stand among those of another. Virtual machines
    hide features of CPUs, so the widest vectors that are offered belong to the name."""
    features = about["features"].split()
    widest = next((word for word in ("amx", "avx512", "avx2") if any(f.startswith(word) for f in features)), "")
    name = re.sub(r"\(\w+\)|\bcpu ", "", about["cpu"].lower())
    return "-".join(re.findall("[a-z0-9]+", f"{name} {widest}"))


def results_folder(about=None):
    """The folder of this machine's tables, or of that which is described."""
    return RESULTS / folder(about or machine())


def described(about, threads, products="float32"):
    """The lines under the heading of every table."""
    plural = "" if threads == 1 else "s"
    return [
        f"{about['cpu']} ({about['system']}, {about['cores']} cores), {threads} thread{plural}, {products}.",
        f"CPU features: {about['features']}.",
        f"Built by {about['compiler']}. Commit {about['commit']}, {about['date']}.",
    ]
