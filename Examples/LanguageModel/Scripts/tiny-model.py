#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a tiny language model, and says what it must answer.

    Scripts/tiny-model.py FOLDER

writes FOLDER/tiny.gguf (about 80 kB: two layers, two query heads on one, Q4_1 and Q8_0 weights from a fixed generator, a
byte-level vocabulary) and FOLDER/tiny.json: for some texts the tokens, the logits of the last token, greedy tokens and the
mean negative log-likelihood, all computed here in double precision from the weights that the file states, with nothing
but the standard library. The same bytes on every machine.
"""
import json
import math
import struct
import sys

LAYERS, WIDTH, QUERY_HEADS, HEADS, HEAD, FEED = 2, 64, 2, 1, 32, 96
BASE, EPSILON, CONTEXT = 10000.0, 1e-5, 64
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Bytes without a token, as in the vocabularies of real models.
MISSING = [0x04, 0xF1]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "Be tiny.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "the cat sat on the mat and the dog sat on the cat",
    "In 1815, we don't know;  it's  said.\n\nSo they'll say: na\u00efve caf\u00e9 \u65e5\u672c 3.14",
    "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
]


class Generator:
    """Knuth's linear congruential generator; numbers from -1 to 1 that are exact in double precision."""

    def __init__(self, seed):
        self.state = seed

    def bits(self, count):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return self.state >> (64 - count)

    def number(self):
        return (self.bits(24) - 2**23) / 2**23


def half(value):
    return struct.unpack("<e", struct.pack("<e", value))[0]


def single(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


# --- the vocabulary


def alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(0x100 + i) for i, b in enumerate(others)}}


def vocabulary():
    characters = alphabet()
    tokens = SPECIALS + [characters[b] for b in range(256) if b not in MISSING]
    merges = []
    words = " the  cat  sat  on  mat  and  dog  it's  don't  they'll  said  say  know  hello user assistant caf\u00e9 na\u00efve"
    for word in words.split("  "):
        symbols = [characters[b] for b in word.encode()]
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            if pair not in merges:
                merges.append(pair)
                if pair[0] + pair[1] not in tokens:
                    tokens.append(pair[0] + pair[1])
            symbols = [pair[0] + pair[1], *symbols[2:]]
    return tokens, merges


def merged(symbols, merges):
    """Slow and plain: the first of the merges that applies anywhere, at its leftmost place, until none does."""
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(zip(symbols, symbols[1:])) if pair in ranks]
        if not found:
            return symbols
        _, i = min(found)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def pieces(text):
    """GPT-2's expression, for the characters of TEXTS."""
    result, i = [], 0
    while i < len(text):
        contraction = next((c for c in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(c, i)), None)
        start = i + 1 if text[i] == " " and i + 1 < len(text) and not text[i + 1].isspace() else i
        if text[i].isdigit():
            end = i + 1
        elif contraction:
            end = i + len(contraction)
        elif text[start].isspace() or text[start].isdigit():
            end = i
            while end < len(text) and text[end].isspace():
                end += 1
            # The last blank goes with a word; before a digit it does not.
            if end < len(text) and end > i + 1 and not text[end].isdigit():
                end -= 1
        else:
            end = start
            while end < len(text) and not text[end].isspace() and not text[end].isdigit():
                if text[end].isalpha() != text[start].isalpha():
                    break
                end += 1
        result.append(text[i:end])
        i = end
    return result


def tokenize(text, tokens, merges):
    characters, result = alphabet(), []
    while text:
        places = [(text.find(s), s) for s in SPECIALS if s in text]
        end, special = min(places) if places else (len(text), None)
        for piece in pieces(text[:end]):
            symbols = [characters[b] for b in piece.encode() if b not in MISSING]
            result += [tokens.index(symbol) for symbol in merged(symbols, merges)]
        if special:
            result.append(tokens.index(special))
        text = text[end + len(special or "") :]
    return result


# --- the weights


