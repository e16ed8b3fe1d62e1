"""What methods ask for is read from its notation, and says again what it was read from."""

import random

import pytest
import torch

from distilens.core import Answer, Batch
from distilens.data.batch import Mixed
from distilens.data.geometry import Geometry
from distilens.data.variant import Variant
from distilens.explain import EXPLAINERS
from distilens.foundation.errors import UserError
from distilens.teachers.needs import KINDS, Need, levelled, make_answer, moved, read_needs, spread, unlevelled
from distilens.teachers.records import file_name

OWN = {
    "gradcam": ["tap=layer1", "tap=last"],
    "ig": ["steps=3", "rule=riemann", "baseline=0.25", "baseline=blur", "chunk=7", "chunk=none"],
    "random": ["grid=7", "seed=3", "grid=none"],
    "centre": ["spread=0.125"],
}
FURTHER = [
    ("of=images",),
    ("of=canonical",),
    ("target=label",),
    ("target=top1",),
    ("share=0.3", "draw=x"),
    ("share=1",),
    ("every=4",),
    ("classes=all",),
    ("classes=one",),
    ("pool=2",),
]


def notations(count: int) -> list[str]:
    """Random needs, each option of a kind at most once, in any order."""
    chance, found = random.Random(0), []
    for _ in range(count):
        name = chance.choice(list(OWN))
        own = {text.split("=")[0]: text for text in chance.sample(OWN[name], chance.randint(0, len(OWN[name])))}
        further = {group[0].split("=")[0]: group for group in chance.sample(FURTHER, chance.randint(0, len(FURTHER)))}
        options = [*own.values(), *(text for group in further.values() for text in group)]
        chance.shuffle(options)
        found.append(f"maps:{name}" + (":" + ",".join(options) if options else ""))
    return found


@pytest.mark.parametrize(
    "text", ["logits", "logits:top=3", "features:layer1.0", "scores:confidence", "module:fc", *OWN]
)
def test_the_text_is_kept_as_the_method_wrote_it(text):
    text = f"maps:{text}" if text in OWN else text
    assert Need.parse(text).text == text


def test_any_notation_says_again_what_it_was_read_from():
    for text in notations(300):
        need = Need.parse(text)
        asked, named = Need.parse(need.question), Need.parse(need.name)
        assert asked.question == named.question == need.question, text
        assert named.name == need.name, text
        assert (named.what, named.of, named.target) == (need.what, need.of, need.target), text
        # of all images of the batch given, at any step
        assert (asked.of, asked.share, asked.draw, asked.every) == ("images", 1.0, None, 1), text
        given = dict(item.split("=") for item in text.partition(":")[2].partition(":")[2].split(",") if item)
        assert need.of == given.get("of", "images")
        assert need.target == (given.get("target", "top1") if need.classes == "one" else "top1")
        assert need.every == int(given.get("every", 1))
        assert need.classes == given.get("classes", "one")
        assert str(need.pool) == given.get("pool", "None")
        assert need.share == float(given.get("share", 1))
        assert need.draw == given.get("draw")
        for name in set(given) - {"of", "target", "share", "draw", "every", "classes", "pool"}:
            assert f"{name}={given[name]}" in need.what, text


def test_the_order_of_options_makes_no_difference_and_defaults_are_written_out():
    first = Need.parse("maps:ig:of=canonical,steps=4,target=label")
    assert Need.parse("maps:ig:target=label,steps=4,rule=gauss,of=canonical").name == first.name
    assert Need.parse("maps:ig:target=label,steps=5,of=canonical").name != first.name
    assert Need.parse("maps:ig:target=label,steps=4").name != first.name
    assert Need.parse("maps:ig:of=canonical,steps=4").name != first.name


def test_maps_of_all_classes_and_their_cells_are_recorded_as_what_they_are():
    whole, pooled = Need.parse("maps:gradcam:classes=all"), Need.parse("maps:gradcam:classes=all,pool=2")
    assert whole.name != Need.parse("maps:gradcam").name
    assert whole.name != pooled.name
    # maps that are moved yet are recorded as they are, and averaged afterwards
    assert Need.parse("maps:gradcam:pool=2,of=canonical").name == Need.parse("maps:gradcam:of=canonical").name
    assert Need.parse("maps:gradcam:every=4").name == Need.parse("maps:gradcam").name
    # all classes are all, whichever is asked about
    assert Need.parse("maps:gradcam:classes=all,target=label").name == whole.name


