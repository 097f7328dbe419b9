#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# golden.py - makes golden.json: values of sinks, normalisers, positions and diagnostics to 50 digits.
"""Golden values for softmax_1 / softmax_n / attention-sink tests.

Makes golden.json next to this file.  mpmath at 70 digits, printed to 50.
Every finite input is a dyadic rational exactly representable in float32, so a
test can load it without input rounding.  Nothing here uses torch/numpy.

Conventions
  s        sink logit.  softmax_n <=> s = log n ; softmax_1 <=> s = 0 ; softmax <=> s = -inf.
  p_j      exp(x_j) / (exp(s) + sum_k exp(x_k));   p_sink = exp(s) / (same)
  lse      log(exp(s) + sum_k exp(x_k))            (INCLUDES the sink)
  dx_j     p_j (dp_j - D) + p_j dlse ,  D = sum_k p_k dp_k
  dsink    -p_sink D + p_sink dlse      (sum over the rows of a head for a learned sink)
  The sink is neither scaled, soft-capped, biased nor masked, and has no value row.
"""
import json, os
from fractions import Fraction
import mpmath as mp
mp.mp.dps = 70
DIG = 50
INF = mp.mpf('inf')

def F(v):
    """exact mpf from int/float (floats must be dyadic and float32-exact)"""
    if isinstance(v, float):
        if v in (float('inf'), float('-inf')): return INF if v > 0 else -INF
        import struct
        assert struct.unpack('f', struct.pack('f', v))[0] == v, v
        fr = Fraction(v); return mp.mpf(fr.numerator) / fr.denominator
    return mp.mpf(v)

def S(x):
    if x == INF: return "inf"
    if x == -INF: return "-inf"
    return mp.nstr(x, DIG, strip_zeros=False) if x != 0 else "0"
def D64(x):
    if x == INF: return "inf"
    if x == -INF: return "-inf"
    return float(x)
def out(v):
    if isinstance(v, list): return [out(a) for a in v]
    return S(v)
def o64(v):
    if isinstance(v, list): return [o64(a) for a in v]
    return D64(v)
def put(d, k, v): d[k] = out(v); d[k + "_f64"] = o64(v)

def ex(x): return mp.mpf(0) if x == -INF else mp.e ** x

def softmax_sink(x, s):
    """x: list of mpf (finite or -inf), s: mpf or -inf. Returns p, p_sink, lse. None when 0/0."""
    es = ex(s); e = [ex(a) for a in x]; Z = es + mp.fsum(e)
    if Z == 0: return [mp.mpf(0)] * len(x), mp.mpf(0), -INF      # policy: empty row without a sink
    return [a / Z for a in e], es / Z, mp.log(Z)

def row_case(name, x, n=None, sink=None, dp=None, dlse=0, note=None, traps=True):
    xs = [F(a) for a in x]
    s = (mp.log(F(n)) if n != 0 else -INF) if sink is None else F(sink)
    p, ps, lse = softmax_sink(xs, s)
    d = {"name": name, "x": [("-inf" if a == float('-inf') else a) for a in x]}
    if sink is None: d["n"] = n
    else: d["sink"] = "-inf" if sink == float('-inf') else sink
    put(d, "sink_logit", s); put(d, "p", p); put(d, "p_sink", ps); put(d, "lse", lse); put(d, "sum", mp.fsum(p) if p else mp.mpf(0))
    H = -mp.fsum([a * mp.log(a) for a in p if a > 0]); put(d, "entropy_raw", H)
    put(d, "entropy_with_sink", H - (ps * mp.log(ps) if ps > 0 else 0))
    if dp is not None:
        g = [F(a) for a in dp]; Dd = mp.fsum([a * b for a, b in zip(p, g)]); dl = F(dlse)
        d["dp"] = dp; d["dlse"] = dlse
        put(d, "dx", [a * (b - Dd) + a * dl for a, b in zip(p, g)]); put(d, "dsink", -ps * Dd + ps * dl)
    if traps and xs and all(a != -INF for a in xs) and sink is None and n:
        m = max(xs); e = [ex(a - m) for a in xs]; Sg = mp.fsum(e); nn = F(n)
        t = {"shift_by_max_then_plus_n (AttentionIsOFFByOne, Burn before its fix, Megatron before its fix)": [a / (nn + Sg) for a in e],
             "max_with_0_then_plus_n (Unreal NNERuntimeBasicCpu C++ path)": [ex(a - max(m, 0)) / (nn + mp.fsum([ex(b - max(m, 0)) for b in xs])) for a in xs],
             "sum_of_exp_plus_1 (AttentionIsOFFByOne optimized/softmax1.cpp)": [a / (Sg + len(xs)) for a in e],
             "exp_of_log2_max (Flash-Attention-Softmax-N triton line 114)": [a / (nn * ex(-m / mp.log(2)) + Sg) for a in e]}
        d["traps_f64"] = {k: o64(v) for k, v in t.items()}
    if note: d["note"] = note
    return d

