# SPDX-License-Identifier: Apache-2.0
"""peers.py - one other library, in a process of its own: prepares a case, gives its output, times it.

    python peers.py <torch|onnxruntime|openvino> <threads>

reads one JSON command a line and answers one JSON line each:
    {"do": "prepare", "variant": v, "case": {...}, "inputs": file, "output": file}  -> {"ok": true}
                                                              "of": "decoding" or "products": one of those variants
    {"do": "time", "variant": v, "seconds": s}                                      -> {"ms": [...]}
    {"do": "forget"}                                                                -> {"ok": true}
or {"absent": why}, {"failed": why}.

A variant is what a user of that library would write to get softmax or softmax_1. Inputs are turned into the library's
own layout before any timing; whatever the variant itself has to copy at each call is timed.
"""

import json
import os
import resource
import signal
import sys
import time

import numpy as np
from safetensors.numpy import load_file

from cases import Absent, Case, require

LIMIT_SECONDS = 400  # of one command; then SIGALRM ends the process, and the table says so


def additive_mask(case):
    """float32 [batch or 1, 1, queries, keys], 0 where the key is seen and -inf where not; None if causal says it."""
    if not case.keyLengths and not case.window and (case.mask == "none" or case.queries == case.keys):
        return None
    seen = case.visible(range(case.queries))[None, None]
    if case.keyLengths:
        seen = seen & (np.arange(case.keys) < np.array(case.keyLengths)[:, None])[:, None, None, :]
    return np.where(seen, np.float32(0), np.float32(-np.inf))


class Torch:
    def __init__(self, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.version = torch, torch.__version__
        self.variants = {
            "SDPA": self.sdpa,
            "SDPA, zero key": self.zero_key,
            "flash op, LSE": self.log_sum_exp,
            "FlexAttention": lambda case, inputs: self.flex(case, inputs, softmax=True),
            "FlexAttention, ghost key": lambda case, inputs: self.flex(case, inputs, softmax=False),
        }
        self.decoding = {"SDPA": self.sdpa, "SDPA, bfloat16": self.sdpa_bfloat16}
        self.products = {"SDPA, bfloat16": self.sdpa_bfloat16}

    def tensors(self, case, inputs):
        mask = additive_mask(case)
        tensors = [self.torch.from_numpy(inputs[name]) for name in ("q", "k", "v")]
        return *tensors, None if mask is None else self.torch.from_numpy(mask)

    def sdpa(self, case, inputs):
        q, k, v, mask = self.tensors(case, inputs)
        attention = self.torch.nn.functional.scaled_dot_product_attention
        causal = case.mask == "causal" and mask is None
        return lambda: attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=case.group > 1)

    def sdpa_bfloat16(self, case, inputs):
        q, k, v, mask = (t if t is None else t.to(self.torch.bfloat16) for t in self.tensors(case, inputs))
        attention = self.torch.nn.functional.scaled_dot_product_attention
        causal = case.mask == "causal" and mask is None
        return lambda: attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=case.group > 1)

    def behind_zero(self, t):
        """One more row in front of each head's, all zero."""
        return self.torch.cat([self.torch.zeros_like(t[:, :, :1]), t], dim=2)

    def zero_key(self, case, inputs):
        """softmax_1 as nn.MultiheadAttention(add_zero_attn=True) has it: one more key and value, all zero.
        It goes first, with one query more, so that the fused causal path still serves."""
        require(case.sink == "softmax1", "a learned sink needs a mask of queryHeads x queries x keys floats")
        q, k, v, mask = self.tensors(case, inputs)
        torch, attention = self.torch, self.torch.nn.functional.scaled_dot_product_attention
        causal = case.mask == "causal" and mask is None
        if mask is not None:
            mask = torch.cat([torch.zeros_like(mask[..., :1]), mask], dim=-1)

        def run():
            rows = self.behind_zero(q) if causal else q
            out = attention(rows, self.behind_zero(k), self.behind_zero(v), attn_mask=mask, is_causal=causal, enable_gqa=case.group > 1)
            return out[:, :, 1:] if causal else out

        return run

    def log_sum_exp(self, case, inputs):
        """out * sigmoid(lse - sink), exact, from the operator below SDPA, which PyTorch does not document."""
        require(case.valueDimension == case.headDimension, "the flash operator wants value_dim = head_dim")
        q, k, v, mask = self.tensors(case, inputs)
        torch, flash = self.torch, self.torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        sinks = torch.from_numpy(inputs["sinks"])[None, :, None]
        causal = case.mask == "causal" and mask is None

        def run():
            out, lse = flash(q, k, v, 0.0, causal, attn_mask=mask, scale=case.scale)
            return out * torch.sigmoid(lse - sinks)[..., None]

        return run

    def flex(self, case, inputs, softmax):
        """Compiled on the spot; leaves out blocks of keys that no row sees. It has no sinks, and gives no sums on a CPU:
        one more key in front, whose score is the sink and whose value is zero, stands for them."""
        require(case.window, "compiled for windows alone, whose blocks the other operators do not leave out")
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch, window, ghosts = self.torch, case.window, 0 if softmax else 1
        q, k, v, _ = self.tensors(case, inputs)
        sinks, after = torch.from_numpy(inputs["sinks"]), case.keys - case.queries + ghosts
        seen = lambda b, h, i, j: (j < ghosts) | ((j <= i + after) & (j > i + after - window))
        blocks = create_block_mask(seen, None, None, case.queries, case.keys + ghosts, device="cpu")
        score = None if softmax else lambda x, b, h, i, j: torch.where(j == 0, sinks[h], x)
        attention = torch.compile(flex_attention)

        def run():
            ghost = (lambda t: t) if softmax else self.behind_zero
            return attention(
                q, ghost(k), ghost(v), score_mod=score, block_mask=blocks, scale=case.scale, enable_gqa=case.group > 1
            )

        return run

    numpy = staticmethod(lambda out: out.float().numpy())


