"""Model files of strangers: what the predictor refuses, and that nothing outside the file's folder is read."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilens.deploy import predict as predictor
from distilens.deploy.predict import MESSAGES, BadFile, external_files, find_wrong, open_model
from tiny_onnx import ABOUT, changed, tiny_model, write_tiny

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


@pytest.fixture
def predict(tmp_path, capsys):
    """Answer a red picture with a file: exit status, output, error."""
    picture = tmp_path / "red.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(picture)

    def run(file, *words):
        code = predictor.main([str(file), str(picture), *words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert said.err.count("\n") <= 1
        return code, said.out, said.err

    return run


# --------------------------------------------------------------------------------------------- external weights


def external(location, *, name="weights", count=8, value_first=False):
    """A tensor whose values lie in another file."""
    tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=[count], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": str(4 * count)}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def with_weights(location, **options):
    """A model whose pictures are shifted by external weights: red loses 1."""
    tensor = external(location, **options)
    add = helper.make_node("Add", ["raw", "weights"], ["images"])
    model = tiny_model(nodes=[add], initializers=[tensor])
    model.graph.input[0].name = "raw"
    return model


def save_weights(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.arange(8, dtype=np.float32).tobytes())


def save(model, path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["weights.bin", "deep/weights.bin", "deep/../weights.bin", "жук.bin"])
def test_weights_in_the_folder_are_read(location, predict, tmp_path, monkeypatch):
    (tmp_path / "model/deep").mkdir(parents=True)
    save_weights(tmp_path / "model" / location)
    save(with_weights(location), tmp_path / "model/a.onnx")
    assert predict(tmp_path / "model/a.onnx")[0] == 0
    monkeypatch.chdir(tmp_path / "model")
    assert predict("a.onnx") == (0, f"{tmp_path / 'red.png'}\tred 0.576\n", "")


def test_a_link_within_the_folder_is_read(predict, tmp_path):
    save_weights(tmp_path / "model/weights.bin")
    (tmp_path / "model/link.bin").symlink_to("weights.bin")
    assert predict(save(with_weights("link.bin"), tmp_path / "model/a.onnx"))[0] == 0


@pytest.mark.parametrize(
    "location",
    [
        *("../secret.bin", "deep/../../secret.bin", "{absolute}/secret.bin", "link.bin", "links/secret.bin", "loop"),
        *("*/_ORT_MEM_ADDR_/*", "a\0../secret.bin", "/proc/self/mem", "./../secret.bin"),
    ],
)
def test_weights_outside_the_folder_are_refused(location, predict, tmp_path, monkeypatch):
    save_weights(tmp_path / "secret.bin")
    (tmp_path / "model/deep").mkdir(parents=True)
    (tmp_path / "model/link.bin").symlink_to("../secret.bin")
    (tmp_path / "model/links").symlink_to("..")
    (tmp_path / "model/loop").symlink_to("loop")
    file = save(with_weights(location.format(absolute=tmp_path)), tmp_path / "model/a.onnx")
    for given in (file, "a.onnx"):
        monkeypatch.chdir(file.parent)
        code, out, error = predict(given)
        assert (code, out) == (2, "")
        assert "outside its folder" in error


def test_missing_and_short_weights_are_named(predict, tmp_path):
    file = save(with_weights("weights.bin"), tmp_path / "model/a.onnx")
    assert predict(file)[0] == 2
    (tmp_path / "model/weights.bin").write_bytes(b"abc")
    code, _, error = predict(file)
    assert code == 2
    assert "cannot be opened by ONNX Runtime" in error


def hide(tensor):
    """A model for every place in which a tensor can stand."""
    sparse = onnx.SparseTensorProto(values=tensor, indices=helper.make_tensor("i", onnx.TensorProto.INT64, [1], [0]))
    indices = onnx.SparseTensorProto(values=helper.make_tensor("v", FLOAT, [1], [0]), indices=tensor)
    inner = helper.make_graph([], "inner", [], [], [tensor])
    attributes = {
        "attribute": helper.make_attribute("value", tensor),
        "list of tensors": helper.make_attribute("values", [tensor]),
        "subgraph": helper.make_attribute("body", inner),
        "list of subgraphs": helper.make_attribute("bodies", [inner]),
        "sparse attribute": helper.make_attribute("value", sparse),
        "list of sparse": helper.make_attribute("values", [indices]),
    }
    for name, attribute in attributes.items():
        node = onnx.NodeProto(op_type="Any", attribute=[attribute])
        yield name, tiny_model(nodes=[node])
        yield (
            f"{name} two graphs deep",
            tiny_model(
                nodes=[helper.make_node("If", ["x"], [], then_branch=helper.make_graph([node], "inner", [], []))]
            ),
        )
        function = onnx.FunctionProto(name="f", domain="own", node=[node], opset_import=[helper.make_opsetid("", 20)])
        yield f"{name} of a function", tiny_model(functions=[function])
    default = onnx.FunctionProto(name="f", domain="own", attribute_proto=[attributes["attribute"]])
    yield "default of a function", tiny_model(functions=[default])
    yield "initializer", tiny_model(initializers=[tensor])
    for name, one in (("values", sparse), ("indices", indices)):
        model = tiny_model()
        model.graph.sparse_initializer.append(one)
        yield f"sparse {name}", model
    for name in ("initialization", "algorithm"):
        model = tiny_model()
        getattr(model.training_info.add(), name).CopyFrom(inner)
        yield name, model


def test_a_tensor_is_found_wherever_it_stands():
    places = list(hide(external("../secret.bin")))
    assert len(places) > 20
    for name, model in places:
        assert list(external_files(model.SerializeToString())) == ["../secret.bin"], name
    assert list(external_files(tiny_model().SerializeToString())) == []


def test_the_table_of_messages_is_that_of_onnx():
    """Every message of onnx.proto from which a path leads to a tensor's external data, and every such field."""
    wanted: dict[str, set[tuple[int, str]]] = {}
    todo = [onnx.ModelProto.DESCRIPTOR]
    seen = {}
    while todo:
        message = todo.pop()
        if message.full_name not in seen:
            seen[message.full_name] = message
            todo += [field.message_type for field in message.fields if field.message_type]

    def leads(message, above=()):
        if message.name == "TensorProto":
            return True
        if message.name in above:
            return False
        return any(leads(field.message_type, (*above, message.name)) for field in message.fields if field.message_type)

    short = {"ModelProto": "model", "TrainingInfoProto": "training", "GraphProto": "graph", "FunctionProto": "function"}
    short |= {
        "NodeProto": "node",
        "AttributeProto": "attribute",
        "SparseTensorProto": "sparse",
        "TensorProto": "tensor",
    }
    for message in seen.values():
        if message.name != "TensorProto" and leads(message):
            fields = [field for field in message.fields if field.message_type and leads(field.message_type)]
            wanted[short[message.name]] = {(field.number, short[field.message_type.name]) for field in fields}
    wanted["tensor"] = {(onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER, "external")}
    assert {kind: set(fields.items()) for kind, fields in MESSAGES.items()} == wanted


