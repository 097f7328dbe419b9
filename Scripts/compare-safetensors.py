#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# compare-safetensors.py - the reader of `quiet` beside the format's own, on hundreds of files made by hand and by mutation:
#
#     compare-safetensors.py QUIET        (needs the package safetensors, 0.8.0)
#
# What the one opens, the other has to open, with the same names, types and shapes. Only the differences that the page of
# `SafetensorsFile` lists may be there, and each of those has to show. Prints every other one, and ends with status 1 then.
import concurrent.futures
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile

import safetensors

QUIET = sys.argv[1]
MUTANTS = 600
TYPES = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
         "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
         "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
T = '"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def file(header, data=b"\0" * 4, length=None):
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def field(text):
    """A tensor whose description has one more field."""
    return file('{"t":{"dtype":"F32","shape":[1],"x":%s,"data_offsets":[0,4]}}' % text)


def shape(text, offsets="[0,4]", data=b"\0" * 4, dtype='"F32"'):
    return file('{"t":{"dtype":%s,"shape":%s,"data_offsets":%s}}' % (dtype, text, offsets), data)


def pair(first, second, size=8):
    """Two tensors of bytes in these ranges."""
    text = ['"%s":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}' % (n, max(0, e - b), b, e)
            for n, (b, e) in zip("tu", (first, second))]
    return file("{%s}" % ",".join(text), b"\0" * size)


def by_hand():
    """Files that somebody or something may make."""
    for size in range(10):
        yield b"\0" * size
        yield file("{}", b"\0" * size)
    for length in [0, 1, 2, 3, 10, 100_000_000, 100_000_001, 2**31, 2**63 - 9, 2**63, 2**64 - 8, 2**64 - 1]:
        yield file("{}", b"", length)
    for text in ["", " ", "{}", " {}", "\n{}", "{} \n\t\r", "{}\0", "{}}", "{} x", "\ufeff{}", "[]", "null", "1", '"x"', "{", "{]", "{,}",
                 "{/**/}", "{'a':1}", "{a:1}", '{"a"}', '{"a":}', '{"a":1,}', '{"a":1}', '{"a":null}', '{"a":{}}', '{"a":[]}']:
        yield file(text, b"")
    for metadata in ["null", " null ", "nul", "{}", "[]", "0", "true", '""', '"null"', '{"a":"b"}', '{"a":null}', '{"a":1}',
                     '{"a":{}}', '{"":""}', '{"a":"\\u0000"}', '{"a":"b","c":"d"}', '{"a":"b",}', '{"\u00e9":"1","e\u0301":"2"}']:
        yield file('{"__metadata__":%s,%s}' % (metadata, T))
        yield file('{%s,"__metadata__":%s}' % (T, metadata))
        yield file('{"__metadata__":%s}' % metadata, b"")
    yield file('{"__metadata__":null,"__metadata__":null,%s}' % T)
    yield file('{"__metadata__":{},"__metadata__":{},%s}' % T)
    for text in ["1", "-1", "0", "-0", "00", "01", "1.", ".5", "1.5", "1e5", "1E+5", "1e", "1e400", "-1e400", "1e-400", "9" * 400, "+1",
                 "NaN", "Infinity", "true", "tru", "false", "null", '""', '"\\x"', '"\\u12g4"', '"\\ud800"', '"\\ud800\\u0041"', '"\\udc00"',
                 '"\\ud83d\\ude00"', '"\\u0000"', '"\\/"', '"\x7f"', '"\x1f"', '"\n"', '"\u0085\u2028"', '"', "[1,]", "[1", "{}", '{"a":1,"a":2}',
                 '{"a"}', "[[],{},[{}]]"]:
        yield field(text)
    for depth in range(120, 132):
        yield field("[" * depth + "]" * depth)
        yield field('{"a":' * depth + "1" + "}" * depth)
    for text in ["[1]", "[1,1]", "[]", "[ 1 ]", "[0]", "[2]", "[1,]", "1", "null", '"1"', "{}", "[1.0]", "[1e0]", "[-1]", "[-0]", "[01]", '["1"]', "[null]",
                 "[[1]]", "[true]", "[4294967296,4294967296]", "[4611686018427387904]", "[2305843009213693952]", "[18446744073709551616]"]:
        yield shape(text)
    for text in ["[576460752303423488,0]", "[4611686018427387904,2,0]", "[4611686018427387904,4,0]", "[4294967296,4294967296,0]",
                 "[0,4294967296,4294967296]", "[18446744073709551616,0]", "[0]", "[0,0]", "[1,0,9223372036854775807]"]:
        yield shape(text, "[0,0]", b"")
    for text in ["[0,4]", "[0,8]", "[4,8]", "[4,0]", "[0]", "[]", "[0,4,4]", "4", "null", '"0,4"', "[0,4.0]", "[-0,4]", "[0,-4]", "[0,18446744073709551616]",
                 "[4,4]", "[9223372036854775803,9223372036854775807]"]:
        yield shape("[1]", text)
    for dtype, bits in TYPES.items():
        for count in [0, 1, 3, 4, 8]:
            size = count * bits // 8
            yield shape("[%d]" % count, "[0,%d]" % size, b"\0" * size, '"%s"' % dtype)
    for dtype in ['"F128"', '"C128"', '"I4"', '"f32"', '"F8_E4M3FN"', '"bool"', '""', "32", "null", "[]", '"F\\u0033\\u0032"']:
        yield shape("[1]", dtype=dtype)
    for ends in [((0, 4), (4, 8)), ((4, 8), (0, 4)), ((0, 5), (4, 8)), ((0, 3), (4, 8)), ((0, 8), (0, 8)), ((0, 8), (2, 4)), ((0, 8), (8, 8)),
                 ((0, 8), (0, 0)), ((0, 8), (4, 4)), ((0, 4), (4, 9)), ((0, 4), (4, 7)), ((8, 8), (0, 8)), ((0, 8), (9, 9)), ((0, 0), (0, 0))]:
        yield pair(*ends)
    for fields in ['{"dtype":"F32","shape":[1]}', '{"dtype":"F32","data_offsets":[0,4]}', '{"shape":[1],"data_offsets":[0,4]}', "{}", "null", '"x"',
                   '{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}', '{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}',
                   '{"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}', '{"\\u0064type":"F32","shape":[1],"data_offsets":[0,4]}',
                   '{"dtype":"F32","shape":[1],"x":1,"x":2,"data_offsets":[0,4]}']:
        yield file('{"t":%s}' % fields)
    for raw in [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b"\xe2\x82"]:
        yield file(b'{"' + raw + b'":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')
        yield file(b'{"t":{"' + raw + b'":1,"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')
    for start in [b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b"PK\3\4\0\0\0\0", b"\x80\2\x8a\n", b"GGUF\3\0\0\0",
                  b'{"weight_map":{}}', b"\x93NUMPY\1\0"]:
        yield start + b"\0" * 40