def test_which_images_are_asked_for_is_no_part_of_what_is_recorded():
    assert Need.parse("maps:gradcam:share=0.5,draw=x").name == Need.parse("maps:gradcam").name


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if name != "captum"])
@pytest.mark.parametrize("options", ["", ":of=canonical,target=label"])
def test_every_explainer_can_be_asked_for_by_its_whole_name(name, options):
    need = Need.parse(f"maps:{name}{options}")
    assert Need.parse(need.question).question == need.question
    assert Need.parse(need.name).name == need.name


def test_adapters_of_other_libraries_are_asked_for_by_their_whole_name_too():
    need = Need.parse("maps:captum:Saliency,of=canonical")
    assert Need.parse(need.question).question == need.question
    assert "Saliency" in need.what


@pytest.mark.parametrize(
    "texts",
    [
        ("maps:random:seed=1", "maps:random:seed=-1"),
        ("features:a.b", "features:a-b", "features:a:b", "features:a b"),
        ("logits", "logits:top=1", "logits:top=11"),
        ("maps:gradcam", "maps:gradcam:of=canonical", "maps:gradcam:target=label", "maps:gradcam++"),
        ("maps:gradcam:tap=" + "x" * 200, "maps:gradcam:tap=" + "x" * 199 + "y"),
    ],
)
def test_no_two_needs_share_a_file(texts):
    assert len({file_name(Need.parse(text).name).lower() for text in texts}) == len(texts)
    assert all(len(file_name(Need.parse(text).name)) < 200 for text in texts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("logits:top=0", "unknown need 'logits:top=0': logits, logits:top=K, features:TAP"),
        ("logits:top=-1", "logits:top=K"),
        ("logits:top=2.5", "logits:top=K"),
        ("logits:top=", "logits:top=K"),
        ("logits:10", "logits:top=K"),
        ("scores:confidense", "unknown judge 'confidense'. Did you mean 'confidence'"),
        ("scores:confidence:x=1", "unknown option 'x'"),
        ("maps:gradcam:of=crop", r"of: .*'crop'; of=canonical\|images, target=top1\|label"),
        ("maps:gradcam:target=labels", r"target: .*'labels'.*target=top1\|label"),
        ("maps:ig:share=1.5,draw=x", "share: .*less than or equal to 1; given '1.5'"),
        ("maps:ig:share=-0.1,draw=x", "share: .*greater than or equal to 0"),
        ("maps:ig:share=nan,draw=x", "share: .*finite number"),
        ("maps:ig:share=half,draw=x", "share: .*number.*'half'"),
        ("maps:ig:share=0.5", "share= and draw= go together"),
        ("maps:ig:draw=x", "share= and draw= go together"),
        ("maps:ig:steps=0", "option 'steps' of explainer 'ig'.*greater than or equal to 1"),
        ("maps:ig:stepps=3", "unknown option 'stepps'.*Did you mean 'steps'"),
        ("maps:gradcam:tap=[a", "brackets"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_right(text, said):
    with pytest.raises(UserError, match=said):
        Need.parse(text)


# which images


def batch_of(index, *, seed=3, epoch=2, hosted=True) -> Batch:
    index = torch.as_tensor(index)
    variant = Variant(0, None, index.numpy(), None, 0) if hosted else None
    return Batch(torch.zeros(len(index), 3, 2, 2), index * 0, index, variant=variant, seed=seed, epoch=epoch)


@pytest.mark.parametrize("hosted", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_the_images_asked_for_are_those_that_the_batch_draws(share, hosted):
    batch = batch_of(torch.arange(200), hosted=hosted)
    rows = Need.parse(f"maps:gradcam:share={share},draw=coin").rows(batch)
    assert rows.tolist() == torch.nonzero(batch.draw("coin")[:, 0] < share)[:, 0].tolist()
    assert abs(len(rows) / 200 - share) < 0.1


def test_an_image_is_asked_for_or_not_whatever_batch_it_is_in():
    need = Need.parse("maps:gradcam:share=0.4,draw=coin")
    whole = set(need.rows(batch_of(torch.arange(100))).tolist())
    order = torch.randperm(100)
    for part in order.split(17):
        rows = need.rows(batch_of(part))
        assert {int(part[row]) for row in rows} == whole & set(part.tolist())
    assert set(need.rows(batch_of(torch.arange(100), epoch=3)).tolist()) != whole
    assert set(need.rows(batch_of(torch.arange(100), seed=4)).tolist()) != whole
    assert set(Need.parse("maps:gradcam:share=0.4,draw=dice").rows(batch_of(torch.arange(100))).tolist()) != whole


@pytest.mark.parametrize("text", ["logits", "maps:gradcam", "maps:gradcam:share=1", "scores:confidence"])
def test_all_images_are_asked_for_where_nothing_is_drawn(text):
    assert Need.parse(text).rows(batch_of([5, 3, 9])).tolist() == [0, 1, 2]


def test_an_answer_holds_a_value_per_need_where_methods_look_for_it():
    texts = ["logits:top=2", "features:last", "maps:gradcam", "maps:cam:classes=all", "scores:focus", "pruned:0.3"]
    needs = read_needs([*texts, "module:fc"])
    assert {need.kind for need in needs} == set(KINDS)
    logits, pruned, feature = torch.randn(2, 5), torch.randn(2, 5), torch.randn(2, 8, 4, 4)
    maps, classwise, target, own = torch.randn(2, 4, 4), torch.randn(2, 5, 4, 4), torch.tensor([0, 1]), torch.arange(2)
    scores, trust, module = torch.randn(2), torch.ones(2), torch.nn.Linear(1, 1)
    values = [logits, feature, (maps, target), (classwise, own), scores, pruned, module]
    answer = make_answer(dict(zip(needs, values, strict=True)), trust)
    focus = Need.parse("scores:focus").what
    assert answer == Answer(
        logits=logits,
        features={"last": feature},
        maps={"maps:gradcam": maps, "maps:cam:classes=all": classwise},
        targets={"maps:gradcam": target, "maps:cam:classes=all": own},
        scores={focus: scores},
        modules={"fc": module},
        pruned={"0.3": pruned},
        trust=trust,
    )
    first = [value[0] if isinstance(value, tuple) else value for value in values]
    assert all(need.read(answer) is value for need, value in zip(needs, first, strict=True))
    assert make_answer({}) == Answer()


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        (["logits:top=2", "features:last", "logits:top=5"], ["features:last", "logits:top=5"]),
        (["logits:top=9", "logits", "pruned:0.5"], ["logits", "pruned:0.5"]),
        (["features:last"], ["features:last"]),
    ],
)
def test_the_most_exact_logits_answer_all_needs_for_logits(texts, left):
    assert [need.text for need in read_needs(texts)] == left


def test_values_stand_in_their_places_and_zero_elsewhere():
    batch = batch_of(torch.arange(6))
    values = torch.tensor([[1.0, 2], [3, 4]])
    found = spread(batch, torch.tensor([4, 1]), values)
    assert found.tolist() == [[0, 0], [3, 4], [0, 0], [0, 0], [1, 2], [0, 0]]
    assert spread(batch, torch.zeros(0, dtype=torch.int64), values[:0]).tolist() == [[0, 0]] * 6
    classes = spread(batch, torch.tensor([2]), torch.tensor([7]))
    assert classes.tolist() == [0, 0, 7, 0, 0, 0] and classes.dtype == torch.int64


def test_only_maps_of_the_untransformed_images_are_moved():
    box = torch.tensor([[0.0, 1, 4, 4]])
    geometry = Geometry(box, torch.tensor([True]), (4, 4), (4, 4), whole=True)
    batch = batch_of([0]).replaced(geometry=geometry)
    maps = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(moved(batch, Need.parse("maps:gradcam"), maps), maps)
    there = moved(batch, Need.parse("maps:gradcam:of=canonical"), maps)
    assert torch.equal(there, geometry.move(maps)) and not torch.equal(there, maps)
    assert torch.equal(moved(batch_of([0]), Need.parse("maps:gradcam:of=canonical"), maps), maps)


def test_maps_are_averaged_after_they_were_moved_and_only_some_images_are_moved():
    box = torch.tensor([[0.0, 1, 4, 4], [0.0, 0, 4, 4], [1.0, 1, 3, 3]])
    geometry = Geometry(box, torch.tensor([True, False, False]), (4, 4), (4, 4), whole=True)
    batch = batch_of([0, 1, 2]).replaced(geometry=geometry)
    maps, rows = torch.rand(2, 4, 4), torch.tensor([2, 0])
    need = Need.parse("maps:gradcam:of=canonical,pool=2")
    there = geometry.select(rows).move(maps)
    assert torch.allclose(moved(batch, need, maps, rows), torch.nn.functional.avg_pool2d(there, 2))
    own = Need.parse("maps:gradcam:pool=2")
    assert torch.allclose(moved(batch, own, maps, rows), torch.nn.functional.avg_pool2d(maps, 2))
    nothing = moved(batch, need, maps[:0], rows[:0])
    assert nothing.shape == (0, 2, 2)


def test_maps_of_one_image_do_not_fit_two():
    batch = batch_of([0, 1]).replaced(mixed=Mixed(torch.tensor([1, 0]), torch.ones(2)))
    with pytest.raises(UserError, match="mix= shows two"):
        moved(batch, Need.parse("maps:gradcam:of=canonical"), torch.rand(2, 4, 4))
    assert moved(batch, Need.parse("maps:gradcam"), torch.rand(2, 4, 4)).shape == (2, 4, 4)


def test_maps_of_every_fourth_step_are_asked_for_then_alone():
    need = Need.parse("maps:gradcam:every=4")
    asked = [step for step in range(9) if len(need.rows(batch_of([3, 1]).replaced(step=step)))]
    assert asked == [0, 4, 8]


@pytest.mark.parametrize(
    ("share", "fits"), [("0", False), ("0.3", True), ("0.99", True), ("1", False), ("half", False)]
)
def test_a_pruned_copy_is_without_a_share_between_0_and_1(share, fits):
    if fits:
        assert Need.parse(f"pruned:{share}").what == share
    else:
        with pytest.raises(UserError, match="must be a number between 0 and 1"):
            Need.parse(f"pruned:{share}")


@pytest.mark.parametrize("text", ["features", "features:", "nonsense:3", "pruned"])
def test_a_need_without_its_place_is_unknown(text):
    with pytest.raises(UserError, match="unknown need"):
        Need.parse(text)


def test_maps_and_scores_are_computed_in_full_and_the_rest_as_the_step():
    exact = {text: Need.parse(text).exact for text in ("logits", "features:x", "maps:gradcam", "scores:confidence")}
    assert exact == {"logits": False, "features:x": False, "maps:gradcam": True, "scores:confidence": True}


@pytest.mark.parametrize("top", [1, 3, 6])
def test_the_largest_logits_keep_their_probabilities_and_the_others_share_the_rest(top):
    logits = 3 * torch.randn(5, 7)
    values, places, rest = levelled(logits, top)
    again = unlevelled(values, places, rest, 7)
    assert torch.equal(values, logits.sort(descending=True).values[:, :top])
    assert torch.equal(again.gather(1, places), values)
    found, expected = again.softmax(1), logits.softmax(1)
    assert torch.allclose(found.gather(1, places), expected.gather(1, places), atol=1e-6)
    others = torch.ones(5, 7, dtype=torch.bool).scatter(1, places, False)
    mean = (expected * others).sum(1) / (7 - top)
    assert torch.allclose(found[others].view(5, -1), mean[:, None].expand(-1, 7 - top), atol=1e-6)


@pytest.mark.parametrize("top", [7, 9])
def test_all_logits_are_kept_if_there_are_no_more(top):
    logits = torch.randn(5, 7)
    values, places, rest = levelled(logits, top)
    assert torch.equal(unlevelled(values, places, rest, 7), logits)
    assert torch.equal(rest, logits.amin(1))
