"""The field's methods: their published formulas written out in NumPy, what they size by themselves, and what they refuse."""

import copy
import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from distilens.core import Answer, Batch, Model, Objective, Output
from distilens.data import load
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.methods import METHODS, build_methods
from distilens.methods.bank import Bank
from distilens.models import build_model
from distilens.models.saved import load_model, save_model
from distilens.teachers import LiveTeacher, MeanTeacher, PermutedTeacher, StoredTeacher

SIZE = (16, 16)
FEATURED = ("fitnet", "vid", "nst", "reviewkd", "rtk", "crd", "sp", "rkd", "pkt")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load("shapes:train=80,test=40,size=16", tmp_path_factory.mktemp("field"))


@pytest.fixture(scope="module")
def batch(data) -> Batch:
    return next(Batches(data.train, 6).epoch(0))


def model(name: str, data, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return build_model(name, data.classes, data.size)


@pytest.fixture(scope="module")
def teacher(data) -> LiveTeacher:
    return LiveTeacher(model("wrn:depth=10,width=2", data, seed=1))


def prepared(part: str, student: Model, batch: Batch, teacher) -> tuple[Objective, Output, Answer]:
    """An objective, the output of its student in eval mode, and the teacher's answer."""
    objective = Objective(student.train(), build_methods([part]))
    answer = teacher(batch, objective.needs)
    torch.manual_seed(2)
    objective.prepare(batch, answer)
    with torch.no_grad():
        output = objective.student.eval()(batch.view)
    return objective, output, answer


def method_of(objective: Objective):
    return next(iter(objective.terms().values()))


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def soft(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def halved(feature: np.ndarray) -> np.ndarray:
    b, c, h, w = feature.shape
    return feature.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


# --- formulas


def test_fitnet_is_a_regression(data, batch, teacher):
    """At a finer grid of the teacher, whose features are averaged to the student's."""
    objective, output, answer = prepared("fitnet:tap=last,teacher_tap=last-1", model("resnet8", data), batch, teacher)
    method = method_of(objective)
    ours, theirs = numbers(output.features["last"]), halved(numbers(answer.features["last-1"]))
    weight, bias = numbers(method.regressor.weight)[:, :, 0, 0], numbers(method.regressor.bias)
    expected = ((np.einsum("bchw,tc->bthw", ours, weight) + bias[:, None, None] - theirs) ** 2).mean((1, 2, 3))
    assert np.allclose(numbers(method.loss(batch, output, answer)), expected, rtol=1e-4)


def test_vid_is_a_likelihood(data, batch, teacher):
    objective, output, answer = prepared("vid:taps=[last-1,last]", model("resnet8", data), batch, teacher)
    method = method_of(objective)
    assert np.allclose(numbers(torch.nn.functional.softplus(method.variances[0])) + 1e-5, 5.0)
    with torch.no_grad():
        method.variances[1].uniform_(-1, 3)
    expected = np.zeros(len(batch))
    for tap, predict, raw in zip(("last-1", "last"), method.predictors, method.variances, strict=True):
        mean, variance = numbers(predict(output.features[tap])), np.log1p(np.exp(numbers(raw))) + 1e-5
        likely = stats.norm.logpdf(numbers(answer.features[tap]), mean, np.sqrt(variance)[:, None, None])
        expected -= (likely + math.log(2 * math.pi) / 2).mean((1, 2, 3))
    assert np.allclose(numbers(method.loss(batch, output, answer)), expected, rtol=1e-4)


def test_nst_is_the_discrepancy_of_its_kernel(data, batch, teacher):
    objective, output, answer = prepared("nst", model("resnet8", data), batch, teacher)
    expected = []
    for s, t in zip(numbers(output.features["last"]), numbers(answer.features["last"]), strict=True):
        s, t = (maps.reshape(len(maps), -1) for maps in (s, t))
        s, t = (maps / np.maximum(np.linalg.norm(maps, axis=1, keepdims=True), 1e-6) for maps in (s, t))
        k = lambda x, y: np.mean([(a @ b) ** 2 for a in x for b in y])  # noqa: E731
        expected.append(k(s, s) + k(t, t) - 2 * k(s, t))
    assert np.allclose(numbers(method_of(objective).loss(batch, output, answer)), expected, rtol=1e-3)


def test_reviewkd_compares_cells_of_halving_weight(data, batch, teacher):
    objective, output, answer = prepared("reviewkd:taps=[last]", model("resnet8", data), batch, teacher)
    method = method_of(objective).eval()
    made = numbers(method.fusions[0](output.features["last"], None)[0])
    theirs = numbers(answer.features["last"])  # 4 x 4
    cells = [(made, theirs), (halved(made), halved(theirs)), (made.mean((2, 3)), theirs.mean((2, 3)))]
    apart = [((a - b) ** 2).reshape(len(a), -1).mean(1) for a, b in cells]
    expected = (apart[0] + apart[1] / 2 + apart[2] / 4) / 1.75
    assert np.allclose(numbers(method.loss(batch, output, answer)), expected, rtol=1e-4)


def test_reviewkd_fuses_what_comes_from_below(data, batch, teacher):
    objective, output, answer = prepared("reviewkd:taps=[last-1,last]", model("resnet8", data), batch, teacher)
    method = method_of(objective).eval()
    fine, deep = method.fusions
    _, below = deep(output.features["last"], None)
    own = numbers(fine.enter(output.features["last-1"]))
    below = numbers(below).repeat(2, 2).repeat(2, 3)
    conv = fine.attend[0]
    z = np.einsum("bchw,kc->bkhw", np.concatenate([own, below], 1), numbers(conv.weight)[:, :, 0, 0])
    z = 1 / (1 + np.exp(-z - numbers(conv.bias)[:, None, None]))
    fused = own * z[:, :1] + below * z[:, 1:]
    _, found = fine(output.features["last-1"], deep(output.features["last"], None)[1])
    assert np.allclose(numbers(found), fused, atol=1e-5)
    whole = method.loss(batch, output, answer)

    def left(fusion, values):  # 3 x 3, by hand; a fresh norm only divides
        weight, (h, w) = numbers(fusion.leave[0].weight), values.shape[2:]
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
        around = np.stack([padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)], 2)
        return np.einsum("bcnhw,ocn->bohw", around, weight.reshape(*weight.shape[:2], 9)) / np.sqrt(1 + 1e-5)

    def distance(made, theirs):  # grids of 8 or 4, then 4, 2 and 1 cells along a side
        apart, weights = [], []
        while True:
            apart.append(((made - theirs) ** 2).mean((1, 2, 3)))
            weights.append(0.5 ** len(weights))
            if made.shape[-1] == 1:
                return np.average(apart, axis=0, weights=weights)
            made, theirs = halved(made), halved(theirs)

    deepest = numbers(deep.enter(output.features["last"]))
    expected = distance(left(fine, fused), numbers(answer.features["last-1"]))
    expected += distance(left(deep, deepest), numbers(answer.features["last"]))
    assert np.allclose(numbers(whole), expected, rtol=1e-4)
    (output.features["last"]).zero_()  # the fine level knows the deep one: it changes too
    assert not torch.equal(method.loss(batch, output, answer), whole)


def test_rtk_weighs_levels_by_queries_and_keys(data, batch, teacher):
    part = "rtk:taps=[last-2,last-1,last],keys=2,width=5"
    objective, output, answer = prepared(part, model("resnet8", data), batch, teacher)
    method = method_of(objective)
    taps = ("last-2", "last-1", "last")
    ours, theirs = ([numbers(found[tap]) for tap in taps] for found in (output.features, answer.features))

    def embedded(layers, features):
        return [f.mean((2, 3)) @ numbers(m.weight).T + numbers(m.bias) for m, f in zip(layers, features, strict=True)]

    queries, keys = embedded(method.query, ours), embedded(method.key, theirs)
    expected = np.zeros(len(batch))
    for i in range(len(batch)):
        for q, own in zip(queries, ours, strict=True):
            fit = np.array([q[i] @ k[i] for k in keys]) / math.sqrt(5)
            best = np.argsort(-fit)[:2]
            shares = np.exp(fit[best]) / np.exp(fit[best]).sum()
            for share, t in zip(shares, best, strict=True):
                a, b = (own[i] ** 2).mean(0)[None, None], (theirs[t][i] ** 2).mean(0)[None, None]
                while a.shape[-1] > b.shape[-1]:
                    a = halved(a)
                while b.shape[-1] > a.shape[-1]:
                    b = halved(b)
                a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
                expected[i] += share * ((a - b) ** 2).mean()
    assert np.allclose(numbers(method.loss(batch, output, answer)), expected, rtol=1e-3)


def test_mlkd_is_its_three_levels():
    ours, theirs = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    (method,) = build_methods(["mlkd:temperatures=[2,5],instance=3,images=2,classes=7"]).values()
    expected = np.zeros(5)
    for t in (2, 5):
        p, q = soft(numbers(ours) / t), soft(numbers(theirs) / t)
        expected += 3 * t**2 * (q * np.log(q / p)).sum(1)
        expected += 2 * ((p @ p.T - q @ q.T) ** 2).sum(1) + 7 * ((p.T @ p - q.T @ q) ** 2).sum() / 4
    found = method.loss(
        Batch(torch.rand(5, 3, 4, 4), torch.arange(5) % 4, torch.arange(5)), Output(ours), Answer(theirs)
    )
    assert np.allclose(numbers(found), expected, rtol=1e-4)


def test_r2kd_is_pearsons_and_spearmans_correlation():
    """With hard ranks it is scipy's; the softened ones come close."""
    ours, theirs, pruned = (torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1, 2))
    given = Batch(torch.rand(5, 3, 4, 4), torch.arange(5), torch.arange(5))
    answer = Answer(theirs, pruned={"0.3": pruned})

    def expected(z):
        p, q = soft(numbers(ours) / 2), soft(numbers(z) / 2)
        values = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
        ranks = np.array([1 - stats.spearmanr(a, b)[0] for a, b in zip(numbers(ours), numbers(z), strict=True)])
        return values + 3 * ranks

    (hard,) = build_methods(["r2kd:temperature=2,rank=3,softness=1e-5,pruned=0.5"]).values()
    found = numbers(hard.loss(given, Output(ours), answer))
    assert np.allclose(found, expected(theirs) + 0.5 * expected(pruned), atol=1e-4)
    (soft_,) = build_methods(["r2kd:temperature=2,rank=3,pruned=0.5"]).values()
    assert np.allclose(numbers(soft_.loss(given, Output(ours), answer)), found, atol=1.0)
    from distilens.losses.correlations import soft_ranks

    z = numbers(ours) / numbers(ours).std(1, keepdims=True)
    smooth = (1 / (1 + np.exp(-(z[:, :, None] - z[:, None]) / 0.1))).sum(2)
    assert np.allclose(numbers(soft_ranks(ours, 0.1)), smooth, rtol=1e-5)
    assert build_methods(["r2kd:pruned=0"])["r2kd"].needs == ("logits",)