def part(number, content):
    """A protobuf field of bytes."""
    return onnx_varint(number << 3 | 2) + onnx_varint(len(content)) + content


def onnx_varint(value, length=1):
    """A varint, possibly longer than needed."""
    pieces = []
    while value or len(pieces) < length:
        pieces.append(value & 127)
        value >>= 7
    return bytes([piece | 128 for piece in pieces[:-1]] + [pieces[-1]])


def model_with(entry):
    """The bytes of a model with one tensor that has these bytes as its external data."""
    tensor = part(13, entry)
    return part(7, part(5, tensor))


def test_how_a_place_may_be_written():
    key, value = part(1, b"location"), part(2, b"../x")
    assert list(external_files(model_with(key + value))) == ["../x"]
    assert list(external_files(model_with(value + key))) == ["../x"]  # the value first
    assert list(external_files(model_with(key + part(2, b"inside") + value))) == [
        "inside",
        "../x",
    ]  # the last one counts
    assert list(external_files(model_with(part(1, b"offset") + key + value))) == ["../x"]
    assert list(external_files(model_with(b"\x18\x05" + key + b"\x25abcd" + value))) == [
        "../x"
    ]  # unknown fields between
    long = onnx_varint(1 << 3 | 2, 4) + onnx_varint(8, 5) + b"location"
    assert list(external_files(model_with(long + value))) == ["../x"]  # longer numbers than needed
    assert list(external_files(model_with(part(1, b"offset") + value))) == []
    twice = model_with(key + part(2, b"a")) + model_with(key + part(2, b"b"))  # two graphs are merged
    assert sorted(external_files(twice)) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"\x3a\x05ab",  # cut off
        b"\x02\x00",  # field 0
        b"\x3b\x3c",  # a group
        b"\xff" * 11,  # an endless number
        onnx_varint(2**32 + (7 << 3 | 2), 5)
        + b"\x00",  # a field number beyond 32 bits, of which readers drop the upper ones
    ],
)
def test_bytes_that_are_not_protobuf(content):
    with pytest.raises((ValueError, IndexError)):
        list(external_files(content))


