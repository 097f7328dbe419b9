// SPDX-License-Identifier: Apache-2.0
// ReportStyle.swift - how the page of a report looks, in light, in dark and on paper.

enum ReportStyle {
    /// Colours of ascending amounts, level 1 to ``levels``; what is below level 1 is the ground.
    private static let light = ["#e3edf7", "#c3d9ed", "#9cc2e2", "#6fa6d3", "#4687c1", "#2868a8", "#154a85", "#0a2d5c"]
    private static let dark = ["#1d2b3c", "#24405c", "#2b587f", "#3573a4", "#4a91c6", "#74b0dc", "#a9d0ec", "#e4f3fd"]

    static let levels = light.count

    private static func colours(_ values: [String]) -> String {
        values.enumerated().map { "--c\($0.offset + 1):\($0.element)" }.joined(separator: ";")
    }

    private static var levelRules: String {
        (1...levels).map { ".c\($0){stroke:var(--c\($0))}.f\($0){fill:var(--c\($0))}" }.joined()
    }

    static var sheet: String {
        """
        :root{color-scheme:light dark;--ground:#fff;--ink:#1b1f24;--faint:#5c6570;--line:#d5dae0;--cell:#f6f8fa;--bar:#2868a8;\
        --mark:#b3261e;--link:#0b57a4;\(colours(light))}
        @media (prefers-color-scheme:dark){:root{--ground:#11161c;--ink:#e6eaef;--faint:#9aa5b1;--line:#36414d;--cell:#18202a;\
        --bar:#74b0dc;--mark:#ff8a80;--link:#8cc4f4;\(colours(dark))}}
        @media print{:root{color-scheme:light;--ground:#fff;--ink:#000;--faint:#444;--line:#bbb;--cell:#f6f8fa;--bar:#2868a8;\
        --mark:#b3261e;--link:#000;\(colours(light))}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}\
        .skip{display:none}figure,tr{break-inside:avoid}.wide{overflow:visible}}
        *{box-sizing:border-box}
        body{margin:0 auto;max-width:80rem;padding:1rem 1.5rem 4rem;background:var(--ground);color:var(--ink);\
        font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
        h1{font-size:1.6rem;margin:.5rem 0;overflow-wrap:anywhere}
        h2{font-size:1.25rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--line)}
        h3{font-size:1.05rem;margin:1.75rem 0 .5rem;overflow-wrap:anywhere}
        p{max-width:50rem;margin:.4rem 0}
        .faint,figcaption span{color:var(--faint)}
        a{color:var(--link)}
        a:focus-visible,[tabindex]:focus-visible{outline:3px solid var(--link);outline-offset:2px}
        .skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--ground);padding:.25rem .5rem}
        nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;padding:0}
        pre{background:var(--cell);border:1px solid var(--line);padding:.6rem .8rem;overflow-x:auto;font-size:13px;line-height:1.4}
        .wide{overflow-x:auto;max-width:100%}
        table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
        th,td{padding:.15rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
        th{color:var(--faint);font-weight:600}
        th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:9rem}
        .figures{display:flex;flex-wrap:wrap;gap:1.25rem 1.5rem;align-items:flex-start}
        figure{margin:0;max-width:100%}
        figure:target{outline:2px solid var(--link);outline-offset:6px}
        figcaption{font-size:13px;line-height:1.35;margin-bottom:.35rem;overflow-wrap:anywhere}
        .head{width:288px}.tensor{width:100%}.tensor .figures{gap:.5rem 1.5rem}
        svg{display:block;max-width:100%;height:auto;font:11px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
        svg text{fill:var(--faint)}
        svg .ground{fill:var(--cell);stroke:var(--line)}
        svg .bar{fill:var(--bar)}svg .mark{stroke:var(--mark);stroke-dasharray:3 2;fill:none}
        svg .axis{stroke:var(--line);fill:none}
        svg path[class^=c]{stroke-width:1;fill:none}
        svg .value{fill:var(--ink);text-anchor:middle}svg .upper{fill:var(--ground)}
        svg a rect{stroke:var(--ground)}svg a:focus-visible rect{stroke:var(--mark);stroke-width:3}
        \(levelRules)
        """
    }
}
