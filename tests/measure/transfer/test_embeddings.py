"""What a task is: rows for the classes, from a file, from CLIP, or from any model."""

import json
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from distilens.data import load
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.measure.transfer.embeddings import class_embeddings, class_means
from distilens.measure.transfer.levels import choose_images, features_at
from distilens.models import build_model


@pytest.fixture(scope="module")
def data():
    return load("shapes:shots=6")


def test_one_hot_is_the_default_and_says_nothing_of_likeness(data):
    assert torch.equal(class_embeddings("one_hot", data), torch.eye(8, dtype=torch.float64))


def test_files_of_three_kinds(data, tmp_path):
    values = np.arange(24.0).reshape(8, 3)
    np.save(tmp_path / "plain.npy", values)
    assert torch.equal(class_embeddings(f"file:{tmp_path}/plain.npy", data), torch.from_numpy(values))
    order = np.array([3, 1, 0, 2, 7, 6, 5, 4])
    names = np.array(data.classes)[order]
    np.savez(tmp_path / "named.npz", embeddings=values[order], classes=names)
    assert torch.equal(class_embeddings(f"file:{tmp_path}/named.npz", data), torch.from_numpy(values))
    lines = [",".join([name, *map(str, row)]) for name, row in zip(names, values[order], strict=True)]
    (tmp_path / "table.csv").write_text("\n".join([*lines, "other,0,0,0"]))
    assert torch.equal(class_embeddings(f"file:{tmp_path}/table.csv", data), torch.from_numpy(values))


def test_files_that_do_not_fit_are_said(data, tmp_path):
    np.save(tmp_path / "few.npy", np.eye(3))
    with pytest.raises(UserError, match=r"the data have 8 classes; given \[3, 3\]"):
        class_embeddings(f"file:{tmp_path}/few.npy", data)
    np.save(tmp_path / "nan.npy", np.full((8, 2), np.nan))
    with pytest.raises(UserError, match="NaN or infinite"):
        class_embeddings(f"file:{tmp_path}/nan.npy", data)
    (tmp_path / "text.npy").write_text("no numbers")
    with pytest.raises(UserError, match=r"text\.npy cannot be read as embeddings"):
        class_embeddings(f"file:{tmp_path}/text.npy", data)
    with pytest.raises(UserError, match=r"gone\.npy cannot be read as embeddings"):
        class_embeddings(f"file:{tmp_path}/gone.npy", data)
    (tmp_path / "part.csv").write_text("circle,1,2\n")
    with pytest.raises(UserError, match=r"part\.csv has no row for "):
        class_embeddings(f"file:{tmp_path}/part.csv", data)
    np.savez(tmp_path / "other.npz", vectors=np.eye(8))
    with pytest.raises(UserError, match=r"other\.npz cannot be read as embeddings"):
        class_embeddings(f"file:{tmp_path}/other.npz", data)
    with pytest.raises(UserError, match="unknown embedding 'onehot'"):
        class_embeddings("onehot", data)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP of random weights, in the format of the hub."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    common = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 6,
    }
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**common, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**common, "image_size": 32, "patch_size": 16},
        projection_dim=6,
    )
    transformers.CLIPModel(config).save_pretrained(folder / "net")
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder / "net")
    return folder / "net"


def test_clip_embeds_names_and_images_of_classes(data, clip):
    from transformers import CLIPModel, CLIPProcessor

    names = class_embeddings(f"hf:{clip}", data)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    asked = processor(text=[f"a photo of a {name}" for name in data.classes], return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model.get_text_features(**asked)
    found = found if isinstance(found, torch.Tensor) else found.pooler_output
    assert torch.allclose(names, normalize(found, dim=1).double(), atol=1e-6)
    other = class_embeddings(f"hf:{clip},prompt=[the shape of a {{}}]", data)
    assert not torch.allclose(names, other, atol=1e-3)
    images = class_embeddings(f"hf:{clip},of=images,images=24", data)
    assert images.shape == (8, 6)
    assert torch.allclose(images.norm(dim=1), torch.ones(8, dtype=torch.float64))
    with pytest.raises(UserError, match="in place of the class's name; given 'a photo'"):
        class_embeddings(f"hf:{clip},prompt=[a photo]", data)
    with pytest.raises(UserError, match="hf:nobody/nothing could not be loaded"):
        class_embeddings("hf:nobody/nothing", data)


def test_prototypes_are_mean_features_of_training_images(data, tmp_path):
    from distilens.models.saved import save_model

    torch.manual_seed(0)
    model = build_model("resnet8", data.classes, data.size)
    save_model(model, tmp_path / "student")
    (tmp_path / "recipe.toml").write_text('data = "shapes:shots=6"\n[student]\nmodel = "resnet8"\n')
    found = class_embeddings(f"prototypes:model=[run:{tmp_path},part=student],images=32", data)
    some = choose_images(data.train, 32)
    rows = features_at(model.eval(), Batches(some, 500), ["last"])["last"]
    labels = torch.from_numpy(some.labels)
    expected = torch.stack([rows[labels == number].double().mean(0) for number in range(8)])
    assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(UserError, match="no training image of class 1 to compute"):
        class_means(torch.ones(2, 3), torch.tensor([0, 2]), 3)


def test_without_transformers_the_extra_is_named(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"need transformers: pip install 'distilens\[hf\]'"):
        class_embeddings("hf:openai/clip-vit-base-patch32", data)


def test_a_model_that_does_not_embed_text_is_refused(data, monkeypatch):
    transformers = pytest.importorskip("transformers")
    for kind in (transformers.AutoModel, transformers.AutoProcessor):
        monkeypatch.setattr(kind, "from_pretrained", lambda name: torch.nn.Identity())
    with pytest.raises(UserError, match="hf:some/vit does not embed text: name a model such as openai/clip"):
        class_embeddings("hf:some/vit", data)
