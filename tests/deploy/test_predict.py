"""The predictor: it sees and answers as distilens does, without torch; bad pictures are named; nothing is half-written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distilens
from distilens.data.decode import decode
from distilens.data.pixels import Pixels
from distilens.data.sources import tree
from distilens.deploy import predict as predictor
from distilens.deploy.predict import (
    SUFFIXES,
    answer,
    as_input,
    fit,
    occlusion,
    open_model,
    overlay,
    printable,
    read_picture,
)
from tiny_onnx import changed, write_tiny

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSES = ["cat", "dog", "bird"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A resnet8, saved by distilens and exported: folder of the model, the ONNX file."""
    from distilens.deploy.exporting import Plan, export_model

    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = distilens.build_model("resnet8", CLASSES, (32, 24)).eval()
    for module in model.network.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= 20  # answers that differ
    distilens.save_model(model, folder / "model")
    export_model(model, folder / "out", Plan())
    return folder / "model", folder / "out" / "student.onnx"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture
def go(capsys, monkeypatch, tmp_path):
    """Run the command in a folder of its own: exit status, lines of output, error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, list[str], str]:
        code = predictor.main([str(word) for word in words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out.splitlines(), said.err

    return run


def noise(height=32, width=24, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def coloured(path, colour=(255, 0, 0), **options):
    Image.new("RGB", (10, 12), colour).save(path, **options)
    return path


def size_of(path):
    """The size of a picture that can be read to its end."""
    with Image.open(path) as image:
        image.load()
        return image.size


def smooth(mode="RGB", size=(90, 70)):
    """A photograph-like picture of any mode."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    planes = np.stack([x, y, (x + y) / 2, 1 - x * y], -1)
    return Image.fromarray((planes[..., :3] * 255).astype(np.uint8)).convert(mode)


# ------------------------------------------------------------------------------------- it answers as the model


