"""Recipes at their edges: what `--set` can reach, and what is said of a recipe that is wrong in many places."""

import tomllib

import pytest

from distilens.foundation.errors import UserError
from distilens.runs.recipe_file import check_together, make_recipe, read_outline, read_recipe
from distilens.runs.recipe_names import find_recipe, shipped_recipes
from distilens.training.settings import Training

SMALL = {"data": "shapes", "student": {"model": "resnet8", "methods": ["ce"]}}
TAUGHT = {"data": "shapes", "teacher": {"model": "resnet14"}, "student": {"model": "resnet8"}}


def problems(content, changes=()) -> list[str]:
    with pytest.raises(UserError) as error:
        make_recipe(content, changes)
    first, *rest = str(error.value).split("\n  ")
    if changes and not rest:
        return [first.removeprefix("--set ")]
    count = f"{len(rest)} problem{'s' * (len(rest) > 1)}"
    assert first in (f"the recipe: {count}", count)
    return rest


def test_every_way_to_write_a_recipe_is_the_same_run():
    content = {
        "name": "all",
        "seed": 3,
        "note": 'a "note" with = and [brackets]',
        "data": {"name": "shapes", "shortcut": 0.5},
        "teacher": {
            "model": {"name": "timm:resnet18", "pretrained": False},
            "data": "shapes:seed=2",
            "methods": "ce:smoothing=0.1",
            "train": {"epochs": 2, "optimizer": {"name": "adamw", "lr": 0.001}},
        },
        "student": {"model": "vgg8", "methods": "ce,[kd:temperature=2,weight=3,as=soft]"},
        "train": {"epochs": 4, "clip": 1, "schedule": "multi_step:milestones=[0.5,0.7]", "channels_last": True},
        "explain": {"explainers": "[gradcam:tap=layer3],[ig:steps=4,rule=riemann]"},
    }
    recipe = make_recipe(content)
    again = make_recipe(tomllib.loads(recipe.to_toml()))
    assert again.to_toml() == recipe.to_toml()
    assert again.teacher_training.epochs == 2
    assert again.teacher_training.clip == 1
    assert again.train.channels_last is True
    assert again.note == content["note"]
    assert recipe.student.methods == ("ce", "kd:temperature=2,weight=3,as=soft")
    assert again.student.methods == (
        "ce:smoothing=0,balanced=false,weight=1,warmup=0,decay=0,as=none",
        "kd:temperature=2,standardise=false,top=none,weight=3,warmup=0,decay=0,as=soft",
    )
    assert again.train.schedule == "multi_step:milestones=[0.5,0.7],gamma=0.1"


def test_a_recipe_does_not_change_what_it_was_made_from():
    content = {"data": "shapes", "student": {"model": "resnet8", "methods": ["ce"]}}
    make_recipe(content, ["student.methods.ce.smoothing=0.1", "train.epochs=3", "data.seed=3"])
    assert content == {"data": "shapes", "student": {"model": "resnet8", "methods": ["ce"]}}


@pytest.mark.parametrize(
    ("change", "read", "value"),
    [
        ("train.optimizer=adamw:lr=0.01", lambda r: r.train.optimizer, "adamw:lr=0.01"),
        ("train.schedule.shape=cosine", lambda r: r.train.schedule, "one_cycle:shape=cosine"),
        ("train.schedule.warmup = 0.1", lambda r: r.train.schedule, "one_cycle:warmup=0.1"),
        ("teacher.train.optimizer.lr=0.1", lambda r: r.teacher_training.optimizer, "auto:lr=0.1"),
        ("teacher.train.epochs=2", lambda r: (r.teacher_training.epochs, r.train.epochs), (2, 10)),
        ("student.methods.kd.temperature=2", lambda r: r.student.methods[1], "kd:temperature=2,weight=0.9"),
        ("student.methods=[ce,[kd:temperature=1]]", lambda r: r.student.methods, ("ce", "kd:temperature=1")),
        ('student.methods=["ce"]', lambda r: r.student.methods, ("ce",)),
        ("explain.explainers.ig.steps=3", lambda r: r.explain.explainers, ("gradcam", "ig:steps=3")),
        ("explain.explainers=[[ig:steps=3,rule=gauss]]", lambda r: r.explain.explainers, ("ig:steps=3,rule=gauss",)),
        ("data.classes=[circle,square]", lambda r: r.data, "shapes:classes=[circle,square]"),
        ("train.clip=2", lambda r: r.train.clip, 2.0),
        ("train.compile=true", lambda r: r.train.compile, True),
        ("note=two words", lambda r: r.note, "two words"),
        ("student.model=vgg8", lambda r: r.student.model, "vgg8"),
        ("student.model.size=48", lambda r: r.student.model, "resnet8:size=48"),
    ],
)
def test_a_change_reaches_its_place(change, read, value):
    recipe = make_recipe(TAUGHT, [change])
    assert read(recipe) == value
    assert make_recipe(tomllib.loads(recipe.to_toml())).resolved() == recipe.resolved()


