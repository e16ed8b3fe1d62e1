"""The notation of a search's space: right values, every mistake, and that every value is a valid change of the recipe."""

import random

import pytest

from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.runs.recipe_file import make_recipe
from distilens.studies.space import change_of, changes_of, read_space

RECIPE = {
    "data": "digits:size=16",
    "teacher": {"model": "resnet8"},
    "student": {"model": "resnet8", "methods": ["ce", "kd:temperature=2"]},
}


class Draw:
    """Proposes random values, as Optuna does."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def suggest_float(self, name, low, high, log=False):
        return self.random.uniform(low, high)

    def suggest_int(self, name, low, high, log=False):
        return self.random.randint(low, high)

    def suggest_categorical(self, name, choices):
        return self.random.choice(choices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd.temperature=8..1", "from the smaller to the larger number; given 8..1"),
        ("kd.temperature=3..3", "from the smaller to the larger number; given 3..3"),
        ("kd.temprature=1..8", "unknown option 'temprature' of method 'kd'. Did you mean 'temperature'?"),
        ("kdd.temperature=1..8", "Did you mean 'kd'?"),
        (
            "epochs=1..3:int",
            "a setting is METHOD.OPTION, methods, or a key such as train.epochs. Did you mean 'train.epochs'",
        ),
        ("train.epoch=1..3:int", "unknown key 'train.epoch'. Did you mean 'epochs'?"),
        ("train.epochs=1..3", "valid integer"),
        ("train.epochs=0..3:int", "greater than or equal to 1; given 0"),
        ("kd.weight=0..1:log", "begins above 0; given 0..1"),
        ("kd.weight=-1..1:log", "begins above 0"),
        ("kd.weight=1", "needs two different choices or a range"),
        ("kd.weight=1|1", "needs two different choices or a range"),
        ("kd.weight=", "--space takes NAME=LOW..HIGH"),
        ("=1..2", "--space takes NAME=LOW..HIGH"),
        ("kd.weight", "--space takes NAME=LOW..HIGH"),
        ("", "--space takes NAME=LOW..HIGH"),
        ("kd.weight=1.5..3:int", "whole numbers are whole; given 1.5..3"),
        ("kd.weight=1..inf", "--space takes"),
        ("kd.weight=nan..1", "--space takes"),
        ("kd.weight=1..2:lin", "--space takes"),
        ("kd.weight=1..2..3", "the ends of a range are numbers"),
        ("kd.weight=a..b", "the ends of a range are numbers"),
        ("kd.temperature=a|b", "valid number"),
        ("methods=[ce]|[ce,kdd]", "unknown method 'kdd'"),
        ("methods=3|4", "methods"),
        ("teacher.model=resnet8|resnet14", "a search changes the student and its training"),
        ("data=digits|shapes", "a search changes the student and its training"),
        ("seed=1|2", "a search changes the student and its training"),
        ("explain.images=1..3:int", "a search changes the student and its training"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(UserError) as error:
        read_space([text], RECIPE)
    assert message in str(error.value)


def test_nothing_and_the_same_twice_are_refused():
    with pytest.raises(UserError, match="name what is searched"):
        read_space([], RECIPE)
    with pytest.raises(UserError, match=r"names student.methods.kd.weight twice"):
        read_space(["kd.weight=1..2", "student.methods.kd.weight=3|4"], RECIPE)


def test_a_space_has_ranges_whole_numbers_choices_and_lists():
    texts = [
        "kd.temperature=1..8",
        "train.optimizer.lr=1e-4..1e-1:log",
        "train.epochs=2..4:int",
        "train.augment=none|crop",
        "methods=[ce]|[ce,kd]",
    ]
    space = read_space(texts, RECIPE)
    assert [dimension.name for dimension in space] == [
        "kd.temperature",
        "train.optimizer.lr",
        "train.epochs",
        "train.augment",
        "methods",
    ]
    assert (space[1].low, space[1].high, space[1].log) == (1e-4, 0.1, True)
    assert (space[2].whole, space[2].examples) == (True, [2, 4])
    assert space[3].examples == ["none", "crop"]
    assert space[4].examples == [["ce"], ["ce", "kd"]]


def test_every_value_is_a_valid_change():
    texts = [
        "kd.temperature=1..8",
        "train.optimizer.lr=0.00001..0.1:log",
        "train.epochs=2..4:int",
        "at.weight=0.5|1000000.0",
        "methods=[ce,kd]|[ce,at]|[ce,kd:temperature=3,at]",
    ]
    space = read_space(texts, RECIPE)
    lists = set()
    for seed in range(30):
        changes = changes_of(
            space, [dimension.suggest(Draw(100 * seed + n)) for n, dimension in enumerate(space)], RECIPE
        )
        recipe = make_recipe(RECIPE, changes)
        names = [Spec.parse(method).name for method in recipe.student.methods]
        lists.add(tuple(names))
        assert any("kd.temperature" in change for change in changes) == ("kd" in names)
        assert any("at.weight" in change for change in changes) == ("at" in names)
        assert 2 <= recipe.train.epochs <= 4
        assert "lr=" in recipe.train.optimizer
    assert len(lists) == 3


def test_the_option_of_a_method_survives_the_list():
    """The list comes first: it would replace the option."""
    space = read_space(["kd.temperature=5..6", "methods=[ce,kd]|[kd]"], RECIPE)
    recipe = make_recipe(RECIPE, changes_of(space, [5.5, ["ce", "kd"]], RECIPE))
    assert recipe.student.methods == ("ce", "kd:temperature=5.5")


def test_the_list_of_methods_may_be_named_in_full():
    (short,), (full,) = (read_space([f"{name}=[ce]|[kd]"], RECIPE) for name in ("methods", "student.methods"))
    assert short == full
    assert change_of(short, ["ce", "kd:weight=2.0"]) == "student.methods=['ce', 'kd:weight=2.0']"


def test_lists_of_methods_may_be_written_as_in_a_recipe():
    (plain,) = read_space(["methods=[ce,kd:temperature=3]|[kd]"], RECIPE)
    (quoted,) = read_space(['methods=["ce","kd:temperature=3,weight=2"]|["kd"]'], RECIPE)
    assert plain.examples == [["ce", "kd:temperature=3"], ["kd"]]
    assert quoted.examples == [["ce", "kd:temperature=3,weight=2"], ["kd"]]