rows = [
 row_case("quietGPT_1to5", [1., 2., 3., 4., 5.], n=1, dp=[1., -2., 0.5, 3., -1.], dlse=0.25),
 row_case("plain_softmax_1to5", [1., 2., 3., 4., 5.], n=0, dp=[1., -2., 0.5, 3., -1.]),
 row_case("n_half_1to5", [1., 2., 3., 4., 5.], n=0.5, dp=[1., -2., 0.5, 3., -1.]),
 row_case("n_four_1to5", [1., 2., 3., 4., 5.], n=4, dp=[1., -2., 0.5, 3., -1.]),
 row_case("n_tiny", [-8., -9., -7.5], n=2.0 ** -20),
 row_case("n_large", [1., 2.], n=1024),
 row_case("separates_the_plus_one_bug", [10., 9., 8.], n=1, dp=[1., 0., -1.], note="right sum 0.99997; the shift-then-plus-one bug gives 0.601"),
 row_case("negative_row", [-1., -2., -3.], n=1, dp=[1., 1., 1.]),
 row_case("escape_hatch_-20", [-20., -20., -20.], n=1, dp=[1., 0., 0.]),
 row_case("escape_hatch_-60", [-50., -60.], n=1),
 row_case("edge_of_f32_exp", [-87.25, -87.5], n=1),
 row_case("below_f32_normal", [-88., -100., -103.], n=1, note="float32 subnormal or flushed"),
 row_case("below_f64", [-1000., -1001.], n=1, note="0 in float64 too; sum 0, lse 0"),
 row_case("overflow_naive", [12., 89., 710.], n=1),
 row_case("overflow_equal", [1000., 1000., 1000.], n=1),
 row_case("wide", [100., 0., -100.], n=1),
 row_case("one_key_zero", [0.], n=1, dp=[1.]),
 row_case("one_key_neg", [-4.], n=1, dp=[1.]),
 row_case("one_key_pos", [4.], n=1, dp=[1.]),
 row_case("zeros_7", [0.] * 7, n=1, note="k/(k+1): the +1 fades as keys grow"),
 row_case("zeros_64", [0.] * 64, n=1, traps=False),
 row_case("masked_entries", [float('-inf'), 0., float('-inf'), 1.], n=1, dp=[5., 1., -5., 2.], note="dx is exactly 0 at the masked places"),
 row_case("all_masked_n1", [float('-inf')] * 3, n=1, dp=[1., 2., 3.], note="p = 0, p_sink = 1, lse = 0, dx = 0, dsink = 0: defined without a special case"),
 row_case("all_masked_n0", [float('-inf')] * 3, n=0, note="0/0. policy as PyTorch >= 2.5 and FlashAttention: p = 0, out = 0, lse = -inf"),
 row_case("no_keys_n1", [], n=1, note="out = 0, lse = 0"),
 row_case("no_keys_sink", [], sink=0.5, note="out = 0, lse = sink (Dao-AILab/flash-attention PR 2752 review)"),
 row_case("no_keys_n0", [], n=0, note="out = 0, lse = -inf"),
 row_case("sink_big", [0., 1., 2.], sink=100., dp=[1., 2., 3.], note="lse = 100, not inf: the sink must join the max (flash-attention PR 2752 review)"),
 row_case("sink_above_max", [0., 1., 2.], sink=4., dp=[1., 2., 3.], dlse=-0.5),
 row_case("sink_below_max", [0., 1., 2.], sink=-4., dp=[1., 2., 3.]),
 row_case("sink_far_below", [0., 1., 2.], sink=-200., note="bitwise plain softmax in float32/64"),
 row_case("sink_minus_inf", [0., 1., 2.], sink=float('-inf'), note="plain softmax; must not make NaN"),
 row_case("sink_with_negative_scores", [-30., -31.], sink=-29., dp=[1., -1.]),
]
policy = [
 {"x": ["inf", 1.0], "n": 1, "note": "limit is p = [1, 0], lse = inf; max-shifting code gives inf-inf = NaN. Policy to choose: NaN for this row only (PyTorch does so). Other rows must stay clean."},
 {"x": ["nan", 1.0], "n": 1, "note": "whole row NaN, other rows clean; a NaN at a MASKED place must not leak (pytorch issue 101967)"},
 {"x": [0.0], "sink": "inf", "note": "limit: p = 0, p_sink = 1, out = 0, lse = inf. Shifted code gives exp(inf-inf) = NaN; treat as 'head off' or reject at the API"},
 {"x": ["-inf"], "sink": "-inf", "note": "no key, no sink: out 0, lse -inf"},
]

