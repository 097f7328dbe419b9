#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the tokens of `language-model tokenize` with those of the Python package tokenizers.

    pip install tokenizers gguf
    Scripts/compare-tokenizer.py MODEL.gguf path/to/language-model [STRINGS]

The tokenizer is built in Python from the file's vocabulary and merges. Compared are random strings of any Unicode scalar
(1,000 unless told otherwise), texts full of blanks, digits, quotes and special tokens, and every scalar there is between
letters, signs and new lines. Exits 0 when all tokens are equal.
"""
import json
import random
import subprocess
import sys
import tempfile

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers


def reference(path):
    fields = GGUFReader(path).fields
    tokens, types, merges = (fields["tokenizer.ggml." + name].contents() for name in ("tokens", "token_type", "merges"))
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    specials = [token for token, kind in zip(tokens, types) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer, specials


SCALARS = [chr(c) for c in range(1, 0x110000) if not 0xD800 <= c <= 0xDFFF]
RANGES = [(0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80)]
RANGES += [(0x2000, 0x2100), (0x2150, 0x2190), (0x3000, 0x3100), (0x4E00, 0x5000), (0x1F300, 0x1F700), (1, 0x110000)]
PIECES = ["'s", "'re", "'LL", " ", "  ", "\n", "\n\n", "\t", " \n", "12", "3.14", "\u00a0", "\u3000", "\r\n", "e\u0301"]


def random_text(random, specials):
    text = ""
    for _ in range(random.randrange(1, 40)):
        kind = random.random()
        if kind < 0.15:
            text += random.choice(PIECES)
        elif kind < 0.18:
            text += random.choice(specials)
        elif kind < 0.5:
            text += random.choice(["the", " word", "Hello", " don", "ing", " été", "naïve", " мир", "日本", " 한국어"])
        else:
            low, high = random.choice(RANGES)
            code = random.randrange(low, high)
            text += chr(code) if code and not 0xD800 <= code <= 0xDFFF else "?"
    return text


def main():
    model, command = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    tokenizer, specials = reference(model)
    generator = random.Random(20240607)
    texts = [random_text(generator, specials) for _ in range(count)]
    # A contraction is one only behind a letter, a number or a blank, and blanks before a number stay together.
    texts += [f"{c}'re  {c}'re\n{c}" for c in SCALARS]
    with tempfile.NamedTemporaryFile() as file:
        file.write("".join(text + "\0" for text in texts).encode())
        file.flush()
        output = subprocess.run([command, "tokenize", model, file.name, "--nul", "--json"], check=True, capture_output=True)
    found = json.loads(output.stdout)["texts"]
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    different = [i for i in range(len(texts)) if found[i] != expected[i]]
    for i in different[:20]:
        print(f"{texts[i]!r} ({hex(ord(texts[i][0]))}): expected {expected[i]}, got {found[i]}")
    print(f"{len(texts)} texts, {len(different)} differ")
    if different:
        print("of random texts:", sum(i < count for i in different))
        print("scalars:", " ".join(hex(ord(SCALARS[i - count])) for i in different if i >= count)[:3000])
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
