"""The predictor writes a mask per picture, of the picture's own size, and prints the shares of the classes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from distilens.deploy import predict as predictor
from distilens.deploy.predict import BadFile, answer, as_palette, find_wrong, mask_at, open_model
from tiny_onnx import ABOUT, changed, write_tiny

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (4, 6)
DENSE = changed(task="segmentation", void=255, outputs=["logits", "mask"], size=list(SIZE))
CLASSES = ABOUT["classes"]


def write_dense(path, about=DENSE, shift=0):
    """A file whose logits are the pixels, so that the mask is the strongest colour (plus `shift`)."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Identity", ["images"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["largest"], axis=1, keepdims=0),
        helper.make_node("Add", ["largest", "shift"], ["number"]),
        helper.make_node("Cast", ["number"], ["mask"], to=TensorProto.UINT8),
    ]
    shapes = {"images": (TensorProto.FLOAT, ["n", 3, *SIZE]), "logits": (TensorProto.FLOAT, ["n", 3, *SIZE])}
    shapes["mask"] = (TensorProto.UINT8, ["n", *SIZE])
    values = {name: helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()}
    constant = helper.make_tensor("shift", TensorProto.INT64, [], [shift])
    graph = helper.make_graph(nodes, "dense", [values["images"]], [values["logits"], values["mask"]], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    entry = model.metadata_props.add()
    entry.key, entry.value = "distilens", json.dumps(about)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def file(tmp_path):
    return write_dense(tmp_path / "dense.onnx")


@pytest.fixture
def go(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = predictor.main([str(word) for word in words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out.splitlines(), said.err

    return run


def painted(path, height, width, **options):
    """Red; the right third is blue, and there the lower half is green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 250
    pixels[:, 2 * width // 3 :] = (0, 0, 250)
    pixels[height // 2 :, 2 * width // 3 :] = (0, 250, 0)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels.argmax(2)


def test_the_mask_has_the_pictures_size_and_the_numbers_of_the_classes(file, go, tmp_path):
    expected = painted(tmp_path / "in" / "a.png", 40, 60)
    code, lines, _ = go(file, "in", "--out", "masks")
    assert code == 0 and lines == ["in/a.png\tred 0.667\tgreen 0.167\tblue 0.167"]
    mask = Image.open(tmp_path / "masks" / "a.png")
    assert mask.mode == "P" and mask.size == (60, 40)
    assert np.array_equal(np.asarray(mask), expected)


def test_the_whole_picture_gets_classes_whatever_its_shape(file, go, tmp_path):
    painted(tmp_path / "in" / "wide.png", 8, 90)
    go(file, "in", "--out", "masks")
    mask = np.asarray(Image.open(tmp_path / "masks" / "wide.png"))
    assert (
        mask.shape == (8, 90)
        and (mask[:, :60] == 0).all()
        and (mask[:4, 60:] == 2).all()
        and (mask[4:, 60:] == 1).all()
    )


def test_a_picture_that_lies_on_its_side_is_answered_upright(file, go, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn a quarter to the right
    painted(tmp_path / "in" / "a.jpg", 480, 720, exif=exif, quality=95)
    go(file, "in", "--out", "masks")
    mask = np.asarray(Image.open(tmp_path / "masks" / "a.png"))
    assert mask.shape == (720, 480), "also if the JPEG is read at a part of its size"
    assert mask[0, 0] == 0 and mask[-1, -1] == 2 and mask[-1, 0] == 1


def test_json_has_the_shares_and_the_file_of_the_mask(file, go, tmp_path):
    painted(tmp_path / "in" / "a.png", 40, 60)
    code, lines, _ = go(file, "in/a.png", "--json", "--top", 1, "--out", "masks")
    assert code == 0
    assert json.loads(lines[0]) == {
        "file": "in/a.png",
        "shares": [{"class": "red", "share": pytest.approx(2 / 3, abs=1e-3)}],
        "mask": "masks/a.png",
    }
    assert "mask" not in json.loads(go(file, "in/a.png", "--json")[1][0])


def test_masks_of_one_name_get_numbers_and_a_bad_picture_stops_nothing(file, go, tmp_path):
    painted(tmp_path / "in" / "a.png", 4, 6)
    painted(tmp_path / "more" / "a.png", 4, 6)
    (tmp_path / "more" / "b.png").write_text("no picture")
    code, lines, error = go(file, "in", "more", "--out", "masks")
    assert code == 1 and len(lines) == 2 and "b.png" in error
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a-2.png", "a.png"]


def test_the_palette_is_that_of_pascal_voc():
    image = as_palette(np.arange(256, dtype=np.uint8).reshape(16, 16))
    colours = np.array(image.getpalette()).reshape(256, 3).tolist()
    known = [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
    ]
    assert colours[:9] == [*known, [64, 0, 0]] and colours[20] == [0, 64, 128] and colours[255] == [224, 224, 192]
    assert np.array_equal(np.asarray(image), np.arange(256).reshape(16, 16))


def test_nearest_neighbour_makes_no_new_class():
    mask = np.array([[0, 2], [2, 0]], np.uint8)
    assert mask_at(mask, (4, 4)).tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [2, 2, 0, 0], [2, 2, 0, 0]]


def test_options_of_the_other_kind_are_refused(file, go, tmp_path):
    painted(tmp_path / "in" / "a.png", 4, 6)
    code, _, error = go(file, "in", "--explain", "maps")
    assert code == 2 and "is not a classification. It gives a class for each pixel: --out DIR writes the masks" in error
    tiny = write_tiny(tmp_path / "tiny.onnx")
    code, _, error = go(tiny, "in", "--out", "masks")
    assert code == 2 and "--out writes the masks of a segmentation" in error
    code, _, error = go(file, "in", "--out", "in")
    assert code == 2 and "this folder holds in/a.png. Masks need a folder of their own" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.onnx", "in", "tiny.onnx"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": []}, "its classes are"),
        ({"outputs": ["logits", "mask", "maps"]}, "a mask needs the outputs logits, mask"),
        ({"classes": [str(number) for number in range(256)]}, "at most 255 classes"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(changes, message):
    assert not find_wrong(DENSE)
    assert message in find_wrong({**DENSE, **changes})


def test_a_mask_with_another_class_is_refused(tmp_path):
    images = np.zeros((2, 3, *SIZE), np.float32)
    assert (answer(open_model(write_dense(tmp_path / "one.onnx", shift=2)), images)["mask"] == 2).all()
    with pytest.raises(BadFile, match="its mask are uint8"):
        answer(open_model(write_dense(tmp_path / "other.onnx", shift=3)), images)


def test_it_needs_no_torch(file, tmp_path):
    painted(tmp_path / "in" / "a.png", 4, 6)
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.modules['distilens'] = None; "
        f"sys.argv = ['predict.py', {str(file)!r}, 'in', '--out', 'masks']; "
        f"runpy.run_path({predictor.__file__!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "a.png").is_file()