# ---------------------------------------------------------------- whole attention
def dyadic(seed, r, c, den=8, span=13):
    """small deterministic dyadic matrix"""
    a = []; st = seed
    for i in range(r):
        row = []
        for j in range(c):
            st = (st * 1103515245 + 12345) & 0x7fffffff
            row.append(((st >> 16) % (2 * span + 1) - span) / den)
        a.append(row)
    return a
def mat(a): return [[F(x) for x in r] for r in a]

def attention(Q, K, V, s, visible, scale_of_row, bias=None, dO=None, dlse=None):
    Lq, Lk, d, dv = len(Q), len(K), len(Q[0]) if Q else 0, len(V[0]) if V else 0
    O, LSE, P, PS = [], [], [], []
    for i in range(Lq):
        lam = scale_of_row(i)
        x = []
        for j in range(Lk):
            if not visible(i, j): x.append(-INF); continue
            t = lam * mp.fsum([Q[i][c] * K[j][c] for c in range(d)])
            if bias: t += bias(i, j)
            x.append(t)
        p, ps, l = softmax_sink(x, s); P.append(p); PS.append(ps); LSE.append(l)
        O.append([mp.fsum([p[j] * V[j][c] for j in range(Lk)]) for c in range(dv)])
    r = {"O": O, "LSE": LSE, "P": P, "P_sink": PS}
    if dO is not None:
        dQ = [[mp.mpf(0)] * d for _ in range(Lq)]; dK = [[mp.mpf(0)] * d for _ in range(Lk)]; dV = [[mp.mpf(0)] * dv for _ in range(Lk)]; ds = mp.mpf(0)
        for i in range(Lq):
            lam = scale_of_row(i); dl = dlse[i] if dlse else mp.mpf(0)
            Dd = mp.fsum([dO[i][c] * O[i][c] for c in range(dv)])
            ds += PS[i] * (dl - Dd)
            for j in range(Lk):
                if not visible(i, j): continue
                g = P[i][j] * (mp.fsum([dO[i][c] * V[j][c] for c in range(dv)]) - Dd + dl) * lam
                for c in range(d): dQ[i][c] += g * K[j][c]; dK[j][c] += g * Q[i][c]
                for c in range(dv): dV[j][c] += P[i][j] * dO[i][c]
        r.update({"dQ": dQ, "dK": dK, "dV": dV, "dsink": ds})
    return r