def test_terms_of_one_method_are_told_apart_by_as():
    content = {**TAUGHT, "student": {"model": "resnet8", "methods": ["kd", "kd:temperature=1,as=sharp"]}}
    recipe = make_recipe(content, ["student.methods.sharp.weight=2"])
    assert recipe.student.methods == ("kd", "kd:temperature=1,as=sharp,weight=2")
    assert problems({**TAUGHT, "student": {"model": "resnet8", "methods": ["kd", "kd:temperature=1"]}}) == [
        "student.methods: two terms are called 'kd': give one of them another name with as="
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("train.epochs.x=3", "epochs"),
        ("seed.x=3", "seed"),
        ("student.methods.kd=3", "methods"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1; given 0"),
        ("train.epochs=many", "train.epochs: input should be a valid integer"),
        ("trian.epochs=3", "unknown key 'trian'. Did you mean 'train'? Known: name, seed"),
        ("train.epoch=3", "unknown key 'train.epoch'. Did you mean 'epochs'?"),
        ("explain.explainers.gradcamm.tap=x", "no part 'gradcamm' in explainers: gradcam, ig:steps=32"),
        ("data.shots=none,", "shots"),
        ("nothing", "takes key=value; given 'nothing'"),
    ],
)
def test_a_change_that_cannot_be_is_said(change, text):
    assert any(text in problem for problem in problems(TAUGHT, [change]))


def test_the_teachers_overrides_are_checked_with_all_else_and_where_they_stand():
    content = {
        "data": "shapes",
        "teacher": {"model": "resnet14", "train": {"epoch": 3, "batch_size": "big", "optimizer": "sdg"}},
        "student": {"modle": "resnet8", "methods": ["kd:temperature=0"]},
        "train": {"epochs": "many"},
    }
    found = problems(content)
    for text in (
        "unknown key 'teacher.train.epoch'. Did you mean 'epochs'?",
        "teacher.train.batch_size: input should be a valid integer",
        "teacher.train.optimizer: unknown optimizer 'sdg'. Did you mean 'sgd'?",
        "the key 'student.model' is missing",
        "unknown key 'student.modle'. Did you mean 'model'?",
        "student.methods: option 'temperature' of method 'kd': input should be greater than 0; given '0'",
        "train.epochs: input should be a valid integer",
    ):
        assert sum(problem.startswith(text) for problem in found) == 1, text
    assert len(found) == 7


@pytest.mark.parametrize(
    "content",
    [
        {**SMALL, "teacher": "resnet14"},
        {**SMALL, "train": 3},
        {**SMALL, "teacher": {"model": "resnet8", "train": 3}},
        {**SMALL, "student": {"model": ["resnet8"], "methods": 3}},
        {**SMALL, "data": 3},
        {**SMALL, "data": "shapes:classes=[a"},
        {**SMALL, "student": {"model": "resnet8", "methods": "[ce"}},
        {**SMALL, "student": {"model": {"depth": 8}}},
        {},
    ],
)
def test_a_wrong_kind_of_value_is_a_message_and_no_traceback(content):
    assert problems(content)


def test_what_a_change_did_is_said_of_the_change():
    with pytest.raises(UserError, match=r"^--set student\.methods: unknown method 'kdd'\. Did you mean 'kd'\?"):
        make_recipe(TAUGHT, ["student.methods=[kdd]"])
    content = {**TAUGHT, "train": {"epochs": 0}}
    with pytest.raises(UserError) as error:
        make_recipe(content, ["train.batch_size=0", "data.limit=0"], where="my.toml")
    first, *rest = str(error.value).split("\n  ")
    assert first == "my.toml: 3 problems"
    assert sorted(line.partition(":")[0] for line in rest) == ["--set data", "--set train.batch_size", "train.epochs"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("epochs", "Did you mean 'train.epochs'?"),
        ("lr", "Did you mean 'train.optimizer.lr'?"),
        ("batch_size", "Did you mean 'train.batch_size'?"),
        ("batchsize", "Did you mean 'train.batch_size'?"),
        ("limit", "Did you mean 'data.limit'?"),
        ("model", "Did you mean 'teacher.model' or 'student.model'?"),
    ],
)
def test_a_key_without_its_section_is_found(key, text):
    assert text in problems(TAUGHT, [f"{key}=3"])[0]