def test_deep_nesting_needs_no_stack():
    graph = b""
    for _ in range(3000):
        graph = part(1, part(5, part(6, graph)))
    assert list(external_files(part(7, graph))) == []


# ----------------------------------------------------------------------------------------------- what it executes


def test_operators_of_other_domains_are_refused(predict, tmp_path):
    node = helper.make_node("Evil", ["raw"], ["images"], domain="com.stranger")
    model = tiny_model(nodes=[node], opsets=["com.stranger"])
    model.graph.input[0].name = "raw"
    code, out, error = predict(save(model, tmp_path / "a.onnx"))
    assert (code, out) == (2, "")
    assert "an operator that ONNX Runtime does not have" in error and "Evil" in error


def test_a_function_of_onnx_operators_is_run(predict, tmp_path):
    body = [helper.make_node("Identity", ["x"], ["y"])]
    function = helper.make_function("own", "Same", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    node = helper.make_node("Same", ["raw"], ["images"], domain="own")
    model = tiny_model(nodes=[node], opsets=["own"], functions=[function])
    model.graph.input[0].name = "raw"
    assert predict(save(model, tmp_path / "a.onnx"))[0] == 0


def test_the_runtimes_own_format_is_refused(predict, tmp_path):
    """It would not be read as ONNX, so its weights' places would not be seen."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "a.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(tiny_model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    (tmp_path / "a.ort").rename(tmp_path / "a.onnx")
    code, _, error = predict(tmp_path / "a.onnx")
    assert code == 2
    assert "is not an ONNX file, or it is damaged" in error


# --------------------------------------------------------------------------------------------------- damaged files


def test_files_that_are_not_models(predict, tmp_path):
    whole = tiny_model().SerializeToString()
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "full").mkdir()
    save(tiny_model(), tmp_path / "full/student.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    cases = {
        "empty.onnx": (b"", "is empty"),
        "text.onnx": (b"<html>not found</html>", "not an ONNX file"),
        "cut.onnx": (whole[:-20], "not an ONNX file"),
        "picture.onnx": ((tmp_path / "red.png").read_bytes(), "not an ONNX file"),
        "none.onnx": (None, "there is no file"),
        "model.safetensors": (b"x", "neither an .onnx nor a .pte file"),
        "folder.onnx": (None, "is a folder, not an exported model"),
        "full": (None, "Give the file:"),
        "pipe.onnx": (None, "not a regular file"),
        "n" * 300 + ".onnx": (None, "there is no file"),
    }
    for name, (content, reason) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        code, out, error = predict(tmp_path / name)
        assert (code, out) == (2, ""), name
        assert reason in error, name


def test_any_damage_is_an_error_without_traceback(predict, tmp_path):
    """Bytes cut off, or changed at random: an answer or one line, never an exception."""
    whole = with_weights("weights.bin").SerializeToString()
    save_weights(tmp_path / "weights.bin")
    random = np.random.default_rng(0)
    codes = []
    for cut in range(1, len(whole), max(1, len(whole) // 40)):
        codes.append(predict(save(whole[:cut], tmp_path / "a.onnx"))[0])
    assert set(codes) == {2}
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(256)
        codes.append(predict(save(bytes(damaged), tmp_path / "a.onnx"))[0])
    assert set(codes) <= {0, 1, 2} and codes.count(2) > 40


# -------------------------------------------------------------------------------------------------- its description


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (None, "was not written by distilens export"),
        ("", "was not written by distilens export"),
        ("{", "was not written by distilens export"),
        ("[" * 100_000, "was not written by distilens export"),
        ('["distilens export 1"]', "was not written by distilens export"),
        ({}, "was not written by distilens export"),
        (changed(kind="distilens export 7"), "another version of distilens"),
        (changed(input=None), "does not say what the input is"),
        (changed(size=[8]), "the size of its input is [8]"),
        (changed(size="8x8"), "the size of its input is 8x8"),
        (changed(size=["8", "8"]), "the size of its input"),
        (changed(size=[8, True]), "the size of its input"),
        (changed(size=[0, 8]), "the size of its input"),
        (changed(size=[8, -8]), "the size of its input"),
        (changed(size=[8, 10**30]), "the size of its input"),
        (changed(size=[8, 1e300]), "the size of its input"),
        (changed(size=[16, 16]), "its inputs are images tensor(float)"),
        (changed(type="uint8"), "its inputs are images tensor(float)"),
        (changed(type="float16"), "the type of its input"),
        (changed(channels=4, mean=[0.5]), "its inputs are images"),
        (changed(channels="3"), "the channels of its input"),
        (changed(mean=[]), "its mean colour"),
        (changed(mean=[0.5, 0.5]), "its mean colour"),
        (changed(mean=[0.5, 0.5, float("nan")]), "its mean colour"),
        (changed(mean=[0.5, 0.5, None]), "its mean colour"),
        (changed(outputs=None), "its outputs"),
        (changed(outputs=["logits"]), "its outputs are logits, probabilities"),
        (changed(outputs=["logits", "maps"]), "its outputs are logits, probabilities"),
        (changed(outputs=["logits", "logits"]), "its outputs are"),
        (changed(outputs=["probabilities", "logits"]), "its outputs are"),
        (changed(outputs=[["logits"]]), "its outputs are"),
        (changed(classes=None), "its classes are None"),
        (changed(classes="red"), "its classes are red"),
        (changed(classes=["red", "green", 3]), "its classes are"),
        (changed(classes=["red", "green"]), "2 classes"),
        (changed(classes=["red", "green", "blue", "grey"]), "4 classes"),
        (changed(pixels=[1]), "its pixels are"),
        (changed(pixels={"ground": "pink"}), "its pixels are"),
        (changed(pixels={"ground": ["white"]}), "its pixels are"),
        (changed(pixels={"range": [5, 5]}), "the range of its pixels"),
        (changed(pixels={"range": "0,5"}), "the range of its pixels"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_lies_about_itself_are_refused(about, reason, predict, tmp_path):
    code, out, error = predict(write_tiny(tmp_path / "a.onnx", about))
    assert (code, out) == (2, "")
    assert reason in error
    assert len(error) < 1000


def test_a_true_description_passes():
    assert find_wrong(ABOUT) == ""
    assert find_wrong(changed(pixels={"ground": "black", "range": [0, 4095]})) == ""
    assert find_wrong(changed(channels=1, mean=[0.5], outputs=["logits"], classes=None)) == ""


def test_other_channels_than_three(predict, tmp_path):
    model = tiny_model(changed(channels=4, mean=[0.5] * 4))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = 4
    file = save(model, tmp_path / "a.onnx")
    code, _, error = predict(file)
    assert code == 2
    assert "takes images of 4 channels, and pictures have 3" in error
    assert open_model(file).about["input"]["channels"] == 4  # an export of such a network is verified with it


def test_a_file_that_fails_while_it_runs(predict, tmp_path):
    node = helper.make_node("Reshape", ["raw", "shape"], ["images"])
    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [4], [1, 7, 7, 7])
    model = tiny_model(nodes=[node], initializers=[shape])
    model.graph.input[0].name = "raw"
    code, out, error = predict(save(model, tmp_path / "a.onnx"))
    assert (code, out) == (2, "")
    assert "cannot be" in error


def test_answers_that_are_not_numbers(predict, tmp_path):
    node = helper.make_node("Mul", ["raw", "nan"], ["images"])
    nan = helper.make_tensor("nan", FLOAT, [], [float("nan")])
    model = tiny_model(nodes=[node], initializers=[nan])
    model.graph.input[0].name = "raw"
    code, out, error = predict(save(model, tmp_path / "a.onnx"), "--json")
    assert code == 1
    assert json.loads(out)["error"] == "the model's answer is not a number"
    assert "not a number" in error


def test_hostile_names_of_classes(predict, tmp_path):
    names = ["\x1b]0;owned\x07\x1b[2J\r\n\u202e", "\ud800\x00", "x" * 100_000]
    text = json.dumps(changed(classes=names))
    file = write_tiny(tmp_path / "a.onnx", text)
    code, out, _ = predict(file, "--top", "3")
    assert code == 0
    assert out.count("\n") == 1
    assert all(one.isprintable() for one in out.rstrip("\n").replace("\t", ""))
    assert r"\x1b]0;owned\x07\x1b[2J\r\n\u202e" in out
    code, out, _ = predict(file, "--top", "3", "--json")
    assert code == 0 and out.isascii()
    assert {entry["class"] for entry in json.loads(out)["top"]} == set(names)


def test_hostile_words_in_messages(predict, tmp_path):
    _, _, error = predict(write_tiny(tmp_path / "a.onnx", json.dumps(changed(type="\x1b[2J" + "x" * 10_000))))
    assert r"\x1b[2J" in error and len(error) < 500
    _, _, error = predict(save(with_weights("../\x1b[2J"), tmp_path / "b.onnx"))
    assert "\x1b" not in error and "outside its folder" in error


def test_a_network_of_another_task_prints_its_numbers(predict, tmp_path):
    model = tiny_model(changed(task={"task": "own"}, outputs=["logits"], classes=None))
    del model.graph.output[1]
    file = save(model, tmp_path / "a.onnx")
    code, out, _ = predict(file)
    assert (code, out.split("\t")[1:]) == (0, ["output 0 1.000", "output 1 0.000", "output 2 0.000\n"])
    assert json.loads(predict(file, "--json")[1])["outputs"] == [1, 0, 0]
    code, _, error = predict(file, "--explain", str(tmp_path / "maps"))
    assert code == 2
    assert "not a classification" in error


def test_a_missing_runtime_is_named(predict, tmp_path, monkeypatch):
    write_tiny(tmp_path / "a.onnx")
    (tmp_path / "a.pte").write_bytes(b"x")
    monkeypatch.setattr(predictor.importlib.util, "find_spec", lambda name: None)
    assert "pip install onnxruntime" in predict(tmp_path / "a.onnx")[2]
    assert "pip install executorch" in predict(tmp_path / "a.pte")[2]


@pytest.mark.slow
def test_a_damaged_pte(tmp_path):
    """In a process of its own: ExecuTorch and torch write on stderr from C++ and by logging."""
    pytest.importorskip("executorch")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for content in (b"x", b"x" * 1000, struct.pack("<I", 64) + b"ET12" + b"\0" * 500):
        (tmp_path / "a.pte").write_bytes(content)
        done = subprocess.run(
            [sys.executable, predictor.__file__, "a.pte", "a.png"], cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert "a.pte is not an ExecuTorch file of distilens export, or it is damaged" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_bad_file_is_one_kind_of_error(tmp_path):
    with pytest.raises(BadFile, match="there is no file"):
        open_model(Path(tmp_path / "none.onnx"))