def att_case(name, Lq, Lk, d, dv, s, mask, scale="1/sqrt(d)", bias=None, note=None, seed=1, grads=True, dlse=None, biasname=None):
    Qa, Ka, Va, Ga = dyadic(seed, Lq, d), dyadic(seed + 7, Lk, d), dyadic(seed + 13, Lk, dv), dyadic(seed + 29, Lq, dv, den=4, span=5)
    Q, K, V, G = mat(Qa), mat(Ka), mat(Va), mat(Ga)
    off = Lk - Lq
    vis = {"none": lambda i, j: True, "causal_bottom_right": lambda i, j: j <= i + off, "causal_top_left": lambda i, j: j <= i,
           "causal_window_2": lambda i, j: i + off - 2 < j <= i + off}[mask]
    nvis = lambda i: sum(1 for j in range(Lk) if vis(i, j))
    base = 1 / mp.sqrt(d)
    if scale == "1/sqrt(d)": sc = lambda i: base
    elif scale == "log512(n)/sqrt(d)": sc = lambda i: base * (mp.log(nvis(i)) / mp.log(512)) if nvis(i) else mp.mpf(0)
    elif scale == "max(1,log_4(n))/sqrt(d)": sc = lambda i: base * max(mp.mpf(1), mp.log(nvis(i)) / mp.log(4)) if nvis(i) else base
    sv = F(s) if s != "1" else mp.mpf(0)
    dl = [F(a) for a in dlse] if dlse else None
    r = attention(Q, K, V, sv, vis, sc, bias, G if grads else None, dl)
    c = {"name": name, "Lq": Lq, "Lk": Lk, "d": d, "dv": dv, "sink": s if not isinstance(s, float) or s != float('-inf') else "-inf", "mask": mask, "scale": scale,
         "Q": Qa, "K": Ka, "V": Va, "dO": Ga, "visible_keys": [nvis(i) for i in range(Lq)]}
    if biasname: c["bias"] = biasname
    if dlse: c["dLSE"] = dlse
    for k, v in r.items(): put(c, k, v)
    if note: c["note"] = note
    # ghost-prefix check: one all-zero K,V row in front, plain softmax
    if sv == 0 and not bias:
        Kz = [[mp.mpf(0)] * d] + K; Vz = [[mp.mpf(0)] * dv] + V
        rz = attention(Q, Kz, Vz, -INF, lambda i, j: j == 0 or vis(i, j - 1), sc)
        err = max([abs(a - b) for x, y in zip(rz["O"], r["O"]) for a, b in zip(x, y)] + [abs(a - b) for a, b in zip(rz["LSE"], r["LSE"])])
        assert err < mp.mpf(10) ** -60, err
        c["zero_prefix_equivalent"] = True
    return c

slope = mp.mpf(1) / 4
attn = [
 att_case("softmax1_full", 3, 5, 4, 3, 0.0, "none", seed=3),
 att_case("softmax0_full", 3, 5, 4, 3, float('-inf'), "none", seed=3),
 att_case("learned_sink_full_with_dlse", 3, 5, 4, 3, 1.25, "none", seed=3, dlse=[0.5, -0.25, 1.0]),
 att_case("softmax1_causal_square", 4, 4, 4, 2, 0.0, "causal_bottom_right", seed=5),
 att_case("softmax1_causal_decode", 1, 6, 4, 2, 0.0, "causal_bottom_right", seed=9),
 att_case("softmax1_causal_more_queries_than_keys", 4, 2, 4, 2, 0.0, "causal_bottom_right", seed=11, note="rows 0 and 1 see no key: O = 0, LSE = 0, no gradient"),
 att_case("softmax0_causal_more_queries_than_keys", 4, 2, 4, 2, float('-inf'), "causal_bottom_right", seed=11, note="rows 0 and 1: O = 0, LSE = -inf by policy"),
 att_case("sink_window_2", 5, 5, 4, 2, -0.75, "causal_window_2", seed=15),
 att_case("softmax1_log512n", 4, 4, 4, 2, 0.0, "causal_bottom_right", scale="log512(n)/sqrt(d)", seed=5, note="row 0 has n = 1, log n = 0: every score is 0, weight is 1/2 whatever Q and K"),
 att_case("softmax1_clipped_logn", 6, 6, 4, 2, 0.0, "causal_bottom_right", scale="max(1,log_4(n))/sqrt(d)", seed=5),
 att_case("softmax1_alibi", 4, 4, 4, 2, 0.0, "causal_bottom_right", bias=lambda i, j: -slope * (i - j), biasname="-(i-j)/4", seed=5),
 att_case("softmax1_alibi_column_only_TRAP", 4, 4, 4, 2, 0.0, "causal_bottom_right", bias=lambda i, j: slope * j, biasname="+j/4 (column only)", seed=5, grads=False,
          note="equal to softmax1_alibi under plain softmax, WRONG under softmax_1: softmax_1 is not shift invariant"),
]
# zero tail padding trap
Qa, Ka, Va = dyadic(3, 2, 4), dyadic(10, 5, 4), dyadic(16, 5, 3)
ok = attention(mat(Qa), mat(Ka), mat(Va), mp.mpf(0), lambda i, j: True, lambda i: 1 / mp.sqrt(4))
bad = attention(mat(Qa), mat(Ka) + [[mp.mpf(0)] * 4] * 3, mat(Va) + [[mp.mpf(0)] * 3] * 3, mp.mpf(0), lambda i, j: True, lambda i: 1 / mp.sqrt(4))
tail = {"Q": Qa, "K": Ka, "V": Va, "Lk": 5, "padded_to": 8, "O_f64": o64(ok["O"]), "O_TRAP_if_zero_padding_is_not_masked_f64": o64(bad["O"]),
        "note": "a tail padded with zero keys is 3 more ghosts: softmax_4 instead of softmax_1"}