class OnnxRuntime:
    def __init__(self, threads):
        import onnx
        import onnxruntime

        self.onnx, self.runtime, self.threads, self.version = onnx, onnxruntime, threads, onnxruntime.__version__
        onnxruntime.set_default_logger_severity(4)
        self.variants = {
            "MultiHeadAttention": self.multi_head,
            "GroupQueryAttention": lambda case, inputs: self.grouped(case, inputs, softmax=True),
            "GQA, smooth_softmax": lambda case, inputs: self.grouped(case, inputs, softmax=False),
            "GQA, head_sink": lambda case, inputs: self.grouped(case, inputs, softmax=False, head_sink=True),
        }
        self.decoding = {"GQA, shared buffer": self.decode}
        self.products = {}

    def session(self, case, inputs, operator, optional, constants, outputs, **attributes):
        """A model of one com.microsoft node over [batch, sequence, heads * dim]; returns the call that runs it."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        feeds = {
            n: np.ascontiguousarray(inputs[n].transpose(0, 2, 1, 3)).reshape(case.batch, inputs[n].shape[2], -1)
            for n in "qkv"
        }
        out_shapes = {"out": [case.batch, case.queries, case.queryHeads * case.valueDimension]}
        out_shapes.update({n: [case.batch, case.keyValueHeads, case.keys, case.headDimension] for n in outputs[1:]})
        tensor = lambda name, shape: helper.make_tensor_value_info(name, types.FLOAT, shape)
        kinds = {np.dtype(np.float32): types.FLOAT, np.dtype(np.int32): types.INT32}
        graph = helper.make_graph(
            [helper.make_node(operator, ["q", "k", "v", *optional], outputs, domain="com.microsoft", **attributes)],
            operator,
            [tensor(n, list(a.shape)) for n, a in feeds.items()],
            [tensor(n, out_shapes[n]) for n in outputs],
            [helper.make_tensor(n, kinds[a.dtype], a.shape, a.ravel()) for n, a in constants.items()],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        session = self.runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        bound = {n: self.runtime.OrtValue.ortvalue_from_numpy(array) for n, array in feeds.items()}
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        results = {n: np.empty(out_shapes[n], np.float32) for n in outputs}
        for name, array in results.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

        def run(owners=(feeds, bound)):  # the binding does not keep what it reads alive
            session.run_with_iobinding(binding)
            return results["out"].reshape(case.batch, case.queries, case.queryHeads, case.valueDimension)

        return run

    def decode(self, case, inputs):
        """One token after keys - 1 others: the operator writes its key and value into the buffer that holds them."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        last = {n: inputs[n][:, :, -1:] for n in "qkv"}
        feeds = {n: np.ascontiguousarray(a.transpose(0, 2, 1, 3)).reshape(case.batch, 1, -1) for n, a in last.items()}
        buffers = {n: np.ascontiguousarray(inputs[n]) for n in "kv"}
        tensor = lambda name, array: helper.make_tensor_value_info(name, types.FLOAT, list(array.shape))
        out = np.empty((case.batch, 1, case.queryHeads * case.valueDimension), np.float32)
        lengths, total = np.full(case.batch, case.keys - 1, np.int32), np.array(case.keys, np.int32)
        node = helper.make_node(
            "GroupQueryAttention", ["q", "k", "v", "past_k", "past_v", "lengths", "total"],
            ["out", "present_k", "present_v"], domain="com.microsoft",
            num_heads=case.queryHeads, kv_num_heads=case.keyValueHeads,
        )  # fmt: skip
        graph = helper.make_graph(
            [node],
            "decode",
            [tensor(n, a) for n, a in feeds.items()] + [tensor(f"past_{n}", a) for n, a in buffers.items()],
            [tensor("out", out)] + [tensor(f"present_{n}", a) for n, a in buffers.items()],
            [
                helper.make_tensor("lengths", types.INT32, lengths.shape, lengths),
                helper.make_tensor("total", types.INT32, total.shape, [int(total)]),
            ],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        session = self.runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, array in [*feeds.items(), *((f"past_{n}", a) for n, a in buffers.items())]:
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for name, array in [("out", out), *((f"present_{n}", a) for n, a in buffers.items())]:
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

        def run(owners=(feeds, buffers)):  # the binding does not keep what it reads alive
            session.run_with_iobinding(binding)
            return out.reshape(case.batch, 1, case.queryHeads, case.valueDimension)

        return run

    def multi_head(self, case, inputs):
        require(case.group == 1, "MultiHeadAttention has no grouped heads")
        require(case.window is None, "MultiHeadAttention has no window")
        optional, constants = [], {}
        if case.keyLengths:
            optional = ["", "padding"]
            kept = np.arange(case.keys)[None] < np.array(case.keyLengths)[:, None]
            constants = {"padding": kept.astype(np.int32)}
        causal = int(case.mask == "causal")
        return self.session(
            case,
            inputs,
            "MultiHeadAttention",
            optional,
            constants,
            ["out"],
            num_heads=case.queryHeads,
            unidirectional=causal,
        )

    def grouped(self, case, inputs, softmax, head_sink=False):
        require(case.mask != "none", "GroupQueryAttention is always causal")
        require(case.valueDimension == case.headDimension, "GroupQueryAttention wants value_dim = head_dim")
        require(softmax or head_sink or case.sink == "softmax1", "smooth_softmax is the sink 0; see head_sink")
        constants = {
            "lengths": np.full(case.batch, case.keys - 1, np.int32),  # total sequence length - 1, as the operator wants
            "total": np.array(case.keys, np.int32),
            "head_sink": inputs["sinks"],
        }
        optional = ["", "", "lengths", "total"] + (["", "", "", "", "head_sink"] if head_sink else [])
        if not head_sink:
            del constants["head_sink"]
        return self.session(
            case, inputs, "GroupQueryAttention", optional, constants, ["out", "present_key", "present_value"],
            num_heads=case.queryHeads, kv_num_heads=case.keyValueHeads, local_window_size=case.window or -1,
            smooth_softmax=int(not softmax and not head_sink),
        )  # fmt: skip

    numpy = staticmethod(lambda out: out.transpose(0, 2, 1, 3))


class OpenVino:
    def __init__(self, threads):
        import openvino

        self.openvino, self.threads, self.version = openvino, threads, openvino.__version__.split("-")[0]
        self.variants = {
            "SDPA": lambda case, inputs: self.sdpa(case, inputs, softmax=True),
            "SDPA, sink input": lambda case, inputs: self.sdpa(case, inputs, softmax=False),
        }
        self.decoding = {}
        self.products = {"SDPA, bf16 hint": lambda case, inputs: self.sdpa(case, inputs, softmax=True, precision="bf16")}

    def sdpa(self, case, inputs, softmax, precision="f32"):
        from openvino import opset13
        from openvino.utils.node_factory import NodeFactory

        mask = additive_mask(case)
        feeds = [inputs[name] for name in ("q", "k", "v")] + ([] if mask is None else [mask])
        parameters = [opset13.parameter(list(array.shape), np.float32) for array in feeds]

        def repeated(node, array):  # the operator has no grouped heads: the graph repeats them, as exported models do
            batch, heads, keys, dim = array.shape
            shape = opset13.constant([batch, heads, case.group, keys, dim])
            wide = opset13.broadcast(
                opset13.unsqueeze(node, opset13.constant(2)), shape, broadcast_spec="BIDIRECTIONAL"
            )
            return opset13.reshape(wide, opset13.constant([batch, heads * case.group, keys, dim]), False)

        operands = [parameters[0]]
        operands += [repeated(p, a) if case.group > 1 else p for p, a in zip(parameters[1:3], feeds[1:3])]
        operands += parameters[3:]
        if not softmax:  # inputs 3, 4 and 5 are mask, scale and sink; the Python wrapper of the operator has no sink
            operands += [] if len(operands) == 4 else [opset13.constant(np.float32(0))]
            operands += [
                opset13.constant(np.float32(case.scale)),
                opset13.constant(inputs["sinks"][None, :, None, None]),
            ]
        causal = case.mask == "causal" and mask is None
        node = NodeFactory("opset13").create("ScaledDotProductAttention", operands, {"causal": causal})
        settings = {"INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
        model = self.openvino.Model([node], parameters, "attention")
        request = self.openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        tensors = [self.openvino.Tensor(array, shared_memory=True) for array in feeds]
        for index, tensor in enumerate(tensors):
            request.set_input_tensor(index, tensor)

        def run(owners=(feeds, tensors)):  # the request does not keep what it reads alive
            request.infer()
            return request.get_output_tensor(0).data

        return run

    numpy = staticmethod(lambda out: out)


LIBRARIES = {"torch": Torch, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def limit_memory():
    """A failed allocation is an answer; a process ended by the system for want of memory takes others with it."""
    if os.path.exists("/proc/meminfo"):
        lines = open("/proc/meminfo").read().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * available),) * 2)


def timed(run, seconds):
    """Milliseconds of each call, for about this long and at least once."""
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def answer(library, prepared, command):
    variant = command.get("variant")
    if command["do"] == "forget":
        prepared.clear()
    elif command["do"] == "time":
        return {"ms": timed(prepared[variant], command["seconds"])}
    else:
        case, inputs = Case(**command["case"]), load_file(command["inputs"])
        run = getattr(library, command.get("of", "variants"))[variant](case, inputs)
        np.save(command["output"], library.numpy(run()))
        prepared[variant] = run
    return {"ok": True}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    limit_memory()
    prepared = {}
    try:
        library = LIBRARIES[sys.argv[1]](int(sys.argv[2]))
        reply = {
            "version": library.version,
            "variants": list(library.variants),
            "decoding": list(library.decoding),
            "products": list(library.products),
        }
    except Exception as error:
        reply = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), file=answers, flush=True)
    for line in sys.stdin:
        signal.alarm(LIMIT_SECONDS)
        try:
            reply = answer(library, prepared, json.loads(line))
        except Absent as why:
            reply = {"absent": str(why)}
        except Exception as error:
            reply = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:160]}"}
        signal.alarm(0)
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