def test_crd_is_its_contrast_and_remembers(data, batch, teacher):
    """All negatives, over two steps: Z stays, and what is remembered moves half-way."""
    objective, output, answer = prepared("crd:width=4", model("resnet8", data), batch, teacher)
    method = method_of(objective)
    ours, theirs = (numbers(each["last"]).mean((2, 3)) for each in (output.features, answer.features))

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    said = [
        unit(feature @ numbers(layer.weight).T + numbers(layer.bias))
        for layer, feature in zip(method.embed, (ours, theirs), strict=True)
    ]
    memory = [numbers(rows) for rows in method.bank.rows]
    labels, n, normal = data.train.labels, len(data.train), [None, None]
    for _ in range(2):
        places = [int(np.flatnonzero(data.train.index == i)[0]) for i in batch.index.tolist()]
        expected = np.zeros(len(batch))
        for way in range(2):
            h = np.exp(said[way] @ memory[1 - way].T / 0.07)
            negative = labels[places][:, None] != labels[None]
            near = h[np.arange(len(batch)), places]
            if normal[way] is None:
                normal[way] = n * (near.sum() + h[negative].sum()) / (len(near) + negative.sum())
            for i in range(len(batch)):
                noise = negative[i].sum() / n
                expected[i] -= np.log(near[i] / normal[way] / (near[i] / normal[way] + noise))
                expected[i] -= np.log(noise / (h[i, negative[i]] / normal[way] + noise)).sum()
        assert np.allclose(numbers(method.loss(batch, output, answer)), expected, rtol=1e-3)
        for way in range(2):
            memory[way][places] = unit(memory[way][places] / 2 + said[way] / 2)
        assert np.allclose(numbers(method.bank.rows), memory, atol=1e-5)