ON_PURPOSE = {
    "a name twice": [file("{%s,%s}" % (T, T)), file('{"__metadata__":{"a":"","a":"b"},%s}' % T)],
    "a tensor that is an array": [file('{"t":["F32",[1],[0,4]]}')],
    "a dtype that is an object": [shape("[1]", dtype='{"F32":null}')],
    "an extent above Int.max": [shape("[9223372036854775808,0]", "[0,0]", b""), shape("[0,18446744073709551615]", "[0,0]", b"")],
}


def mutants(generator):
    """Random edits of a valid file, half of the time with a length that fits again."""
    header = ('{"__metadata__":{"a":"b"},"q":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
              '"k":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"v":{"dtype":"F16","shape":[0],"data_offsets":[32,32]}} ')
    words = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"0", b"1", b"-", b"e", b".", b"\\", b" ", b"null", b"\xc3", b"\0", b"24"]
    valid = file(header, b"\0" * 32)
    for _ in range(MUTANTS):
        text = bytearray(valid)
        # Most of them in what is read, the header.
        for _ in range(generator.randint(1, 3)):
            place = generator.randrange(min(len(text), 8 + len(header)))
            kind = generator.randrange(5)
            if kind == 0:
                text[place] ^= 1 << generator.randrange(8)
            elif kind == 1:
                text[place:place + 1] = generator.choice(words)
            elif kind == 2:
                del text[place:place + generator.randint(1, 6)]
            elif kind == 3:
                text[place:place] = text[place:place + generator.randint(1, 40)]
            else:
                text[place:place] = generator.choice(words)
        end = text.rfind(b"}")
        if generator.random() < 0.7 and end >= 8:
            text[:8] = struct.pack("<Q", len(text) - 32 - 8)
        yield bytes(text)


def reference(content):
    """Names, types and shapes, or why the file is refused."""
    try:
        return sorted((name, tensor["dtype"], tuple(tensor["shape"])) for name, tensor in safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        return str(error)


def ours(path):
    run = subprocess.run([QUIET, "inspect", "--json", path], capture_output=True, check=False)
    if run.returncode not in (0, 1):
        return f"ended with status {run.returncode}: {run.stderr.decode()}"
    if run.returncode == 1:
        return run.stderr.decode()
    return sorted((t["name"], t["dtype"], tuple(t["shape"])) for t in json.loads(run.stdout)["tensors"])


def compare(folder, number, content):
    path = os.path.join(folder, str(number))
    with open(path, "wb") as output:
        output.write(content)
    expected, found = reference(content), ours(path)
    os.remove(path)
    isWrong = (expected != found) if isinstance(expected, list) else isinstance(found, list) or not found.startswith("quiet: ")
    return content, expected, found, isWrong


def is_on_purpose(found):
    return isinstance(found, str) and re.search(r"occurs twice|description is not an object|dtype is not a string|integers from 0", found)


def main():
    generator = random.Random(1)
    files = list(by_hand()) + list(mutants(generator))
    wanted = [content for contents in ON_PURPOSE.values() for content in contents]
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda item: compare(folder, *item), enumerate(files + wanted)))
    differences = [r for r in results if r[3] and not (isinstance(r[1], list) and is_on_purpose(r[2]))]
    missing = [r for r in results[len(files):] if not r[3]]
    opened = sum(isinstance(r[1], list) for r in results)
    for content, expected, found, _ in differences + missing:
        print(f"{content[:200]!r}\n    safetensors: {expected}\n    quiet:       {found}")
    print(f"{len(results)} files, {opened} of which safetensors {safetensors.__version__} opens; "
          f"{len(differences)} differences, {len(missing)} of those on purpose not seen")
    sys.exit(1 if differences or missing else 0)


main()
