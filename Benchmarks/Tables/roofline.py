# SPDX-License-Identifier: Apache-2.0
"""roofline.py - the picture: each shape of the grid against what memory and multiply-adds allow; logarithmic axes."""

import math

WIDTH, HEIGHT = 940, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 620, 40, 460
OURS, THEIRS, LINE = "#0b5fa5", "#b4651d", "#444"


def text(x, y, words, size=12, anchor="start", color="#222", turn=""):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{turn}>{words}</text>'
    )


def line(x1, y1, x2, y2, color=LINE, width=1.0):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


class Axes:
    """Logarithmic places, from powers of two around the data."""

    def __init__(self, xs, ys):
        self.x = [2 ** math.floor(math.log2(min(xs))), 2 ** math.ceil(math.log2(max(xs) * 1.2))]
        self.y = [2 ** math.floor(math.log2(min(ys))), 2 ** math.ceil(math.log2(max(ys) * 1.2))]

    @staticmethod
    def share(value, ends):
        return math.log(value / ends[0]) / math.log(ends[1] / ends[0])

    def place(self, x, y):
        return LEFT + (RIGHT - LEFT) * self.share(x, self.x), BOTTOM - (BOTTOM - TOP) * self.share(y, self.y)

    def grid(self):
        marks = []
        for power in range(int(math.log2(self.x[0])), int(math.log2(self.x[1])) + 1):
            x, _ = self.place(2.0**power, self.y[0])
            marks += [line(x, TOP, x, BOTTOM, "#e4e4e4"), text(x, BOTTOM + 16, f"{2.0**power:g}", 11, "middle")]
        for power in range(int(math.log2(self.y[0])), int(math.log2(self.y[1])) + 1):
            _, y = self.place(self.x[0], 2.0**power)
            marks += [line(LEFT, y, RIGHT, y, "#e4e4e4"), text(LEFT - 6, y + 4, f"{2.0**power:g}", 11, "end")]
        middle = (TOP + BOTTOM) / 2
        marks.append(
            text(
                (LEFT + RIGHT) / 2,
                BOTTOM + 36,
                "float operations per byte of queries, keys, values and output",
                12,
                "middle",
            )
        )
        marks.append(text(20, middle, "GFLOP/s", 12, "middle", turn=f' transform="rotate(-90 20 {middle:.0f})"'))
        return marks


def ceilings(axes, peak, bandwidth):
    """The roof: bandwidth times intensity, up to the peak."""
    ridge = peak / bandwidth
    first = max(axes.x[0], axes.y[0] / bandwidth)
    x, y = axes.place(ridge, peak)
    marks = [line(*axes.place(first, bandwidth * first), x, y, width=2), line(x, y, RIGHT, y, width=2)]
    marks.append(text(RIGHT, y - 6, f"multiply-adds: {peak:.0f} GFLOP/s", 12, "end"))
    x, y = axes.place(ridge / 2, bandwidth * ridge / 2)
    marks.append(text(x + 10, y + 4, f"memory: {bandwidth:.1f} GB/s"))
    return marks


def points(axes, rows):
    """Ours filled, with a number; the baseline hollow, below it; the numbers' meaning at the side."""
    marks, taken = [], []
    for number, row in enumerate(rows, 1):
        unfused = row["gflops"] * row["median_ms"] / row["openblas_ms"]
        (x, y), (_, low) = axes.place(row["flops_per_byte"], row["gflops"]), axes.place(row["flops_per_byte"], unfused)
        marks += [
            line(x, y, x, low, "#cfcfcf"),
            f'<circle cx="{x:.1f}" cy="{low:.1f}" r="3.5" fill="white" stroke="{THEIRS}"/>',
        ]
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{OURS}"/>')
        aside, height = x + 6, y + 4
        while any(abs(aside - a) < 14 and abs(height - h) < 11 for a, h in taken):
            aside += 14
        taken.append((aside, height))
        marks.append(text(aside, height, number, 11, color=OURS))
        side = TOP + 44 + 19 * number
        marks.append(text(RIGHT + 24, side, f"{number}  {row['name']}", 12, color=OURS))
        marks.append(text(WIDTH - 20, side, f"{row['fraction_of_peak']:.2f}", 12, "end"))
    marks.append(text(WIDTH - 20, TOP + 44, "of peak", 12, "end"))
    marks += [
        f'<circle cx="{RIGHT + 28}" cy="{TOP + 2}" r="4" fill="{OURS}"/>',
        text(RIGHT + 40, TOP + 6, "QuietAttention"),
    ]
    marks += [f'<circle cx="{RIGHT + 28}" cy="{TOP + 20}" r="3.5" fill="white" stroke="{THEIRS}"/>']
    return marks + [text(RIGHT + 40, TOP + 24, "unfused, OpenBLAS")]


def roofline(grid):
    """SVG of a grid table (Results/grid-*.json)."""
    rows, bandwidth = grid["rows"], grid["read_gbytes_per_s"]
    peak = max(row["fma_peak_gflops"] for row in rows)
    unfused = [row["gflops"] * row["median_ms"] / row["openblas_ms"] for row in rows]
    # From an eighth of where the ceilings meet, so that both are seen.
    axes = Axes(
        [peak / bandwidth / 8, *(row["flops_per_byte"] for row in rows)],
        [peak, *unfused, *(row["gflops"] for row in rows)],
    )
    about = grid["machine"]
    threads = f"{grid['threads']} thread{'s' * (grid['threads'] > 1)}"
    marks = [text(LEFT, 22, f"{about['cpu']}, {threads}, commit {about['commit']}, {about['date']}")]
    marks += axes.grid() + ceilings(axes, peak, bandwidth) + points(axes, rows)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    return "\n".join([opening, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *marks, "</svg>"]) + "\n"