# ---------------------------------------------------------------- other normalisers
xa = [2., -1., 0.5, 0., -3.]; ga = [1., 2., -1., 0.5, 4.]; x = [F(a) for a in xa]; g = [F(a) for a in ga]
oth = []
def add(name, f, grad, **kw):
    d = dict(name=name, x=xa, dp=ga, **kw); p = f(x); put(d, "p", p); put(d, "dx", grad(p));
    for i in range(len(x)):                       # finite-difference check at 70 digits
        h = mp.mpf(10) ** -25; a = list(x); b = list(x); a[i] += h; b[i] -= h
        fa = mp.fsum([u * v for u, v in zip(f(a), g)]); fb = mp.fsum([u * v for u, v in zip(f(b), g)])
        if abs(x[i]) > 0 or name not in ("softpick", "relu2_over_n", "relu2_normalised"):
            assert abs((fa - fb) / (2 * h) - grad(p)[i]) < mp.mpf(10) ** -20, (name, i)
    oth.append(d)
sm0 = lambda x: softmax_sink(x, -INF)[0]
gam, zet = mp.mpf(-1) / 32, mp.mpf(33) / 32
clip = lambda v: min(mp.mpf(1), max(mp.mpf(0), v))
def gclip(p):
    p0 = sm0(x); y = [(zet - gam) * a + gam for a in p0]; w = [(zet - gam) * b if 0 < c < 1 else mp.mpf(0) for b, c in zip(g, y)]
    Dd = mp.fsum([a * b for a, b in zip(p0, w)]); return [a * (b - Dd) for a, b in zip(p0, w)]
add("clipped_softmax", lambda x: [clip((zet - gam) * a + gam) for a in sm0(x)], gclip, gamma=-1 / 32, zeta=33 / 32)
n5 = mp.mpf(5)
sig = lambda t: 1 / (1 + mp.e ** -t)
add("sigmoid_bias_minus_log_n", lambda x: [sig(a - mp.log(n5)) for a in x], lambda p: [a * (1 - a) * b for a, b in zip(p, g)], bias="-log 5")
def spk(x): a = [mp.e ** t - 1 for t in x]; Z = mp.fsum([abs(t) for t in a]); return [max(t, mp.mpf(0)) / Z for t in a]
def gspk(p):
    Z = mp.fsum([abs(mp.e ** t - 1) for t in x]); Dd = mp.fsum([a * b for a, b in zip(p, g)])
    return [mp.e ** t / Z * ((w if t > 0 else 0) - mp.sign(t) * Dd) for t, w in zip(x, g)]
add("softpick", spk, gspk)
r2 = lambda t: max(t, mp.mpf(0)) ** 2
add("relu2_over_n", lambda x: [r2(t) / n5 for t in x], lambda p: [2 * max(t, mp.mpf(0)) / n5 * w for t, w in zip(x, g)], n=5)
def gr2(p):
    Z = mp.fsum([r2(t) for t in x]); Dd = mp.fsum([a * b for a, b in zip(p, g)]); return [2 * max(t, mp.mpf(0)) / Z * (w - Dd) for t, w in zip(x, g)]
add("relu2_normalised", lambda x: [r2(t) / mp.fsum([r2(u) for u in x]) for t in x], gr2)

# ---------------------------------------------------------------- positions
d8 = 8; h = d8 // 2
th = [mp.mpf(10000) ** (-mp.mpf(2 * j) / d8) for j in range(h)]
def rot(v, m):
    a, b = v[:h], v[h:]; return [a[j] * mp.cos(m * th[j]) - b[j] * mp.sin(m * th[j]) for j in range(h)] + [b[j] * mp.cos(m * th[j]) + a[j] * mp.sin(m * th[j]) for j in range(h)]
