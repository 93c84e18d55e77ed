"""Small ONNX models with the published files' inputs and outputs, whose answers are known.

The detector takes red squares for small faces and green ones for large faces; the recogniser answers with colours.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
ALIGNED = np.float32(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
FACE_SIDES = {8: 64, 16: 160}  # pixels of the detector's 640² canvas


def constant(name, array):
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def save(path: Path, nodes, inputs, outputs, constants) -> None:
    graph = helper.make_graph(nodes, "net", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def write_detector(path: Path) -> None:
    """SCRFD's nine outputs: scores, box distances and landmark offsets at three strides, two anchors a cell."""
    nodes = [helper.make_node("AveragePool", ["input"], ["cells"], kernel_shape=[8, 8], strides=[8, 8])]
    constants, named = [constant("flat", np.int64([-1, 1])), constant("zero", np.float32([0]))], {}
    for stride in STRIDES:
        # Red alone at stride 8, green alone at 16, none at 32; the mean over the face's size peaks at its centre.
        weights = {8: (1, -1, 0), 16: (-1, 1, 0), 32: (0, 0, 0)}[stride]
        side = FACE_SIDES.get(stride, stride)
        size, step = side // 8, stride // 8
        kernel = np.float32(weights).reshape(1, 3, 1, 1) / size**2 * np.ones((1, 1, size, size), np.float32)
        constants += [constant(f"kernel{stride}", kernel), constant(f"bias{stride}", np.float32([-1.2]))]
        before = size // 2 if size > step else 0
        pads, strides = [before, before, size - step - before, size - step - before], [step, step]
        names = ["cells", f"kernel{stride}", f"bias{stride}"]
        nodes.append(helper.make_node("Conv", names, [f"map{stride}"], pads=pads, strides=strides))
        nodes += [
            helper.make_node("Sigmoid", [f"map{stride}"], [f"probability{stride}"]),
            helper.make_node("Reshape", [f"probability{stride}", "flat"], [f"one{stride}"]),
            # Two anchors a cell: the second never fires.
            helper.make_node("Mul", [f"one{stride}", "zero"], [f"none{stride}"]),
            helper.make_node("Concat", [f"one{stride}", f"none{stride}"], [f"pair{stride}"], axis=1),
            helper.make_node("Reshape", [f"pair{stride}", "flat"], [f"score{stride}"]),
            helper.make_node("Mul", [f"score{stride}", "zero"], [f"blank{stride}"]),
            helper.make_node("Add", [f"blank{stride}", f"reach{stride}"], [f"box{stride}"]),
            helper.make_node("Add", [f"blank{stride}", f"points{stride}"], [f"landmarks{stride}"]),
        ]
        points = (ALIGNED / 112 - 0.5) * side / stride
        constants += [
            constant(f"reach{stride}", np.full((1, 4), side / 2 / stride, np.float32)),
            constant(f"points{stride}", points.reshape(1, 10)),
        ]
        named |= {f"score{stride}": 1, f"box{stride}": 4, f"landmarks{stride}": 10}
    outputs = [
        helper.make_tensor_value_info(f"{kind}{stride}", TensorProto.FLOAT, [f"n{stride}", named[f"{kind}{stride}"]])
        for kind in ("score", "box", "landmarks")
        for stride in STRIDES
    ]
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    save(path, nodes, [picture], outputs, constants)


def write_recogniser(path: Path) -> None:
    """112² → 512 numbers: mean red, green and blue of the upper half, of the lower half, then a ramp of their sum."""
    cells = np.zeros((6, 512), np.float32)
    cells[:6, :6] = np.eye(6)
    cells[:, 6:] = np.linspace(-1, 1, 506)
    nodes = [
        helper.make_node("AveragePool", ["input"], ["halves"], kernel_shape=[56, 112], strides=[56, 112]),
        helper.make_node("Transpose", ["halves"], ["ordered"], perm=[0, 2, 3, 1]),
        helper.make_node("Flatten", ["ordered"], ["flat"]),
        helper.make_node("MatMul", ["flat", "cells"], ["embedding"]),
    ]
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 112, 112])
    answer = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 512])
    save(path, nodes, [picture], [answer], [constant("cells", cells)])