def q4_1(random, rows, columns, size):
    """Rows of blocks as in the file, and the same as numbers."""
    data, numbers = b"", []
    for _ in range(rows):
        row = []
        for _ in range(columns // 32):
            step = half(size * (1 + random.number() / 2) / 8)
            low = half(-7.5 * step + random.number() * size / 8)
            q = [random.bits(4) for _ in range(32)]
            data += struct.pack("<ee", step, low) + bytes(q[i] | q[i + 16] << 4 for i in range(16))
            row += [single(step * x + low) for x in q]
        numbers.append(row)
    return 3, data, numbers


def q8_0(random, rows, columns, size):
    data, numbers = b"", []
    for _ in range(rows):
        row = []
        for _ in range(columns // 32):
            step = half(size * (1 + random.number() / 2) / 127)
            q = [random.bits(8) - 128 for _ in range(32)]
            data += struct.pack("<e32b", step, *q)
            row += [step * x for x in q]
        numbers.append(row)
    return 8, data, numbers


def gains(random, count):
    numbers = [single(1 + random.number() / 2) for _ in range(count)]
    return 0, struct.pack(f"<{count}f", *numbers), numbers


def weights(vocabulary_size):
    random, tensors = Generator(20240607), {}

    def matrix(name, rows, columns, make=q4_1, size=None):
        tensors[name] = ([columns, rows], *make(random, rows, columns, size or 2.5 / math.sqrt(columns)))

    matrix("token_embd.weight", vocabulary_size, WIDTH, q8_0, 0.8)
    tensors["output_norm.weight"] = ([WIDTH], *gains(random, WIDTH))
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"{prefix}{norm}.weight"] = ([WIDTH], *gains(random, WIDTH))
        matrix(prefix + "attn_q.weight", QUERY_HEADS * HEAD, WIDTH)
        matrix(prefix + "attn_k.weight", HEADS * HEAD, WIDTH)
        matrix(prefix + "attn_v.weight", HEADS * HEAD, WIDTH, q8_0)
        matrix(prefix + "attn_output.weight", WIDTH, QUERY_HEADS * HEAD)
        matrix(prefix + "ffn_gate.weight", FEED, WIDTH)
        matrix(prefix + "ffn_up.weight", FEED, WIDTH)
        matrix(prefix + "ffn_down.weight", WIDTH, FEED)
    return tensors


# --- the file


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def write(path, tokens, merges, tensors):
    def value(kind, data):
        return struct.pack("<I", kind) + data

    def unsigned(number):
        return value(4, struct.pack("<I", number))

    def strings(texts):
        return value(9, struct.pack("<IQ", 8, len(texts)) + b"".join(map(string, texts)))

    metadata = {
        "general.architecture": value(8, string("llama")),
        "general.name": value(8, string("tiny")),
        "llama.block_count": unsigned(LAYERS),
        "llama.context_length": unsigned(CONTEXT),
        "llama.embedding_length": unsigned(WIDTH),
        "llama.feed_forward_length": unsigned(FEED),
        "llama.attention.head_count": unsigned(QUERY_HEADS),
        "llama.attention.head_count_kv": unsigned(HEADS),
        "llama.attention.layer_norm_rms_epsilon": value(6, struct.pack("<f", EPSILON)),
        "llama.rope.freq_base": value(6, struct.pack("<f", BASE)),
        "llama.rope.dimension_count": unsigned(HEAD),
        "tokenizer.ggml.model": value(8, string("gpt2")),
        "tokenizer.ggml.pre": value(8, string("smollm")),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": value(
            9, struct.pack("<IQ", 5, len(tokens)) + b"".join(struct.pack("<i", 3 if t in SPECIALS else 1) for t in tokens)
        ),
        "tokenizer.ggml.merges": strings([" ".join(pair) for pair in merges]),
        "tokenizer.ggml.bos_token_id": unsigned(1),
        "tokenizer.ggml.eos_token_id": unsigned(2),
        "tokenizer.ggml.add_bos_token": value(7, b"\0"),
        "tokenizer.chat_template": value(8, string(TEMPLATE)),
    }
    header = struct.pack("<IIQQ", 0x46554747, 3, len(tensors), len(metadata))
    header += b"".join(string(key) + data for key, data in metadata.items())
    data = b""
    for name, (shape, kind, content, _) in tensors.items():
        header += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += content + bytes(-len(content) % 32)
    with open(path, "wb") as file:
        file.write(header + bytes(-len(header) % 32) + data)