qa = [0.5, -1.25, 0.75, 2., -0.5, 1., 0.25, -1.5]; ta = [1.5, 0., 0.625, 2.25]; q = [F(a) for a in qa]; t = [F(a) for a in ta]; M, N = 11, 4
strict = mp.fsum([t[j] * (q[j] ** 2 + q[j + h] ** 2) * mp.cos((M - N) * th[j]) for j in range(h)])
Kt = rot(t + t, N); Qr = rot(q, M); slack = mp.fsum([q[c] * Qr[c] * Kt[c] for c in range(d8)])
pos = {"coca": {"d": 8, "pairs": "half split (j, j+d/2)", "base": 10000, "q": qa, "t_after_relu_length_d_half": ta, "m": M, "n": N}}
put(pos["coca"], "score_strict_unscaled", strict); put(pos["coca"], "score_slack_unscaled", slack)
pos["alibi_slopes"] = {str(H): o64([mp.mpf(2) ** (-mp.mpf(8) * (i + 1) / H) for i in range(H)]) for H in (1, 2, 4, 8, 16)}
def alibi12(H):
    P = 1
    while P * 2 <= H: P *= 2
    a = [mp.mpf(2) ** (-mp.mpf(8) * (i + 1) / P) for i in range(P)]
    b = [mp.mpf(2) ** (-mp.mpf(8) * (i + 1) / (2 * P)) for i in range(2 * P)][0::2][:H - P]
    return a + b
pos["alibi_slopes"]["12"] = o64(alibi12(12))
pos["dynamic_ntk_base"] = [{"base": 10000, "d": 64, "L_train": 512, "seq_len": L, "factor": f,
    "new_base_f64": float(mp.mpf(10000) * ((mp.mpf(f) * L / 512) - (f - 1)) ** (mp.mpf(64) / 62)) if L > 512 else 10000.0} for f in (1, 2, 4, 8) for L in (512, 1024, 8192)]
pos["log512"] = {str(n): S(mp.log(n) / mp.log(512)) for n in (1, 2, 64, 128, 256, 512, 1024, 8192)}