def test_crds_negatives_are_drawn(data, batch, teacher):
    """They are drawn anew in each step, and images without a label have all others as negatives."""
    student = model("resnet8", data)
    student.requires_grad_(False)
    losses = []
    for number in range(30):
        objective, output, answer = prepared("crd:negatives=10", student, batch, teacher)
        method = method_of(objective)
        losses.append(method.loss(batch.replaced(step=number), output, answer).mean().item())
    assert len(set(losses)) > 20
    for labels, negatives in ((data.train.labels, 0), (np.full(len(data.train), -1), 1)):
        objective, output, answer = prepared("crd", student, batch, teacher)
        method = method_of(objective)
        method.bank.labels.copy_(torch.from_numpy(labels))
        seen = []
        method.contrast = lambda *given, seen=seen: seen.append(given[-1]) or torch.zeros(len(batch))
        method.loss(batch, output, answer)
        each = seen[0].sum(1)
        assert (each == len(data.train) - 1).all() == bool(negatives)  # all but itself


def test_osakd_learns_from_the_nearest(data, teacher):
    student = model("resnet8", data)
    batches = list(Batches(data.train, 10))
    objective, _, answer = prepared("osakd:neighbours=3", student, batches[0], teacher)
    method = method_of(objective)
    with torch.no_grad():
        outputs = [objective.student(each.view) for each in batches]
    first = method.loss(batches[0], outputs[0], answer)
    assert (first == 0).all()  # nobody has been seen
    for each, output in zip(batches[1:], outputs[1:], strict=True):
        method.loss(each, output, answer)
    found = method.loss(batches[0], outputs[0], answer)
    features = np.concatenate([numbers(output.features["last"]).mean((2, 3)) for output in outputs])
    labels = np.concatenate([each.labels.numpy() for each in batches])
    logits = torch.log_softmax(outputs[0].logits, 1)
    for i in range(10):
        others = np.arange(len(labels)) != i
        nearest = KNeighborsClassifier(3).fit(features[others], labels[others])
        q = np.zeros(len(data.classes))
        q[nearest.classes_] = nearest.predict_proba(features[i : i + 1])[0]
        expected = sum(share * (math.log(share) - float(logits[i, c])) for c, share in enumerate(q) if share)
        assert float(found[i]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "part", ["sp", "rkd", "pkt", "crd", "rtk:taps=[last]", "nst", "osakd", "mlkd", "r2kd", "dkd", "dist"]
)
def test_losses_are_computed_in_full_whatever_the_precision_of_the_step(part, data, batch, teacher):
    objective, output, answer = prepared(part, model("resnet8", data), batch, teacher)
    method = method_of(objective)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    exact = method.loss(batch, output, answer)
    method.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        found = method.loss(batch, output, answer)
    assert found.dtype == torch.float32
    assert torch.allclose(found, exact, rtol=1e-5, atol=1e-7)


