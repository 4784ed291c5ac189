"""Mutants of ONNX files. onnxruntime is native code of others: only a process of their own is to run these."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from makeweight.files.run_onnx import OnnxModel

from .helpers_mutants import Attempt, accepts, drawn, of_huffman

SECONDS = 2.0
"""that a call of a graph may take"""
OPERATIONS = ["Add", "MatMul", "Gemm", "Relu", "Reshape", "Identity", "Conv", "Softmax", "Cast", "Transpose", "Gather",
              "Loop", "If", "Scan", "Constant", "Expand", "Tile", "Resize", "Nonsense", ""]  # fmt: skip
NUMBERS = [-1, 0, 1, 2, 7, 1 << 20, 1 << 31, 1 << 62, -(1 << 63)]


@contextmanager
def onnx(folder: Path, seed: int) -> Iterator[Attempt]:
    """A small network: half of the mutants have other bytes, half another part of the graph."""
    import onnx as library

    whole = network(library)
    content, path = whole.SerializeToString(), folder / "mutant.onnx"
    batch = torch.zeros(2, 6)

    def called() -> None:
        with redirect_stdout(io.StringIO()):  # onnxruntime says there that it tries its only provider again
            OnnxModel(path, SECONDS)(batch)

    def attempt(number: int) -> bool:
        if number % 2:
            turn = list(of_huffman("helpers_fuzz").mutations(content, 5, np.random.default_rng([seed, number])))
            path.write_bytes(turn[number // 2 % 5])
        else:
            path.write_bytes(changed(library, whole, drawn(seed, number)))
        return accepts(called, said=path.name)

    yield attempt


def network(library: Any) -> Any:
    """6 → 8 → 3."""
    make, kinds = library.helper, library.TensorProto
    random = np.random.default_rng(0)
    shapes = {"w1": (6, 8), "b1": (8,), "w2": (8, 3), "b2": (3,)}
    constants = [
        library.numpy_helper.from_array(random.standard_normal(shape).astype("f4"), name)
        for name, shape in shapes.items()
    ]
    nodes = [make.make_node("Gemm", ["x", "w1", "b1"], ["h"]), make.make_node("Relu", ["h"], ["r"]),
             make.make_node("MatMul", ["r", "w2"], ["m"]), make.make_node("Add", ["m", "b2"], ["y"])]  # fmt: skip
    ends = [make.make_tensor_value_info(name, kinds.FLOAT, ["n", size]) for name, size in (("x", 6), ("y", 3))]
    graph = make.make_graph(nodes, "small", ends[:1], ends[1:], constants)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)


def changed(library: Any, whole: Any, draw: random.Random) -> bytes:
    """The network with one change to three of its graph."""
    model = library.ModelProto()
    model.CopyFrom(whole)
    graph = model.graph
    for _ in range(draw.choice([1, 1, 2, 3])):
        node, constant = draw.choice(graph.node), draw.choice(graph.initializer)
        value = draw.choice([*graph.input, *graph.output])
        kind = draw.randrange(9)
        if kind == 0:
            node.op_type = draw.choice(OPERATIONS)
        elif kind == 1:
            node.input[draw.randrange(len(node.input))] = draw.choice(["x", "h", "r", "m", "y", "w1", "b2", "z", ""])
        elif kind == 2:
            node.output[0] = draw.choice(["x", "h", "y", "w1", ""])
        elif kind == 3:
            name, number = draw.choice(["alpha", "transB", "axis", "to", "keepdims"]), draw.choice(NUMBERS)
            node.attribute.append(library.helper.make_attribute(name, draw.choice([number, 0.5, "x", [number]])))
        elif kind == 4:
            constant.dims[draw.randrange(len(constant.dims))] = draw.choice(NUMBERS)
        elif kind == 5:
            constant.data_type = draw.randrange(25)
        elif kind == 6:
            constant.data_location = 1
            constant.external_data.add(key="location", value=draw.choice(["/etc/hostname", "../x", "mutant.onnx", ""]))
        elif kind == 7:
            value.type.tensor_type.elem_type = draw.randrange(25)
        else:
            model.opset_import[0].version = draw.choice([0, 1, 7, 13, 99, 1 << 40])
    found: bytes = model.SerializeToString()
    return found