# What config.json of checkpoints says, key by key (`length`: the largest position + 1), with the angles that follow.
def rope(d, r):
    base, kind, f, L0 = mp.mpf(r["rope_theta"]), r["rope_type"], mp.mpf(r.get("factor", 1)), r.get("original_max_position_embeddings")
    if kind == "dynamic" and r["length"] > L0: base *= (f * r["length"] / L0 - (f - 1)) ** (mp.mpf(d) / (d - 2))
    plain = [base ** (-mp.mpf(2 * j) / d) for j in range(d // 2)]
    scale = mp.mpf(1)
    if kind == "linear": plain = [t / f for t in plain]
    if kind == "llama3":
        low, high = mp.mpf(r["low_freq_factor"]), mp.mpf(r["high_freq_factor"])
        s = [min(max((L0 * t / (2 * mp.pi) - low) / (high - low), 0), 1) for t in plain]
        plain = [t * (k + (1 - k) / f) for t, k in zip(plain, s)]
    if kind == "yarn":
        ends = [mp.mpf(d) / 2 * mp.log(L0 / (2 * mp.pi * r.get(*b))) / mp.log(base) for b in [("beta_fast", 32), ("beta_slow", 1)]]
        if r.get("truncate", True): ends = [mp.floor(ends[0]), mp.ceil(ends[1])]
        low, high = max(ends[0], 0), min(ends[1], d - 1)
        s = [min(max((j - low) / max(high - low, mp.mpf("0.001")), 0), 1) for j in range(d // 2)]
        plain = [t * (1 - k + k / f) for t, k in zip(plain, s)]
        m = lambda x: mp.mpf(x) / 10 * mp.log(f) + 1
        scale = m(r["mscale"]) / m(r["mscale_all_dim"]) if "mscale" in r else m(1)
    if kind == "longrope":
        plain = [t / mp.mpf(x) for t, x in zip(plain, r["long_factor" if r["length"] > L0 else "short_factor"])]
        scale = mp.sqrt(1 + mp.log(f) / mp.log(L0))
    return {"d": d, "rope_parameters": r, "thetas_f64": [float(t) for t in plain],
            "attention_factor_f64": float(r.get("attention_factor", scale))}
lists = {"short_factor": [1 + j / 64 for j in range(16)], "long_factor": [1.25 + j * j / 8 for j in range(16)]}
pos["checkpoints"] = {name: rope(d, r) for name, d, r in [
    ("linear", 32, {"rope_theta": 10000, "rope_type": "linear", "factor": 4}),
    ("dynamic", 32, {"rope_theta": 10000, "rope_type": "dynamic", "factor": 2, "original_max_position_embeddings": 2048, "length": 4064}),
    ("Llama 3.1", 128, {"rope_theta": 500000, "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}),
    ("Llama 3.2", 64, {"rope_theta": 500000, "rope_type": "llama3", "factor": 32, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}),
    ("Qwen2.5", 128, {"rope_theta": 1000000, "rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}),
    ("DeepSeek-V3", 64, {"rope_theta": 10000, "rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1}),
    ("two mscales", 64, {"rope_theta": 10000, "rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 16, "beta_slow": 2, "mscale": 1, "mscale_all_dim": 0.75}),
    ("gpt-oss", 64, {"rope_theta": 150000, "rope_type": "yarn", "factor": 32, "original_max_position_embeddings": 4096, "truncate": False}),
    ("clamped", 32, {"rope_theta": 10000, "rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 128, "attention_factor": 1.25}),
    ("LongRoPE, short", 32, {"rope_theta": 10000, "rope_type": "longrope", "factor": 32, "original_max_position_embeddings": 4096, "length": 4096, **lists}),
    ("LongRoPE, long", 32, {"rope_theta": 10000, "rope_type": "longrope", "factor": 32, "original_max_position_embeddings": 4096, "length": 4097, **lists}),
]}

# ---------------------------------------------------------------- diagnostics
va = [0.125, -0.25, 0.5, 0.0, 8.0, -0.375, 0.25, 0.0625]; v = [F(a) for a in va]; n = len(v); mu = mp.fsum(v) / n
c2 = mp.fsum([(a - mu) ** 2 for a in v]) / n; c4 = mp.fsum([(a - mu) ** 4 for a in v]) / n; s2 = c2 * n / (n - 1)
dg = {"x": va}
put(dg, "inf_norm", max(abs(a) for a in v)); put(dg, "kurtosis_excess_population (softmax1 org)", c4 / c2 ** 2 - 3)
put(dg, "kurtosis_raw_sample_std_eps1e-6 (Qualcomm)", c4 / (s2 ** 2 + mp.mpf(10) ** -6)); put(dg, "l1_over_sqrt_n_l2", mp.fsum([abs(a) for a in v]) / (mp.sqrt(n) * mp.sqrt(mp.fsum([a * a for a in v]))))
put(dg, "mean_abs_over_max_abs", mp.fsum([abs(a) for a in v]) / n / max(abs(a) for a in v)); dg["fraction_abs_le_0.25"] = sum(1 for a in v if abs(a) <= F(0.25)) / n
pa = [F(0.5), F(0.25), F(0.125), F(0.0625), F(0.0625)]; Ht = mp.log(2); gm = mp.findroot(lambda y: (lambda w: mp.log(mp.fsum(w)) - y * mp.fsum([a * mp.log(b) for a, b in zip(w, pa)]) / mp.fsum(w))([b ** y for b in pa]) - Ht, 2)
en = {"p": [0.5, 0.25, 0.125, 0.0625, 0.0625], "target_entropy": "log 2"}; put(en, "gamma", gm); w = [b ** gm for b in pa]; put(en, "p_new", [a / mp.fsum(w) for a in w]); dg["entropy_normalisation"] = en

J = {"about": __doc__, "mpmath": mp.__version__, "digits": DIG, "rows": rows, "policy_rows_without_a_number": policy, "attention": attn, "zero_tail_padding_trap": tail,
     "other_normalisers": oth, "positions": pos, "diagnostics": dg}
fn = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.json")
json.dump(J, open(fn, "w"), indent=1, ensure_ascii=False)
print(fn, os.path.getsize(fn), len(rows), len(attn))