def test_it_answers_as_the_saved_model(exported, tmp_path):
    folder, file = exported
    images = [noise(seed=seed) for seed in range(4)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    expected = distilens.load_model(folder).predict([Image.fromarray(image) for image in images])
    model = open_model(file)
    seen = np.stack([read_picture(tmp_path / f"{number}.png", model.about) for number in range(4)])
    assert np.array_equal(seen, np.stack(images))
    found = answer(model, as_input(seen, model.about))
    np.testing.assert_allclose(found["probabilities"], expected.probabilities.numpy(), atol=1e-5)
    assert [CLASSES[row.argmax()] for row in found["probabilities"]] == expected.classes
    assert np.ptp(expected.probabilities.numpy(), 0).max() > 0.01  # pictures matter


def test_its_map_is_the_explainer_occlusion(exported):
    from distilens.explain import build_explainer

    folder, file = exported
    model, own = open_model(file), distilens.load_model(folder)
    image = as_input(noise()[None], model.about)
    for target in range(3):
        explained = build_explainer("occlusion")(own, torch.from_numpy(image), torch.tensor([target]))
        expected = explained.maps[0].numpy()
        found = occlusion(model, image[0], target)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        assert np.abs(expected).max() > 1e-3


def test_a_map_made_in_parts_is_the_same(exported, monkeypatch):
    model = open_model(exported[1])
    image = as_input(noise()[None], model.about)[0]
    whole = occlusion(model, image, 0)
    monkeypatch.setattr(predictor, "PROBED_PIXELS", 3 * 32 * 24)
    np.testing.assert_allclose(occlusion(model, image, 0), whole, atol=1e-5)


def test_the_copy_beside_the_model_works_alone_and_without_torch(exported, tmp_path):
    """`-I`: without the current folder and without PYTHONPATH."""
    copy = exported[1].parent / "predict.py"
    assert copy.read_text() == Path(predictor.__file__).read_text()
    coloured(tmp_path / "a.png")
    code = (
        f"import runpy, sys; sys.argv = ['predict.py', {str(exported[1])!r}, 'a.png', '--explain', 'maps']\n"
        "for name in ('torch', 'distilens'): sys.modules[name] = None\n"
        f"runpy.run_path({str(copy)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a.png\t")
    assert size_of(tmp_path / "maps/a.png") == (24, 32)


def test_the_command_imports_no_torch_and_parses_without_tyro(tiny, tmp_path):
    coloured(tmp_path / "a.png")
    code = (
        "import sys\nfrom distilens.cli import main\n"
        f"sys.argv = ['distilens', 'predict', {str(tiny)!r}, 'a.png', '--top', '2']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "assert not {'torch', 'tyro', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "a.png\tred 0.576\tgreen 0.212\n"


def test_the_command_line_of_distilens_knows_it_too(tiny, tmp_path, capsys, monkeypatch):
    """tyro parses it for `distilens --help`, and for callers of the command's function."""
    from distilens.cli import commands

    coloured(tmp_path / "a.png")
    with pytest.raises(SystemExit) as stop:
        commands.begin(["predict", str(tiny), str(tmp_path / "a.png"), "--top", "1", "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["top"][0]["class"] == "red"


# -------------------------------------------------------------------------------------- it sees as the training


def save_exif(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth().save(path, exif=exif.tobytes())


def save_animation(path):
    smooth("P").save(path, save_all=True, append_images=[smooth("P").transpose(Image.Transpose.FLIP_LEFT_RIGHT)])


def save_deep(path):
    values = np.linspace(0, 65535, 70 * 90).reshape(70, 90).astype(np.uint16)
    Image.fromarray(values).save(path)


def save_float(path):
    Image.fromarray(np.linspace(0, 65535, 70 * 90, dtype=np.float32).reshape(70, 90)).save(path)


def save_transparent(path):
    image = smooth("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


def save_palette_with_transparency(path):
    smooth("P").save(path, transparency=3)


PICTURES = {
    "plain.jpg": lambda path: smooth(size=(400, 300)).save(path, quality=95),  # so large that draft mode is used
    "turned.jpg": save_exif,
    "cmyk.jpg": lambda path: smooth("CMYK").save(path),
    "grey.jpg": lambda path: smooth("L").save(path),
    "grey.png": lambda path: smooth("L").save(path),
    "bits.png": lambda path: smooth("1").save(path),
    "palette.png": lambda path: smooth("P").save(path),
    "keyed.png": save_palette_with_transparency,
    "alpha.png": save_transparent,
    "grey-alpha.png": lambda path: smooth("LA").save(path),
    "deep.png": save_deep,
    "deep.tif": save_deep,
    "float.tif": save_float,
    "film.gif": save_animation,
    "tall.webp": lambda path: smooth(size=(20, 200)).save(path, lossless=True),
    "small.bmp": lambda path: smooth(size=(5, 3)).save(path),
}


@pytest.mark.parametrize("ground", ["white", "black", "grey"])
@pytest.mark.parametrize("name", PICTURES)
def test_it_decodes_as_the_training_does(name, ground, tmp_path):
    path = tmp_path / name
    PICTURES[name](path)
    about = changed(size=[32, 24], pixels={"ground": ground, "range": [0, 65535]})
    expected = decode(path, Pixels(size=(32, 24), ground=ground, bounds=(0, 65535)))
    found = read_picture(path, about)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert np.ptp(found) > 20


def test_deep_pictures_without_a_range(tmp_path):
    """Whole numbers reach to 65535, floats to 1."""
    save_deep(tmp_path / "a.png")
    assert np.array_equal(
        read_picture(tmp_path / "a.png", changed()), decode(tmp_path / "a.png", Pixels(8, bounds=(0, 65535)))
    )
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "b.tif")
    assert read_picture(tmp_path / "b.tif", changed()).mean() == 128


def test_folders_have_the_same_pictures_as_in_training():
    assert tree.COMMON <= SUFFIXES
    known = {suffix.lower() for suffix in tree.suffixes()}
    optional = {".avif", ".jp2"}  # of Pillow with all libraries
    assert known >= SUFFIXES - optional


def test_fit_covers_and_cuts_the_middle():
    image = Image.fromarray(np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 10, 0).repeat(3, 2))
    assert np.asarray(fit(image, 10, 10))[0, :, 0].tolist() == list(range(45, 55))


# ----------------------------------------------------------------------------------------- what it is given


def test_files_folders_and_patterns(go, tiny, tmp_path):
    for name in ("b.png", "a/2.JPG", "a/deep/1.png", "a/.hidden.png", "a/.git/x.png", "c[1].png", "p/x.png", "p/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        coloured(tmp_path / name, (0, 0, 255))
    (tmp_path / "a/notes.txt").write_text("no picture")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    (tmp_path / "linked").symlink_to(tmp_path / "p")
    code, lines, error = go(tiny, "b.png", "a", "c[1].png", "p/*.png", "linked", "**/1.png")
    assert (code, error) == (0, "")
    assert all(line.split("\t")[1].startswith("blue 0.57") for line in lines)
    assert [line.split("\t")[0] for line in lines] == [
        "b.png",
        "a/2.JPG",
        "a/deep/1.png",
        "c[1].png",
        "p/x.png",
        "p/y.png",
        "linked/x.png",
        "linked/y.png",
        "a/deep/1.png",
    ]


def write_cut(path):
    smooth().save(path)
    path.write_bytes(path.read_bytes()[:-300])


def write_bomb(path):
    """A PNG of 100,000 × 100,000 pixels in a few bytes."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))


def write_nan(path):
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(path)


def write_program(path):
    Image.new("RGB", (8, 8)).save(path, format="EPS")


BAD = {
    "cut.jpg": (write_cut, "truncated"),
    "cut.png": (write_cut, "truncated"),
    "empty.jpg": (lambda path: path.write_bytes(b""), "it is empty"),
    "text.jpg": (lambda path: path.write_text("<html>not found</html>"), "it is not a picture"),
    "bomb.png": (write_bomb, "more pixels than Pillow's limit"),
    "nan.tif": (write_nan, "NaN"),
    "program.png": (write_program, "EPS is a program"),
    "missing.jpg": (lambda path: None, "there is no such file"),
    "link.jpg": (lambda path: path.symlink_to("nowhere"), "a link that leads nowhere"),
    "pipe.jpg": (os.mkfifo, "it is not a regular file"),
    "folder": (Path.mkdir, "there is no picture in this folder"),
    "*.webp": (lambda path: None, "nothing matches this pattern"),
    "n" * 300 + ".png": (lambda path: None, "name too long"),
}


@pytest.mark.parametrize("name", BAD, ids=lambda name: name[:12])
def test_a_bad_picture_is_named_and_the_others_go_on(name, go, tiny, tmp_path):
    write, reason = BAD[name]
    write(tmp_path / name)
    coloured(tmp_path / "good.png")
    code, lines, error = go(tiny, name, "good.png")
    assert code == 1
    assert lines == ["good.png\tred 0.576"]
    assert error.startswith(f"{name}: ") and reason in error and error.count("\n") == 1
    code, lines, error = go(tiny, "--json", name, "good.png")
    first, second = map(json.loads, lines)
    assert code == 1
    assert first["file"] == name and reason in first["error"]
    assert second["top"][0]["class"] == "red" and second["top"][0]["probability"] == pytest.approx(0.576, abs=1e-3)


@pytest.mark.parametrize(
    "name", ["a\nb.png", 'it\'s "q".png', "жук-🐞.png", "-dash.png", "tab\t\x1b[31m.png", b"\xff.png"]
)
def test_strange_names(name, go, tiny, tmp_path):
    name = os.fsdecode(name)
    coloured(tmp_path / "x.png").rename(tmp_path / name)
    code, lines, error = go("--explain", "maps", "--", tiny, name)
    assert (code, error, len(lines)) == (0, "", 1)
    assert lines[0] == f"{printable(name)}\tred 0.576"
    assert not set("\n\x1b") & set(lines[0])
    assert len(list((tmp_path / "maps").iterdir())) == 1
    code, lines, error = go("--json", "--", tiny, name)
    assert json.loads(lines[0])["file"] == name


def test_a_terminal_without_unicode(tiny, tmp_path):
    coloured(tmp_path / "жук.png")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, predictor.__file__, tiny, "жук.png"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"\\u0436\\u0443\\u043a.png\tred 0.576\n"


def test_printable_keeps_letters_and_escapes_the_rest():
    assert printable("Käfer 🐞 犬") == "Käfer 🐞 犬"
    assert printable("a\x1b[2J\r\n\x9b\u202e\ud800") == r"a\x1b[2J\r\n\x9b\u202e\ud800"


@pytest.mark.parametrize(("top", "count"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_top(top, count, go, tiny, tmp_path):
    coloured(tmp_path / "a.png", (0, 255, 100))
    code, lines, _ = go(tiny, "a.png", "--top", top, "--json")
    found = json.loads(lines[0])["top"]
    assert code == 0
    assert [entry["class"] for entry in found] == ["green", "blue", "red"][:count]
    shares = [entry["probability"] for entry in found]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("top", [0, -3])
def test_a_top_below_one_is_refused(top, go, tiny):
    code, lines, error = go(tiny, "a.png", f"--top={top}")
    assert (code, lines) == (2, [])
    assert "1 or more" in error


# --------------------------------------------------------------------------------------------------- maps


def test_maps_of_pictures_of_one_name(go, tiny, tmp_path):
    for name in ("one/a.png", "two/a.png", "two/a.jpg", "two/" + "w" * 240 + ".png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        coloured(tmp_path / name)
    code, lines, error = go(tiny, "one", "two", "--explain", "maps", "--json")
    assert (code, error) == (0, "")
    files = [json.loads(line)["map"] for line in lines]
    assert files == ["maps/a.png", "maps/a-2.png", "maps/a-3.png", f"maps/{'w' * 50}.png"]
    assert {str(path.relative_to(tmp_path)) for path in (tmp_path / "maps").iterdir()} == set(files)
    assert all(size_of(tmp_path / file) == (8, 8) for file in files)


def test_a_map_shows_what_gains(tmp_path):
    values = np.zeros((4, 4))
    values[0, 0], values[3, 3] = 2, -1
    shown = np.asarray(overlay(np.full((40, 40, 3), 128, np.uint8), values)).astype(int)
    assert shown[0, 0, 0] - shown[0, 0, 2] > 80  # orange
    assert shown[39, 39, 2] - shown[39, 39, 0] > 30  # blue
    assert (shown[20, 20] == 128).all()


def test_a_picture_is_never_replaced_by_its_map(go, tiny, tmp_path):
    (tmp_path / "photos").mkdir()
    before = coloured(tmp_path / "photos/a.png").read_bytes()
    (tmp_path / "link").symlink_to("photos")
    for folder in ("photos", "link", "link/../photos"):
        code, lines, error = go(tiny, "photos", "--explain", folder)
        assert (code, lines) == (2, [])
        assert "a folder of their own" in error
    assert (tmp_path / "photos/a.png").read_bytes() == before


def test_maps_that_cannot_be_written(go, tiny, tmp_path):
    coloured(tmp_path / "a.png")
    (tmp_path / "file").write_text("x")
    (tmp_path / "maps/a.png").mkdir(parents=True)  # a folder where the map would go
    for folder, reason in (("file", "cannot be made"), ("file/maps", "cannot be made"), ("maps", "cannot be written")):
        code, lines, error = go(tiny, "a.png", "--explain", folder)
        assert (code, lines) == (2, [])
        assert reason in error and error.count("\n") == 1
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["a.png"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root")
def test_a_full_disk(go, tiny, tmp_path):
    coloured(tmp_path / "a.png")
    (tmp_path / "maps").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "none", "maps"], cwd=tmp_path, capture_output=True
    ).returncode:
        pytest.skip("no mount here")
    try:
        (tmp_path / "maps/filler").write_bytes(b"x" * 4096)
        code, lines, error = go(tiny, "a.png", "--explain", "maps")
        assert (code, lines) == (2, [])
        assert "No space left" in error
        assert [path.name for path in (tmp_path / "maps").iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", tmp_path / "maps"], check=True)


# ---------------------------------------------------------------------------------------------- interrupted


def test_ctrl_c_leaves_whole_maps(exported, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(100):
        coloured(tmp_path / "pictures" / f"{number}.png")
    many = ["pictures"] * 200  # so that it is never done before the signal comes
    command = [sys.executable, predictor.__file__, str(exported[1]), *many, "--explain", "maps"]
    started = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a shell's background job ignores it
    )
    started.stdout.readline()
    started.stdout.readline()
    started.send_signal(signal.SIGINT)
    _, error = started.communicate(timeout=60)
    assert started.returncode == 130
    assert error == "predict.py: stopped\n"
    made = list((tmp_path / "maps").iterdir())
    assert 2 <= len(made) < 20_000
    for path in made:
        assert path.suffix == ".png" and path.name[0] != "."
        assert size_of(path) == (24, 32)


def test_a_closed_pipe_is_no_error(tiny, tmp_path):
    for number in range(20):
        coloured(tmp_path / f"{number}.png")
    command = f"{sys.executable} {predictor.__file__} {tiny} . | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_answers_onto_a_full_disk(tiny, tmp_path):
    coloured(tmp_path / "a.png")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, predictor.__file__, tiny, "a.png"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "predict.py: the answers cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, "predict.py: stopped\n"),
        (BrokenPipeError(), 141, ""),
        (
            OSError(28, "No space left on device"),
            2,
            "predict.py: the answers cannot be written: No space left on device\n",
        ),
    ],
)
def test_how_a_command_ends(go, monkeypatch, error, status, text):
    def stopped(*arguments, **options):
        raise error

    turned = []
    monkeypatch.setattr(predictor, "predict", stopped)
    monkeypatch.setattr(os, "dup2", lambda source, target: turned.append(target))
    assert go("any.onnx", "a.png") == (status, [], text)
    assert turned == ([] if status == 130 else [1])  # or Python complains at its end


def test_a_file_that_is_not_there_and_no_pictures(go, tiny):
    assert go("nowhere.onnx", "a.png") == (
        2,
        [],
        "predict.py: there is no file nowhere.onnx\n",
    )
    with pytest.raises(predictor.BadFile, match="name the pictures"):
        predictor.predict(str(tiny), [])


# ------------------------------------------------------------------------------------------- what a file returns


class Fixed:
    """A model file that returns the mean of the upper half, in bytes, and more outputs if asked to."""

    path, batch = "fixed.onnx", None

    def __init__(self, outputs=("logits",), extra=0):
        self.about = {"outputs": list(outputs), "input": {"mean": [0.5, 0.5, 0.5]}}
        self.extra, self.seen = extra, []

    def __call__(self, images):
        self.seen.append(images)
        logits = images[:, :, : images.shape[2] // 2].mean((1, 2, 3), dtype=np.float32)[:, None]
        return [logits] * (1 + self.extra)


def test_outputs_that_do_not_fit_the_description_are_refused():
    images = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(predictor.BadFile, match="has 3 outputs"):
        answer(Fixed(extra=2), images)


def test_a_window_over_bytes_hides_with_the_mean_colour():
    model = Fixed()
    image = np.full((3, 8, 8), 255, np.uint8)
    found = occlusion(model, image, 0)
    assert found[:4].min() > 0
    assert np.allclose(found[6:], 0)
    probes = np.concatenate(model.seen[1:])
    assert probes.dtype == np.uint8
    assert set(np.unique(probes)) == {128, 255}


# ----------------------------------------------------------------------------------------------- elsewhere


def test_the_first_answer_takes_less_than_a_second(tiny, tmp_path):
    """Of the processor's time: other processes do not slow it down."""
    coloured(tmp_path / "a.png")
    times = []
    for _ in range(3):
        start = os.times()
        done = subprocess.run(
            [sys.executable, "-m", "distilens", "predict", tiny, tmp_path / "a.png"], capture_output=True
        )
        stop = os.times()
        times.append(stop.children_user + stop.children_system - start.children_user - start.children_system)
        assert done.returncode == 0, done.stderr
    assert min(times) < 1.0


@pytest.mark.slow
def test_a_fresh_environment_with_onnxruntime_numpy_and_pillow(exported, tmp_path):
    made = subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no virtual environment: {made.stderr}")
    python = tmp_path / "venv/bin/python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", "onnxruntime", "numpy", "pillow"], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip("pip cannot install here")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise()).save(tmp_path / "photos/a.png")
    (tmp_path / "photos/b.jpg").write_text("no picture")
    done = subprocess.run(
        [python, exported[1].parent / "predict.py", exported[1], "photos", "--top", "3", "--json", "--explain", "maps"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "photos/b.jpg: it is not a picture\n"
    found = json.loads(done.stdout.splitlines()[0])
    expected = distilens.load_model(exported[0]).predict(Image.fromarray(noise())).probabilities[0]
    shares = {entry["class"]: entry["probability"] for entry in found["top"]}
    assert [shares[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)
    assert size_of(tmp_path / found["map"]) == (24, 32)
    listed = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True).stdout
    assert "torch" not in listed and "distilens" not in listed