# --- parts of the student


def test_simkd_makes_the_teachers_features_and_answers_with_its_classifier(data, batch, teacher, tmp_path):
    objective, output, answer = prepared("simkd", model("resnet8", data), batch, teacher)
    student = objective.student
    ours, theirs = numbers(output.features["projector"]), numbers(answer.features["last"])
    assert ours.shape == theirs.shape
    expected = ((ours - theirs) ** 2).mean((1, 2, 3))
    assert np.allclose(numbers(method_of(objective).loss(batch, output, answer)), expected, rtol=1e-4)
    head = teacher.part("head")
    assert np.allclose(
        numbers(output.logits), ours.mean((2, 3)) @ numbers(head.weight).T + numbers(head.bias), atol=1e-4
    )
    trained = {id(parameter) for parameter in objective.parameters() if parameter.requires_grad}
    assert not trained & {id(parameter) for parameter in student.network.fc.parameters()}
    assert trained >= {id(parameter) for parameter in student.parts["projector"].parameters()}
    save_model(objective.finish().eval(), tmp_path)
    assert torch.equal(load_model(tmp_path).eval().logits(batch.images), student.logits(batch.images))


def test_simkd_gives_a_classifier_without_a_bias_one_of_zeros(data, batch):
    class Unbiased(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.fc = (
                nn.Conv2d(3, 6, 3, stride=4, padding=1),
                nn.Linear(6, len(data.classes), bias=False),
            )

        def forward(self, images):
            return self.fc(self.features(images).mean((2, 3)))

    given = Unbiased()
    taught = LiveTeacher(Model(given, data.classes, size=data.size))
    objective, output, _ = prepared("simkd", model("resnet8", data), batch, taught)
    head = objective.student.network.fc
    assert torch.equal(head.weight, given.fc.weight)
    assert torch.equal(head.bias, torch.zeros(len(data.classes)))
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert given.fc.bias is None, "the teacher stays as it is"
    ours = numbers(output.features["projector"]).mean((2, 3))
    assert np.allclose(numbers(output.logits), ours @ numbers(given.fc.weight).T, atol=1e-4)


def test_simkd_refuses_a_classifier_that_does_not_fit(data, batch, teacher):
    class Pools(nn.Module):
        """Ends in the largest value of each channel, not in the mean."""

        def __init__(self):
            super().__init__()
            self.features, self.fc = nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.Linear(6, len(data.classes))

        def forward(self, images):
            return self.fc(self.features(images).amax((2, 3)))

    odd = LiveTeacher(Model(Pools(), data.classes, size=data.size))
    with pytest.raises(UserError, match="not one linear layer on the mean of its last feature"):
        prepared("simkd", model("resnet8", data), batch, odd)

    class Narrow(Pools):
        """Has a layer between its last feature and its head."""

        def __init__(self):
            super().__init__()
            self.between = nn.Linear(6, 6)

        def forward(self, images):
            return self.fc(self.between(self.features(images).mean((2, 3))))

    with pytest.raises(UserError, match=r"takes 64 channels, but .* cannot take them"):
        prepared("simkd", Model(Narrow(), data.classes, size=data.size), batch, LiveTeacher(model("resnet20", data)))

    class Largest(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.fc = nn.Conv2d(3, 6, 3, stride=4), nn.Linear(6, len(data.classes))

        def forward(self, images):
            return self.fc(self.features(images).amax((2, 3)))

    with pytest.raises(UserError, match="has something else there"):
        prepared("simkd", Model(Largest(), data.classes, size=data.size), batch, LiveTeacher(model("resnet20", data)))


def test_opdf_begins_with_the_same_weights_and_ends_plain(data, batch, teacher, tmp_path):
    student = model("resnet8", data)
    before, plain = student.eval().logits(batch.images), student.state_dict().keys()
    many = sum(parameter.numel() for parameter in student.parameters())
    objective, output, _ = prepared("opdf", student, batch, teacher)
    assert torch.allclose(output.logits, before, atol=1e-4)
    assert sum(parameter.numel() for parameter in objective.parameters()) > 1.1 * many
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    objective.student(batch.images).logits.square().sum().backward()
    optimizer.step()
    trained = objective.student.eval().logits(batch.images)
    assert not torch.allclose(trained, before, atol=1e-3)
    made = objective.finish().eval()
    assert torch.equal(made.logits(batch.images), trained)
    assert made.state_dict().keys() == plain
    assert sum(parameter.numel() for parameter in made.parameters()) == many


@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (10, 64), (12, 18), (7, 5, 3, 3)])
@pytest.mark.parametrize("factors", [2, 3, 4])
def test_opdfs_product_is_the_weight(shape, factors):
    from distilens.methods.opdf import Product

    weight = torch.randn(shape)
    product = Product(weight.shape, factors)
    tensors = product.right_inverse(weight)
    assert [t.shape[1] for t in tensors] == [i * j for i, j in zip(product.rows, product.columns, strict=True)]
    assert math.prod(product.rows) == shape[0]
    assert math.prod(product.columns) == math.prod(shape[1:])
    assert all(a.shape[2] == b.shape[0] for a, b in pairwise(tensors))
    assert sum(t.numel() for t in tensors) == weight.numel() + product.added
    assert torch.allclose(product(*tensors), weight, atol=1e-4)
    assert torch.allclose(tensors[0][0].T @ tensors[0][0], torch.eye(tensors[0].shape[2]), atol=1e-4)


