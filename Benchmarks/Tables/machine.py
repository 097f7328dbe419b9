# SPDX-License-Identifier: Apache-2.0
"""machine.py - what a reader needs to place a figure: CPU, its vector features, system, compiler, commit, date."""

import datetime
import os
import pathlib
import platform
import subprocess

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = BENCHMARKS.parent


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


def described(about, threads):
    """The lines under the heading of every table."""
    plural = "" if threads == 1 else "s"
    return [
        f"{about['cpu']} ({about['system']}, {about['cores']} cores), {threads} thread{plural}, float32.",
        f"CPU features: {about['features']}.",
        f"Built by {about['compiler']}. Commit {about['commit']}, {about['date']}.",
    ]
