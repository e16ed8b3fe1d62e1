"""Small ONNX files of any kind, made without torch: the logits are the mean of each colour."""

import json
from pathlib import Path

ABOUT = {
    "kind": "distilens export 1",
    "task": "classification",
    "classes": ["red", "green", "blue"],
    "input": {"name": "images", "type": "float32", "channels": 3, "size": [8, 8], "mean": [0.5, 0.5, 0.5]},
    "outputs": ["logits", "probabilities"],
}


def changed(**changes: object) -> dict:
    """The metadata with changes; those of the input as `size=`, `type=`, `mean=`, `channels=`."""
    inner = {key: changes.pop(key) for key in ("size", "type", "mean", "channels") if key in changes}
    return {**ABOUT, "input": {**ABOUT["input"], **inner}, **changes}


def tiny_model(about: object = ABOUT, *, nodes=(), initializers=(), opsets=(), size=(8, 8), **parts):
    """A model with metadata; `nodes` stand before its own."""
    from onnx import TensorProto, helper

    own = [
        helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(
        [*nodes, *own],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("logits", "probabilities")],
        [axes, *initializers],
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in opsets)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, **parts)
    if about is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = "distilens", about if isinstance(about, str) else json.dumps(about)
    return model


def write_tiny(path: Path, about: object = ABOUT, **parts) -> Path:
    path.write_bytes(tiny_model(about, **parts).SerializeToString())
    return path