def test_opdf_refuses_a_layer_without_factors(data, batch, teacher):
    class Prime(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.fc = nn.Conv2d(3, 1, 1, stride=4), nn.Linear(1, len(data.classes))

        def forward(self, images):
            return self.fc(self.features(images).mean((2, 3)))

    with pytest.raises(UserError, match=r"features \[1, 3, 1, 1\]"):
        prepared("opdf:layers=[features]", Model(Prime(), data.classes, size=data.size), batch, teacher)
    with pytest.raises(UserError, match="BatchNorm2d"):
        prepared("opdf:layers=[bn1]", model("resnet8", data), batch, teacher)
    with pytest.raises(UserError, match="nosuch"):
        prepared("opdf:layers=[nosuch]", model("resnet8", data), batch, teacher)


@pytest.mark.parametrize("factors", [2, 3])
def test_opdfs_product_is_the_contraction_of_its_tensors(factors):
    """Written out with one letter an index."""
    from distilens.methods.opdf import Product

    product = Product(torch.Size((12, 18)), factors)
    generator = torch.Generator().manual_seed(0)
    shapes = [t.shape for t in product.right_inverse(torch.randn(12, 18))]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    split = [
        t.view(t.shape[0], i, j, t.shape[2]) for t, i, j in zip(tensors, product.rows, product.columns, strict=True)
    ]
    letters = ["aijb", "bklc", "cmnd"][:factors]
    expected = np.einsum(
        f"{','.join(letters)}->{''.join(x[1] for x in letters)}{''.join(x[2] for x in letters)}", *split
    )
    assert np.allclose(numbers(product(*tensors)), expected.reshape(12, 18), rtol=1e-4, atol=1e-4)


def test_powerprop_of_weights_that_are_0(data, batch, teacher):
    """A pruned student may be trained on, and pruned again: what is 0 stays 0. A layer of zeros could never learn."""
    student = model("resnet8", data)
    for share in (0.3, 0.6):
        objective, *_ = prepared(f"powerprop:prune={share}", student, batch, teacher)
        objective.student.train()(batch.view).logits.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
        student = objective.finish()
        weights = torch.cat(
            [m.weight.detach().flatten() for m in student.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        )
        assert float((weights == 0).float().mean()) == pytest.approx(share, abs=0.001)
    nn.init.zeros_(student.network.fc.weight)
    with pytest.raises(UserError, match=r"all weights of fc of .* are 0"):
        prepared("powerprop:layers=[fc]", student, batch, teacher)
    prepared("powerprop:alpha=1,layers=[fc]", copy.deepcopy(student), batch, teacher)
    objective, *_ = prepared("powerprop", student, batch, teacher)
    nn.functional.cross_entropy(objective.student.train()(batch.view).logits, batch.labels).backward()
    assert student.network.fc.weight.grad.any()


@pytest.mark.parametrize("parts", [["powerprop:prune=0.5", "simkd"], ["simkd", "powerprop:prune=0.5"]])
def test_powerprop_prunes_the_projector_and_not_the_teachers_classifier(parts, data, batch):
    teacher = LiveTeacher(model("resnet20", data, seed=1))
    objective = Objective(model("resnet8", data), build_methods(parts))
    objective.prepare(batch, teacher(batch, objective.needs))
    made = objective.finish()
    assert torch.equal(made.network.fc.weight, teacher.model.network.fc.weight)
    both = [*made.network.named_modules(), *made.parts.named_modules()]
    layers = [
        each.weight.detach().flatten()
        for path, each in both
        if isinstance(each, nn.Conv2d | nn.Linear) and path != "fc"
    ]
    assert float((torch.cat(layers) == 0).float().mean()) == pytest.approx(0.5, abs=0.001)
    assert any((each.weight == 0).any() for each in made.parts.modules() if isinstance(each, nn.Conv2d))


@pytest.mark.parametrize("part", ["dist", "r2kd:pruned=0", "kd:standardise=true", "mlkd", "dkd"])
def test_a_head_that_starts_at_0_is_trained(part, data, batch, teacher):
    """Logits that are all alike have no order and no scale; what correlates them must not throw the student away."""
    student = model("resnet8", data).train()
    nn.init.zeros_(student.network.fc.weight)
    nn.init.zeros_(student.network.fc.bias)
    objective = Objective(student, build_methods(["ce", part]))
    answer = teacher(batch, objective.needs)
    objective.prepare(batch, answer)
    optimizer, losses = torch.optim.SGD(student.parameters(), lr=0.02), []
    for _ in range(12):
        terms = objective(batch, answer)
        losses.append(terms["ce"].item())
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert max(losses) < 3 * losses[0]
    assert losses[-1] < 2 * losses[0]


def test_rkd_of_images_that_are_alike(data, batch, teacher):
    """Two features in one place have no direction from one to the other, and no gradient by it."""
    from distilens.losses.relations import angles

    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    features[1] = features[0]
    features.requires_grad_(True)
    (angles(features) - torch.eye(4)).square().sum().backward()
    assert features.grad.abs().max() < 100


def test_powerprop_scales_gradients_and_prunes(data, batch, teacher):
    plain, powered = model("resnet8", data), model("resnet8", data)
    before = plain.eval().logits(batch.images)
    before.square().sum().backward()
    objective, output, _ = prepared("powerprop:alpha=3,prune=0.6", powered, batch, teacher)
    assert torch.allclose(output.logits, before, atol=1e-4)
    objective.student.logits(batch.images).square().sum().backward()
    phi = powered.network.conv1.parametrizations.weight.original
    expected = plain.network.conv1.weight.grad * 3 * phi.detach().abs() ** 2
    assert torch.allclose(phi.grad, expected, rtol=1e-2, atol=1e-3)
    weights = torch.cat(
        [m.weight.detach().abs().flatten() for m in plain.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    )
    made = objective.finish()
    kept = torch.cat(
        [m.weight.detach().flatten() for m in made.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    )
    assert float((kept == 0).float().mean()) == pytest.approx(0.6, abs=0.001)
    assert torch.equal(kept != 0, weights > weights.sort().values[int(0.6 * len(weights)) - 1])
    assert made.state_dict().keys() == plain.state_dict().keys()


def test_both_kinds_of_weights_go_together(data, batch, teacher):
    for parts in (["powerprop:prune=0", "opdf"], ["opdf", "powerprop:prune=0"]):
        student = model("resnet8", data)
        before = student.eval().logits(batch.images)
        objective = Objective(student, build_methods(parts))
        objective.prepare(batch, Answer())
        assert torch.allclose(objective.finish().logits(batch.images), before, atol=1e-3)


@pytest.mark.parametrize("parts", [["opdf", "powerprop:prune=0"], ["opdf:layers=[fc]"]])
def test_what_was_finished_takes_the_weights_of_training_again(parts, data, batch):
    objective = Objective(model("resnet8", data), build_methods(parts))
    objective.prepare(batch, Answer())
    state = {key: value.clone() for key, value in objective.student.bare_state().items()}
    expected = objective.student.eval().logits(batch.images)
    made = objective.finish()
    assert made.bare_state().keys() != state.keys()
    for method in build_methods(
        [part.split(":")[0] for part in parts]
    ).values():  # of all layers, only those in the state
        method.unfinish(made, state)
    assert made.bare_state().keys() == state.keys()
    torch.nn.init.zeros_(made.network.conv1.weight if "layers" in parts[0] else made.network.fc.bias)
    made.load_bare_state(state)
    assert torch.equal(made.eval().logits(batch.images), expected)


# --- teachers


def test_a_pruned_teacher_lacks_its_smallest_weights(data, batch, teacher):
    copy = teacher.pruned("0.4").model.network
    both = [
        torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)])
        for network in (copy, teacher.model.network)
    ]
    assert float((both[0] == 0).float().mean()) == pytest.approx(0.4, abs=0.001)
    assert both[1].abs()[both[0] == 0].max() <= both[1].abs()[both[0] != 0].min()
    answer = teacher(batch, ["logits", "pruned:0.4"])
    assert torch.equal(answer.pruned["0.4"], teacher.pruned("0.4").forward(batch.images)[0])
    assert not torch.equal(answer.pruned["0.4"], answer.logits)
    for share in ("0", "1", "all"):
        with pytest.raises(UserError, match="between 0 and 1"):
            teacher(batch, [f"pruned:{share}"])


def test_a_pruned_teacher_is_stored_and_joined(data, batch, teacher, tmp_path):
    stored = StoredTeacher(tmp_path, teacher)
    live = teacher(batch, ["pruned:0.4"]).pruned["0.4"]
    for who in (stored, StoredTeacher(tmp_path)):
        assert torch.allclose(who(batch, ["pruned:0.4"]).pruned["0.4"], live, atol=1e-3)
    other = LiveTeacher(model("resnet14", data, seed=3))
    mean = MeanTeacher([teacher, other])(batch, ["pruned:0.4"]).pruned["0.4"]
    assert torch.allclose(mean, (live + other(batch, ["pruned:0.4"]).pruned["0.4"]) / 2, atol=1e-6)
    turned = PermutedTeacher(teacher)(batch, ["pruned:0.4"]).pruned["0.4"]
    assert not torch.allclose(turned, live)


def test_r2kd_refuses_a_teacher_that_says_one_class_when_pruned():
    student = Model(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), "abcd", size=(4, 4))
    logits = torch.eye(4).repeat(5, 1)
    flat = torch.tensor([9.0, 0, 0, 0]).repeat(20, 1)
    given = Batch(torch.rand(20, 3, 4, 4), torch.arange(20) % 4, torch.arange(20))
    (method,) = build_methods(["r2kd"]).values()
    with pytest.raises(UserError, match="without the smallest 30 % of its weights gives one class for all 20 images"):
        method.prepare(student, given, Answer(logits, pruned={"0.3": flat}))
    method.prepare(student, given, Answer(logits, pruned={"0.3": logits}))
    for classes in (1, 2):
        with pytest.raises(UserError, match=f"at least 3 classes; given {classes}: the correlation"):
            method.prepare(student, given, Answer(logits[:, :classes], pruned={"0.3": flat[:, :classes]}))