# --- what it answers


def product(matrix, x):
    return [sum(map(float.__mul__, row, x)) for row in matrix]


def normalised(x, gain):
    scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + single(EPSILON))
    return [v * scale * g for v, g in zip(x, gain)]


def turned(rows, position):
    """Pairs are neighbours, as the architecture has them in files."""
    result = []
    for head in range(len(rows) // HEAD):
        for pair in range(HEAD // 2):
            angle = position * BASE ** (-2 * pair / HEAD)
            x, y = rows[head * HEAD + 2 * pair], rows[head * HEAD + 2 * pair + 1]
            result += [x * math.cos(angle) - y * math.sin(angle), y * math.cos(angle) + x * math.sin(angle)]
    return result


class Model:
    def __init__(self, tensors):
        self.weights = {name: numbers for name, (_, _, _, numbers) in tensors.items()}
        self.keys = [[] for _ in range(LAYERS)]
        self.values = [[] for _ in range(LAYERS)]

    def attention(self, layer, queries):
        result = []
        for head in range(QUERY_HEADS):
            query = queries[head * HEAD : (head + 1) * HEAD]
            scores = [sum(map(float.__mul__, query, key)) / math.sqrt(HEAD) for key in self.keys[layer]]
            top = max(scores)
            parts = [math.exp(score - top) for score in scores]
            total = sum(parts)
            result += [
                sum(p * value[c] for p, value in zip(parts, self.values[layer])) / total for c in range(HEAD)
            ]
        return result

    def read(self, token):
        x = list(map(float, self.weights["token_embd.weight"][token]))
        for layer in range(LAYERS):
            def weight(name):
                return self.weights[f"blk.{layer}.{name}.weight"]

            h = normalised(x, weight("attn_norm"))
            position = len(self.keys[layer])
            self.keys[layer].append(turned(product(weight("attn_k"), h), position))
            self.values[layer].append(product(weight("attn_v"), h))
            mixed = self.attention(layer, turned(product(weight("attn_q"), h), position))
            x = [a + b for a, b in zip(x, product(weight("attn_output"), mixed))]
            h = normalised(x, weight("ffn_norm"))
            gate, up = product(weight("ffn_gate"), h), product(weight("ffn_up"), h)
            inner = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)]
            x = [a + b for a, b in zip(x, product(weight("ffn_down"), inner))]
        return product(self.weights["token_embd.weight"], normalised(x, self.weights["output_norm.weight"]))


def loss(logits, token):
    top = max(logits)
    return math.log(sum(math.exp(v - top) for v in logits)) + top - logits[token]


def answer(text, tokens, merges, tensors):
    model, losses, logits = Model(tensors), [], None
    numbers = tokenize(text, tokens, merges)
    for number in numbers:
        if logits:
            losses.append(loss(logits, number))
        logits = model.read(number)
    last, greedy, margins = logits, [], []
    for _ in range(12):
        best, second = sorted(logits, reverse=True)[:2]
        if logits.index(best) == 2:
            break
        margins.append(best - second)
        greedy.append(logits.index(best))
        logits = model.read(greedy[-1])
    return {
        "text": text,
        "tokens": numbers,
        "pieces": pieces(text) if not any(s in text for s in SPECIALS) else None,
        "logits": last,
        "greedy": greedy,
        "smallest_margin": min(margins, default=1),
        "mean_negative_log_likelihood": sum(losses) / len(losses),
    }


def main():
    folder = sys.argv[1]
    tokens, merges = vocabulary()
    tensors = weights(len(tokens))
    write(f"{folder}/tiny.gguf", tokens, merges, tensors)
    answers = [answer(text, tokens, merges, tensors) for text in TEXTS]
    with open(f"{folder}/tiny.json", "w") as file:
        json.dump({"answers": answers}, file)


if __name__ == "__main__":
    main()