def test_an_outline_is_the_recipe_but_for_what_goes_together(tmp_path):
    for path in shipped_recipes():
        assert read_outline(path) == read_recipe(path)
    (tmp_path / "own.toml").write_text('data="shapes"\n[student]\nmodel="resnet8"\nmethods=["kd"]')
    recipe = read_outline(tmp_path / "own.toml")
    with pytest.raises(UserError, match="need logits from a teacher"):
        check_together(recipe)


def test_a_base_has_no_teacher():
    assert problems({**TAUGHT, "base": {"methods": ["ce", "kd"]}}) == [
        "base.methods need logits from a teacher, but have no teacher"
    ]


def test_recipes_are_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no file demo\.toml; the shipped recipe is called demo"):
        find_recipe("demo.toml")
    assert find_recipe("demo") in shipped_recipes()
    (tmp_path / "demo").write_text(
        'data = "shapes"\nnote = "größer"\n[student]\nmodel="resnet8"\nmethods=["ce"]', "utf-8"
    )
    assert read_recipe("demo").note == "größer"  # a file of one's own comes first
    with pytest.raises(UserError, match=r"no file runs/demoo.toml. Did you mean 'demo'\? Shipped with distilens: "):
        find_recipe("runs/demoo.toml")
    (tmp_path / "latin.toml").write_bytes('note = "größer"'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.toml is not TOML"):
        read_recipe(tmp_path / "latin.toml")


STORED = {"data": "shapes", "teacher": {"model": "resnet14", "answers": "stored"}, "student": {"model": "resnet8"}}


def test_stored_answers_are_of_sixteen_variants_unless_it_says_otherwise():
    recipe = make_recipe(STORED)
    assert (recipe.train.variants, recipe.teacher_training.variants) == (16, 0)
    live = make_recipe({**STORED, "teacher": {"model": "resnet14"}})
    assert live.train.variants == 0
    # the teacher is the same one, and a base or student of another number of variants is another one
    assert recipe.teacher_training == live.teacher_training
    said = make_recipe({**STORED, "train": {"variants": 4}})
    assert (said.train.variants, said.teacher_training.variants) == (4, 4)
    own = make_recipe({**STORED, "teacher": {**STORED["teacher"], "train": {"variants": 2}}})
    assert (own.train.variants, own.teacher_training.variants) == (16, 2)
    assert make_recipe(STORED, ["train.variants=0"]).train.variants == 0
    again = make_recipe(tomllib.loads(recipe.to_toml()))
    assert (again.train.variants, again.teacher_training.variants) == (16, 0)


def test_what_a_method_asks_of_its_teacher_is_checked_before_anything_is_trained():
    content = {"data": "shapes", "teacher": {"model": "resnet14"}, "student": {"model": "resnet8"}}
    with pytest.raises(UserError, match=r"student.methods: unknown explainer 'gradcamm'. Did you mean 'gradcam'"):
        make_recipe(content, ["student.methods=[ce,[ig_overlay:mode=highlight,p=1,exponent=[1,1],explainer=gradcamm]]"])
    with pytest.raises(UserError, match=r"student.methods: unknown option 'step'"):
        make_recipe(
            content, ["student.methods=[ce,[ig_overlay:mode=highlight,p=0.5,exponent=[1,1],explainer=[ig:step=3]]]"]
        )


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    """As Notepad writes it."""
    (tmp_path / "recipe.toml").write_bytes(
        b"\xef\xbb\xbf" + b'data = "shapes"\n[student]\nmodel = "resnet8"\nmethods = ["ce"]\n'
    )
    assert read_recipe(str(tmp_path / "recipe.toml")).data == "shapes"


def test_uniform_sampling_is_no_part_of_what_weights_depend_on():
    assert "sampling" not in Training().decisive()
    assert Training(sampling="balanced").decisive()["sampling"] == "balanced"


def test_without_a_teacher_the_student_learns_from_the_labels():
    made = make_recipe({"data": "shapes", "student": {"model": "resnet8"}})
    assert made.student.methods == ("ce",)
    taught = make_recipe({"data": "shapes", "student": {"model": "resnet8"}, "teacher": {"model": "resnet8"}})
    assert taught.student.methods == ("ce:weight=0.1", "kd:temperature=4,weight=0.9")
    with pytest.raises(UserError, match="need logits from a teacher, but have no teacher"):
        make_recipe({"data": "shapes", "student": {"model": "resnet8", "methods": ["kd"]}})