def test_dist_of_two_classes_needs_its_second_part():
    student = Model(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), "ab", size=(4, 4))
    given = Batch(torch.rand(4, 3, 4, 4), torch.arange(4) % 2, torch.arange(4))
    build_methods(["dist"])["dist"].prepare(student, given, Answer())
    with pytest.raises(UserError, match=r"gamma=0 needs at least 3 classes; .* has 2"):
        build_methods(["dist:gamma=0"])["dist"].prepare(student, given, Answer())


# --- what is sized, and what is refused


@pytest.fixture(scope="module")
def others(data):
    """Teachers of another width, of another grid, and with tokens."""
    return tuple(
        LiveTeacher(model(name, data))
        for name in ("vgg8", "mobilenetv2:width=0.25", "timm:vit_tiny_patch16_224,size=32")
    )


@pytest.mark.parametrize("part", FEATURED)
def test_no_channel_is_ever_typed(part, data, batch, others):
    """All taps but those that a ViT does not have."""
    taps = (
        "taps=[last],teacher_taps=[blocks.5]" if part in ("vid", "nst", "reviewkd", "rtk") else "teacher_tap=blocks.5"
    )
    for number, who in enumerate(others):
        named = f"{part}:{taps}" if number == 2 else f"{part}:taps=[last]" if part in ("reviewkd", "rtk") else part
        objective = Objective(model("resnet8", data).train(), build_methods([named]))
        answer = who(batch, objective.needs)
        objective.prepare(batch, answer)
        (term,) = objective(batch.replaced(progress=0.5), answer).values()
        term.backward()
        assert term.isfinite()
        assert objective.student.network.conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("part", [name for name in FEATURED if name != "crd"])
