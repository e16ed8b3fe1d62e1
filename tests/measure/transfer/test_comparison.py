"""Comparing models: all of it in one call, a run's with what it kept, and what is said of it."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

import distilens
from brightness import pictures
from distilens.data import from_arrays, load
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.measure.transfer.comparison import compare, models_named
from distilens.measure.transfer.levels import balanced, features_at
from distilens.measure.transfer.settings import compare_settings, settings_of
from distilens.measure.transfer.similarity import fss, rs
from distilens.measure.transfer.steps import Comparing
from distilens.models import build_model
from distilens.report import transfer_words
from distilens.runs.history import KeptModels
from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run, load_run
from distilens.runs.stages import compare_stage, run_all, train_stage

FAST = {"samples": 40, "reference": 16, "images": 3, "measured": 4, "sets": 1, "taps": ["layer2", "last", "logits"]}


@pytest.fixture(scope="module")
def world():
    data = load("shapes:shots=6,test=120,size=16")
    networks = {}
    for seed, (name, kind) in enumerate((("teacher", "resnet14"), ("base", "resnet8"), ("student", "resnet8"))):
        torch.manual_seed(seed)
        networks[name] = build_model(kind, data.classes, data.size).eval()
    return data, networks


@pytest.fixture(scope="module")
def found(world):
    data, networks = world
    return compare(networks, data, FAST)


def test_scores_are_those_of_the_models_features(world, found):
    data, networks = world
    scores = found.scores
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert (scores["n"], scores["split"]) == (40, "test")
    assert [level["name"] for level in scores["levels"]] == ["layer2", "layer3", "logits"]
    positions = balanced(data.test.labels, 40)
    images, _ = data.test.pixels(positions)
    labels = torch.from_numpy(data.test.labels[positions])
    batch = [distilens.Batch(images, labels, labels)]
    rows = {name: features_at(model, batch, ["layer3", "logits"]) for name, model in networks.items()}
    last, logits = scores["levels"][1:]
    assert last["fss"][1]["value"] == pytest.approx(fss(rows["teacher"]["layer3"], rows["student"]["layer3"]).value)
    assert logits["rs"][2]["value"] == pytest.approx(rs(rows["student"]["logits"], labels).value)
    distilled = next(one for one in last["given"] if one["called"] == "distilled")
    expected = rs(rows["student"]["layer3"], labels, rows["base"]["layer3"]).value
    assert distilled["value"] == pytest.approx(expected, abs=1e-6)


def test_maps_are_of_all_grids_and_the_last_are_put_to_the_test(world, found):
    data, _ = world
    assert set(found.maps) == {"layer2", "layer3"}
    arrays = found.maps["layer3"]
    assert arrays["maps_distilled"].shape == (3, 4, 4)
    assert [str(role) for role in arrays["roles"]] == ["distilled", "residual", "missed"]
    assert arrays["images"].shape == (3, 16, 16, 3)
    assert {"index", "labels", "masks", "prediction_missed", "confidence_residual"} <= set(arrays)
    reference = found.scores["maps"]["reference"]
    assert reference["n"] == len(reference["index"]) == 16
    assert set(reference["index"]) <= set(data.test.index.tolist())
    levels = found.scores["maps"]["levels"]
    assert set(levels["layer2"]["distilled"]) == {"of", "given", "stability"}
    assert {"insertion", "above_floor", "energy_in_mask", "energy_above_residual", "shuffled_labels"} <= set(
        levels["layer3"]["distilled"]
    )


def test_a_comparison_is_repeated_exactly_and_leaves_no_trace(world, found):
    data, networks = world
    before = {key: value.clone() for key, value in networks["student"].state_dict().items()}
    state = torch.get_rng_state()
    again = compare(networks, data, FAST)
    assert again.scores == found.scores
    assert all(np.array_equal(again.maps["layer3"][key], value) for key, value in found.maps["layer3"].items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in networks["student"].state_dict().items())


def test_identical_models_have_empty_maps_and_nothing_left(world):
    data, networks = world
    same = {"student": networks["student"], "base": networks["student"]}
    found = compare(same, data, FAST)
    assert not found.maps["layer3"]["maps_distilled"].any()
    assert {one["value"] for level in found.scores["levels"] for one in level["given"]} == {0}
    assert "which may be chance" in found.findings()[0]
    assert found.scores["maps"]["levels"]["layer3"]["distilled"]["empty"] == 4
    assert transfer_words.reliability(found.scores).startswith("All maps are empty")


def test_any_architectures_under_any_names(world, tmp_path):
    data, networks = world
    torch.manual_seed(0)
    other = build_model("mobilenetv2:width=0.25", data.classes, data.size).eval()
    found = compare({"a": networks["student"], "b": other}, data, {**FAST, "taps": ["last"], "features": "flat"})
    assert list(found.maps["last"])[-2:] == ["prediction_b without a", "confidence_b without a"]
    assert {one["called"] for one in found.scores["levels"][0]["given"]} == {"a without b", "b without a"}
    best = max(found.scores["levels"][0]["rs"], key=lambda one: one["value"])
    sure = (
        "contain most about the task"
        if best["low"] > 0
        else "no model's features are significantly related to the task"
    )
    assert sure in found.findings()[0]
    page = found.save(tmp_path / "out").read_text()
    assert "a without b" in page


def test_the_table_is_the_scores(found):
    header, rows = found.table()
    assert header == ["score", "layer2", "layer3", "logits"]
    titles = [row[0] for row in rows]
    assert titles[:6] == ["RS of teacher", "RS of base", "RS of student", "RS, distilled", "RS, residual", "RS, missed"]
    assert titles[-3:] == ["RS: student − base", "RS: distilled − residual", "FSS to teacher: student − base"]
    one = found.scores["levels"][1]["rs"][0]
    assert rows[0][2] == f"{one['value']:.3f} ±{(one['high'] - one['low']) / 2:.3f}".replace("-", "−")


def test_findings_say_what_is_sure_and_what_is_not(found):
    scores = json.loads(json.dumps(found.scores))
    level = scores["levels"][1]
    level["apart"][0] |= {"value": 0.2, "low": 0.1, "high": 0.3}
    level["apart"][1] |= {"value": -0.1, "low": -0.3, "high": 0.1}
    said = transfer_words.findings(scores)
    assert "the student's features contain more about the task than the base's" in said[0]
    assert "+0.200 [+0.100 to +0.300]." in said[0]
    assert "contains less about the task" in said[1]
    assert said[1].endswith("which may be chance.")
    assert any("40 images are few" in line for line in said)


def test_it_is_saved_whole_and_shown(found, tmp_path):
    page = found.save(tmp_path / "out")
    assert page == tmp_path / "out" / "index.html"
    assert json.loads((tmp_path / "out" / "transfer.json").read_text()) == found.scores
    with np.load(tmp_path / "out" / "transfer" / "layer3.npz") as stored:
        assert np.array_equal(stored["maps_distilled"], found.maps["layer3"]["maps_distilled"])
    text = page.read_text()
    assert text.count('<svg class="chart"') == 3
    assert not re.search(r"https?://", text)
    (tmp_path / "out" / "transfer" / "layer1.npz").write_bytes(b"old")
    found.save(tmp_path / "out")
    assert not (tmp_path / "out" / "transfer" / "layer1.npz").exists()
    notebook = found._repr_html_()
    assert "data:image" in notebook
    assert "Relevance" in notebook
    assert "teacher, base, student; 3 levels, n = 40" in repr(found)


def test_explained_images_embeddings_and_the_biased_statistic(world, tmp_path):
    data, networks = world
    two = {name: networks[name] for name in ("base", "student")}
    np.save(tmp_path / "classes.npy", np.arange(8.0)[:, None])
    plain = compare(two, data, {**FAST, "taps": ["last"]})
    other = compare(
        two, data, {**FAST, "taps": ["last"], "explained": True, "embeddings": f"file:{tmp_path}/classes.npy"}
    )
    assert other.scores["levels"][0]["rs"][0]["value"] != plain.scores["levels"][0]["rs"][0]["value"]
    assert any("explained images" in text for _, text in transfer_words.facts(other.scores))
    biased = compare(two, data, {**FAST, "taps": ["last"], "biased": True})
    assert biased.scores["levels"][0]["given"] == []
    assert len(biased.table()[1]) == 4
    biased.save(tmp_path / "out")
    assert "as in the paper" in (tmp_path / "out" / "index.html").read_text()


def test_what_cannot_be_compared_is_said(world):
    data, networks = world
    with pytest.raises(UserError, match="a comparison needs two or more models; given student"):
        compare({"student": networks["student"]}, data)
    with pytest.raises(UserError, match=r"unknown key 'compare.sample'.*samples"):
        compare(networks, data, {"sample": 3})
    with pytest.raises(UserError, match="8 images of 8 classes: take 16 or more"):
        compare(networks, data, {**FAST, "samples": 8})
    with pytest.raises(UserError, match="there are no images to explain: name a data set"):
        compare(networks)
    with pytest.raises(UserError, match="unknown embedding 'clip'"):
        compare(networks, data, {"embeddings": "clip"})
    with pytest.raises(UserError, match=r"compare is about one class per image: .* the task of .* is brightness$"):
        compare(networks, pictures())
    images, labels = np.zeros((40, 8, 8, 3), np.uint8), np.zeros(40, int)
    with pytest.raises(UserError, match="there is only one class, 'only'"):
        from_arrays(images, labels, classes=("only",), test=(images, labels))
    with torch.no_grad():
        broken = build_model("resnet8", data.classes, data.size)
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r"the features of samples .* are NaN or infinite"):
        compare({"a": networks["student"], "b": broken}, data, FAST)


def test_too_few_images_are_said(world):
    data, networks = world
    one_each = [int(np.flatnonzero(data.test.labels == label)[0]) for label in range(3)]
    few = replace(data, test=replace(data.test, index=data.test.index[one_each]))
    with pytest.raises(UserError, match="has 3 images for a comparison, which needs at least 4"):
        compare(networks, few, FAST)


def test_settings_and_models_by_notation():
    assert settings_of(["samples=30", "compare.taps=[layer1,last]", "features=flat"]) == {
        "samples": 30,
        "taps": "[layer1,last]",
        "features": "flat",
    }
    part = compare_settings(settings_of(["taps=[layer1,last]", "explained=true"]))
    assert (part.taps, part.explained) == (("layer1", "last"), True)
    with pytest.raises(UserError, match="--set takes key=value; given 'samples'"):
        settings_of(["samples"])
    with pytest.raises(UserError, match=r"compare.features: .*given 'mean'"):
        compare_settings({"features": "mean"})
    named = models_named(["a=timm:resnet18,pretrained=true", "b=runs/demo"])
    assert named == {"a": "timm:resnet18,pretrained=true", "b": "runs/demo"}
    for wrong in ("timm:resnet18,pretrained=true", "resnet8", "a=", "=resnet8"):
        with pytest.raises(UserError, match="--models takes name=model"):
            models_named([wrong])
    with pytest.raises(UserError, match="two models are called 'a'"):
        models_named(["a=x", "a=y"])


def test_progress_is_said_with_an_estimate(world):
    data, networks = world
    console = Console(record=True, width=100)
    with console.capture() as said:
        compare({name: networks[name] for name in ("base", "student")}, data, FAST, console=console)
    lines = said.get().splitlines()
    assert lines[0].startswith("compare: features of base")
    assert all(re.search(r"\d:\d\d:\d\d left$", line) for line in lines)
    assert [line.split("  ")[0] for line in lines][-2:] == ["compare: maps at layer2", "compare: maps at layer3"]


RUN = {
    "name": "kept",
    "data": "shapes:train=64,test=64,size=16",
    "teacher": {"model": "resnet8", "train": {"epochs": 1}},
    "student": {"model": "resnet8"},
    "train": {"epochs": 4, "batch_size": 32, "keep_every": 2, "precision": "float32"},
    "explain": {"explainers": ["gradcam"], "images": 2, "measured": 4},
    "compare": {"samples": 32, "reference": 16, "images": 2, "measured": 4, "sets": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = Run(tmp_path_factory.mktemp("runs") / "kept", make_recipe(RUN))
    run_all(made)
    return made


def test_a_run_compares_its_models_where_its_recipe_says_so(run):
    scores = json.loads((run.folder / "transfer.json").read_text())
    assert list(scores["models"]) == ["teacher", "base", "student"]
    page = (run.folder / "report.html").read_text()
    assert "What was distilled" in page
    assert "Similarity to the teacher over training (FSS)" in page
    said = Console(record=True, width=120)
    with said.capture() as told:
        again = load_run(run.folder, console=said)
        run_all(again)
    assert "compare: already done" in told.get()
    (run.folder / "transfer" / "layer2.npz").unlink()
    compare_stage(run)
    assert (run.folder / "transfer" / "layer2.npz").is_file()


@pytest.mark.slow
def test_other_embeddings_in_the_same_file_are_compared_anew(run, tmp_path):
    np.save(tmp_path / "task.npy", np.eye(8))
    how, found = compare_settings({**RUN["compare"], "embeddings": f"file:{tmp_path}/task.npy"}), []
    for rows in (np.eye(8), np.arange(8.0)[:, None]):
        np.save(tmp_path / "task.npy", rows)
        compare_stage(run, how)
        found.append(json.loads((run.folder / "transfer.json").read_text())["levels"][0]["rs"][0]["value"])
    assert found[0] != found[1]
    compare_stage(run)


def test_what_a_run_kept_is_how_it_grew(run):
    kept = KeptModels(run, "student")
    assert kept.epochs == [2, 4]
    assert len(KeptModels(run, "teacher")) == 0
    states = {epoch: {key: value.clone() for key, value in model.bare_state().items()} for epoch, model in kept}
    final = run.model("student").bare_state()
    scored = {row["epoch"] + 1: row["validation"]["accuracy"] for row in run.metrics.rows()
              if row["stage"] == "student" and "validation" in row}  # fmt: skip
    best = max(scored, key=lambda epoch: scored[epoch])
    shipped = [epoch for epoch, state in states.items() if all(torch.equal(state[key], final[key]) for key in final)]
    assert shipped == [epoch for epoch in kept.epochs if epoch == best]
    assert any(not torch.equal(states[2][key], states[4][key]) for key in final)
    grown = json.loads((run.folder / "transfer.json").read_text())["growth"]
    assert [one["epoch"] for one in grown["models"]["student"]] == [2, 4]
    data = run.data
    model = run.model("student")
    model.load_bare_state(states[2])
    positions = balanced(data.test.labels, 32)
    images, _ = data.test.pixels(positions)
    labels = torch.from_numpy(data.test.labels[positions])
    batch = [distilens.Batch(images, labels, labels)]
    ours, theirs = (features_at(one, batch, ["last"])["last"] for one in (model, run.model("teacher")))
    assert grown["models"]["student"][0]["rs"]["value"] == pytest.approx(rs(ours, labels).value, abs=1e-6)
    assert grown["models"]["student"][0]["fss"]["value"] == pytest.approx(fss(theirs, ours).value, abs=1e-6)


@pytest.mark.parametrize("methods", [["ce", "powerprop:prune=0", "opdf"], ["simkd", "powerprop:prune=0", "opdf"]])
def test_what_was_written_in_another_way_grew_too(methods, tmp_path):
    """Checkpoints of opdf and powerprop hold tensors and powers; the kept models compute with them as they did."""
    student = {"model": "resnet8", "methods": methods}
    teacher = RUN["teacher"] if "simkd" in methods else None
    changes = {"student": student, "teacher": teacher, "compare": None, "train": {**RUN["train"], "select": "last"}}
    made = Run(tmp_path / "written", make_recipe({**RUN, **changes}))
    train_stage(made)
    images = next(Batches(made.data.test, 8).epoch(0)).view
    kept = {epoch: model.logits(images) for epoch, model in KeptModels(made, "student")}
    assert list(kept) == [2, 4]
    final = made.model("student").eval().logits(images)
    assert any(torch.allclose(logits, final, atol=1e-4) for logits in kept.values())
    assert not torch.allclose(kept[2], kept[4], atol=1e-3)


def test_a_pruned_layer_does_not_stop_the_comparison(tmp_path):
    """Of a small network nearly all weights may be left out, a whole layer among them."""
    student = {"model": "resnet8", "methods": ["ce", "powerprop:prune=0.97"]}
    made = Run(tmp_path / "pruned", make_recipe({**RUN, "student": student, "teacher": None, "compare": None}))
    train_stage(made)
    assert not made.model("student").network.fc.weight.any()
    assert [epoch for epoch, _ in KeptModels(made, "student")] == [2, 4]


def test_mean_weights_are_what_is_kept(tmp_path):
    recipe = make_recipe(
        {**RUN, "train": {**RUN["train"], "ema": 0.5, "select": "last"}, "teacher": None}
        | {"student": {"model": "resnet8", "methods": ["ce"]}}
    )
    made = Run(tmp_path / "mean", recipe)
    train_stage(made)
    *_, (epoch, model) = KeptModels(made, "student")
    final = made.model("student").bare_state()
    assert epoch == 4
    assert all(torch.equal(value, final[key]) for key, value in model.bare_state().items())


def test_a_released_part_is_left_out(run, tmp_path):
    """States with parts that the model has no longer cannot be given back."""
    import shutil

    folder = tmp_path / "released"
    shutil.copytree(run.folder, folder)
    path = folder / "student" / "checkpoints" / "epoch-0002.pt"
    state = torch.load(path, weights_only=True)
    state["objective"]["student.parts.kd_layer.weight"] = torch.ones(1)
    torch.save(state, path)
    assert [epoch for epoch, _ in KeptModels(load_run(folder), "student")] == [4]


def test_no_grid_is_no_map(world, tmp_path):
    data, networks = world
    found = compare(networks, data, {**FAST, "taps": ["logits"]})
    assert (found.maps, found.scores["maps"]) == ({}, {})
    text = found.save(tmp_path).read_text()
    assert "Where it is" not in text
    assert "At logits" in found.findings()[0]


def test_the_plan_knows_all_of_the_work(world):
    data, networks = world
    from distilens.foundation.progress import Work

    with Work(None, "compare") as work:
        Comparing(networks, data, compare_settings(FAST), work).all({})
        assert work.done == pytest.approx(work.total, rel=0.2)
