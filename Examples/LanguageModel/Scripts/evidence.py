#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the tables and pictures of Documentation/Evidence.md, one experiment per command.

    Scripts/evidence.py NAME MODEL.gguf BOOK.txt path/to/language-model DOCUMENTATION [RESULTS]

NAME is length, entropy, heads, softmax1 or cache. Runs language-model with one thread, keeps what it prints in the folder
RESULTS beside the commit that it was made at (and takes from there what an earlier run left, so that a run that was stopped
goes on), writes DOCUMENTATION/Evidence/NAME.svg and replaces the part of DOCUMENTATION/Evidence.md between the marks of that
name. Needs nothing but the standard library, and git for the commit.
"""
import json
import math
import os
import re
import subprocess
import sys

BINS = [(1, 1024), (1024, 2048), (2048, 4096), (4096, 8192), (8192, 10240), (10240, 12288), (12288, 16384)]
LOG_BASE = 512
COLOURS = ["#1b6ca8", "#c0392b", "#27864d", "#b9770e", "#7d3c98", "#555555"]


class Runner:
    def __init__(self, model, book, command, results):
        self.model, self.book, self.command, self.results = model, book, command, results
        self.commits = set()
        os.makedirs(results, exist_ok=True)

    @staticmethod
    def commit():
        """The commit of the tree that this script is in, by which the program is taken to be built."""
        folder = os.path.dirname(os.path.abspath(__file__))

        def git(*words):
            return subprocess.run(["git", "-C", folder, *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/Sources", ":/CKernels", "..")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")

    def json(self, name, verb, *options):
        path = f"{self.results}/{name}.json"
        if not os.path.exists(path) or not os.path.getsize(path):
            arguments = [self.command, verb, self.model, self.book, "--threads", "1", *options]
            output = subprocess.run(arguments, check=True, stdout=subprocess.PIPE).stdout
            with open(f"{self.results}/{name}.commit", "w") as file:
                file.write(self.commit())
            with open(path, "wb") as file:
                file.write(output)
        with open(f"{self.results}/{name}.commit") as file:
            self.commits.add(file.read())
        with open(path, "rb") as file:
            return json.load(file)

    def losses(self, name, *options):
        path = f"{self.results}/{name}.txt"
        self.json(name, "perplexity", "--losses", path, "--json", *options)
        with open(path) as file:
            return [float(line) for line in file]


# --- pictures and tables


def chart(title, x_label, y_label, series, logarithmic=(True, False)):
    """Lines of (name, [(x, y), ...]) as an SVG that is legible on white and on black."""
    width, height, left, bottom, top = 760, 400, 70, 50, 40
    # The names stand at the right: 13 points are 7.2 wide on average.
    right = 30 + 7.2 * max(len(name) for name, _ in series)
    scale = [lambda v: math.log(v) if logarithmic[0] else v, lambda v: math.log(v) if logarithmic[1] else v]
    points = [(scale[0](x), scale[1](y)) for _, line in series for x, y in line]
    low = [min(p[i] for p in points) for i in (0, 1)]
    high = [max(p[i] for p in points) for i in (0, 1)]
    if not logarithmic[1]:
        low[1] = min(0, low[1])

    def place(x, y):
        u = (scale[0](x) - low[0]) / ((high[0] - low[0]) or 1)
        v = (scale[1](y) - low[1]) / ((high[1] - low[1]) or 1)
        return left + u * (width - left - right), height - bottom - v * (height - top - bottom)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13" role="img">',
        f"<title>{title}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="22" font-size="15">{title}</text>',
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">{x_label}</text>',
        f'<text transform="translate(16 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">{y_label}</text>',
    ]
    for i in range(5):
        v = low[1] + (high[1] - low[1]) * i / 4
        value = math.exp(v) if logarithmic[1] else v
        y = height - bottom - (height - top - bottom) * i / 4
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    ticks = sorted({x for _, line in series for x, _ in line})
    last = -math.inf
    for x in ticks if len(ticks) < 12 else ticks[:: len(ticks) // 8]:
        place_x = place(x, series[0][1][0][1])[0]
        if place_x - last < 46:
            continue
        last = place_x
        out.append(f'<text x="{place_x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{x:g}</text>')
    for index, (name, line) in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(x, y) for x, y in line))
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in (place(*p) for p in line)]
        out.append(f'<text x="{width - right + 12}" y="{top + 20 * index + 10}" fill="{colour}">{name}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def number(value, digits=3):
    return f"{value:.{digits}f}" if value < 1000 else f"{value:,.0f}"


# --- experiments


def length(run):
    """Perplexity of a book beyond the length of training, by the scaling of rotary angles."""
    rows, series = [], []
    for name, option, tokens in [
        ("plain", "none", 16384),
        ("NTK, factor 2", "ntk=2", 16384),
        ("dynamic NTK, factor 2", "dynamic=2", 16384),
        ("YaRN, factor 2", "yarn=2", 16384),
        ("interpolation, factor 2", "linear=2", 16384),
    ]:
        losses = run.losses(f"len-{option}", "--tokens", str(tokens), "--rope-scaling", option)
        parts = [
            math.exp(sum(losses[a - 1 : b - 1]) / (b - a)) if len(losses) >= b - 1 else None for a, b in BINS
        ]
        rows.append([name, *("" if p is None else number(p, 2) for p in parts)])
        series.append((name, [(b, p) for (a, b), p in zip(BINS, parts) if p is not None]))
    head = ["tokens"] + [f"{a} to {b}" for a, b in BINS]
    text = "Perplexity of the tokens at these positions, given all before them, in one window.\n\n" + table(head, rows)
    return text, chart("Perplexity by position", "up to token", "perplexity", series, (True, True))


def entropy(run):
    """How entropy and the largest weight go with the number of keys: as trained, with log n, without 1/sqrt(d)."""
    trained = run.json("measure", "measure", "--tokens", "2048")["layers"]
    scaled = run.json("measure-log", "measure", "--tokens", "2048", "--scaling", f"clipped-log={LOG_BASE}")["layers"]
    sizes = [p["keys"] for p in trained[0]["lengths"]]

    def mean(layers, part, key):
        return [sum(layer[part][i][key] for layer in layers) / len(layers) for i in range(len(sizes))]

    ways = [("as trained", trained, "lengths"), ("with log n", scaled, "lengths"), ("without 1/sqrt(d)", trained, "unscaled")]
    columns, head = [], ["keys"]
    for name, layers, part in ways:
        for key, title in [("entropy", "entropy"), ("relative_entropy", "of log n"), ("largest_weight", "largest weight")]:
            columns.append(mean(layers, part, key))
            head.append(f"{title}, {name}")
    rows = [[f"{keys // 2 + 1 if i else 1} to {keys}", *(number(c[i]) for c in columns)] for i, keys in enumerate(sizes)]
    text = "Entropy in nats, its share of log n, and the largest weight of a row, mean over layers and heads, by the keys that a row sees: "
    text += f"as the model was trained, with scores times max(1, log n / log {LOG_BASE}), and without their 1/sqrt(d).\n\n"
    series = [(f"{what}, {name}", list(zip(sizes, columns[3 * i + c]))) for i, (name, _, _) in enumerate(ways[:2]) for c, what in [(1, "entropy of log n"), (2, "largest weight")]]
    return text + table(head, rows), chart("Entropy as a share of log n, and the largest weight", "keys", "mean", series, (True, False))


def heads(run):
    """How heads spread their weight, the variance of scores, and the outliers of the residual stream."""
    found = run.json("measure", "measure", "--tokens", "2048")
    layers, classes = found["layers"], found["tokens_by_class"]

    def mean(layer, get):
        return sum(get(head) for head in layer["heads"]) / len(layer["heads"])

    rows = []
    for layer in layers:
        weights = [mean(layer, lambda h, i=i: h["weight_by_class"][i]) for i in range(4)]
        rows.append([layer["layer"], *(f"{100 * w:.1f}" for w in weights)])
    text = "Mean weight (%) of a row on each class of tokens, all heads of a layer, rows 64 to 2047. "
    text += f"The text has {classes[0]} first token, {classes[1]} of blanks, {classes[2]} of punctuation, {classes[3]} of words.\n\n"
    text += table(["layer", "first token", "blanks", "punctuation", "words"], rows)

    variance = [layer["score_variance"] for layer in layers]
    text += f"\n\nThe variance of q.k is {min(variance):,.0f} to {max(variance):,.0f} by layer (median {sorted(variance)[len(variance) // 2]:,.0f}), "
    text += f"of q.k/sqrt(d) {min(variance) / 64:.1f} to {max(variance) / 64:.1f}: not the 1 of random vectors of unit variance.\n\n"

    text += "The residual stream that enters a layer: its largest magnitude, its excess kurtosis, and where its elements beyond six "
    text += "standard deviations are; then the same without the first token.\n\n"
    rows = []
    for layer in layers:
        row = [layer["layer"]]
        for part in ("residual", "residual_without_first"):
            r = layer[part]
            row += [number(r["infinity_norm"], 1), number(r["excess_kurtosis"], 1), r["outliers"]]
            share = [100 * c / max(r["outliers"], 1) for c in r["outliers_by_class"]]
            row.append(f"{share[0]:.0f} / {share[1] + share[2]:.0f} / {share[3]:.0f}")
        rows.append(row)
    names = ["largest", "kurtosis", "outliers", "% first / separators / words"]
    text += table(["layer", *names, *(f"{n} (without first)" for n in names)], rows)
    series = [
        (name, [(layer["layer"], 100 * mean(layer, lambda h, i=i: h["weight_by_class"][i])) for layer in layers])
        for i, name in enumerate(["first token", "blanks", "punctuation", "words"])
    ]
    return text, chart("Weight on classes of tokens by layer, %", "layer", "mean weight, %", series, (False, False))


def softmax1(run):
    """What softmax_1 does to a model that was trained with softmax, in one layer at a time and in all."""

    def loss(name, *options):
        return run.json(name, "perplexity", "--tokens", "512", "--json", *options)["mean_negative_log_likelihood"]

    plain, every = loss("sink-none"), loss("sink-every", "--sink", "softmax1")
    changes = [
        loss(f"sink-{layer}", "--sink", "softmax1", "--sink-layers", str(layer)) - plain for layer in range(30)
    ]
    shares = [
        sum(head["sink_share"] for head in layer["heads"]) / len(layer["heads"])
        for layer in run.json("measure-softmax1", "measure", "--tokens", "2048", "--sink", "softmax1")["layers"]
    ]
    text = f"Mean negative log-likelihood of 512 tokens, nats: {plain:.4f} with softmax, {every:.4f} with softmax_1 in all layers. "
    text += f"In one layer alone it changes by {min(changes):+.4f} to {max(changes):+.4f}; the sum of those changes is {sum(changes):+.4f}.\n\n"
    rows = [[i, f"{c:+.4f}", f"{100 * s:.2f}"] for i, (c, s) in enumerate(zip(changes, shares))]
    text += table(["layer", "change with softmax_1 there alone", "weight of the sink, % (2048 tokens, one layer's attention)"], rows)
    return text, chart("softmax_1 in one layer: change of the loss", "layer", "nats", [("change", list(enumerate(changes)))], (False, False))


def cache(run):
    """What 16-bit and 8-bit caches cost."""
    names = ["f32", "bf16", "f16", "int8"]
    bytes_per_token = [30 * 2 * 3 * 64 * b + (30 * 3 * 8 if b == 1 else 0) for b in (4, 2, 2, 1)]
    bits = [
        run.json(f"cache-{n}", "perplexity", "--tokens", "2048", "--cache", n, "--json")["mean_negative_log_likelihood"] / math.log(2)
        for n in names
    ]
    rows = [[n, f"{b:,}", f"{x:.5f}", f"{x - bits[0]:+.5f}"] for n, b, x in zip(names, bytes_per_token, bits)]
    text = "Bits per token over 2048 tokens, and bytes of cache per token.\n\n" + table(["cache", "bytes", "bits per token", "more than f32"], rows)
    series = [("bits", [(b, x - bits[0]) for b, x in zip(bytes_per_token, bits)])]
    return text, chart("Bits per token more than with f32", "bytes of cache per token", "bits", series, (True, False))


def main():
    name, model, book, command, documentation = sys.argv[1:6]
    run = Runner(model, book, command, sys.argv[6] if len(sys.argv) > 6 else "evidence-results")
    text, picture = {"length": length, "entropy": entropy, "heads": heads, "softmax1": softmax1, "cache": cache}[name](run)
    os.makedirs(f"{documentation}/Evidence", exist_ok=True)
    with open(f"{documentation}/Evidence/{name}.svg", "w") as file:
        file.write(picture)
    path = f"{documentation}/Evidence.md"
    with open(path) as file:
        page = file.read()
    text += f"\n\nMeasured at {' and '.join(sorted(f'commit {c}' for c in run.commits))}."
    block = f"<!-- {name}:begin -->\n{text}\n\n![{name}](Evidence/{name}.svg)\n<!-- {name}:end -->"
    page, count = re.subn(f"<!-- {name}:begin -->.*?<!-- {name}:end -->", lambda _: block, page, flags=re.S)
    assert count == 1, f"no marks of {name} in {path}"
    with open(path, "w") as file:
        file.write(page)


if __name__ == "__main__":
    main()