def test_own_modules_are_not_shipped(part, data, batch, teacher):
    student = model("resnet8", data)
    keys = student.bare_state().keys()
    objective, _, _ = prepared(part, student, batch, teacher)
    assert objective.finish().bare_state().keys() == keys


@pytest.mark.parametrize("part", FEATURED)
def test_a_method_may_be_prepared_again_for_another_student(part, data, batch, teacher):
    methods = build_methods([part])
    for student in (model("resnet8", data), model("resnet8x4", data)):
        objective = Objective(student.train(), methods)
        answer = teacher(batch, objective.needs)
        objective.prepare(batch, answer)
        assert all(term.isfinite() for term in objective(batch.replaced(progress=0.5), answer).values())


def test_as_many_taps_of_the_one_as_of_the_other():
    with pytest.raises(UserError, match="given 1 and 3"):
        METHODS.build("reviewkd:teacher_taps=[last]")


def test_features_that_are_no_grid_are_refused(data, batch, teacher):
    with pytest.raises(UserError, match="spatial"):
        prepared("fitnet:tap=fc", model("resnet8", data), batch, teacher)


@pytest.mark.parametrize("part", ["crd", "osakd"])
def test_a_bank_larger_than_memory_is_refused_before_training(part, data, batch, teacher, monkeypatch):
    monkeypatch.setattr("distilens.methods.bank.psutil.virtual_memory", lambda: type("Free", (), {"available": 1000})())
    with pytest.raises(UserError, match=rf"{part} stores .* for each of \d+ images.* of memory are free"):
        prepared(part, model("resnet8", data), batch, teacher)
    with pytest.raises(UserError, match="does not say which set"):
        prepared(part, model("resnet8", data), batch.replaced(variant=None), teacher)


def test_osakd_needs_labels(data, teacher):
    rows = dataclasses.replace(data.train.rows, targets=np.full_like(data.train.rows.targets, -1))
    unlabelled = next(Batches(dataclasses.replace(data.train, rows=rows), 6).epoch(0))
    with pytest.raises(UserError, match="this training set has fewer than two labelled images"):
        prepared("osakd", model("resnet8", data), unlabelled, teacher)


@pytest.mark.parametrize(("part", "width"), [("crd:width=4", 2 * 4), ("osakd", 64)])
def test_a_bank_says_the_memory_that_it_takes(part, width, data, batch, teacher):
    objective, _, _ = prepared(part, model("resnet8", data), batch, teacher)
    assert method_of(objective).remembered() == len(data.train) * width * 4  # bytes of float32


def test_a_width_that_no_machine_has_is_said_of_the_bank(data, batch, teacher):
    with pytest.raises(UserError, match=r"crd stores 2 × 2000000000 numbers .* use a smaller width"):
        prepared("crd:width=2000000000", model("resnet8", data), batch, teacher)


def test_a_bank_is_kept_by_index_and_saved(data):
    some = list(Batches(data.train, 7))
    bank = Bank(some[0], tables=2, width=3, name="bank")
    for each in some:
        bank.write(bank.places(each), torch.stack([each.index, -each.index])[:, :, None].expand(-1, -1, 3).float())
    assert torch.equal(bank.rows[0, :, 0], torch.from_numpy(data.train.index).float())
    other = Bank(some[0], tables=2, width=3, name="bank")
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.rows, bank.rows)
    assert not list(bank.parameters())
    assert other.double().rows.dtype == torch.float64
