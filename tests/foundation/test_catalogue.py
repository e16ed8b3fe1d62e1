"""The parts as their sources say them: exactly as the registries that import them do."""

import pytest

from distilens.foundation.catalogue import REGISTRIES, catalogue, registry
from distilens.foundation.notation import argument_of, takes_others


@pytest.mark.parametrize("kind", REGISTRIES)
def test_what_is_read_is_what_is_imported(kind):
    real, written = registry(kind), catalogue(kind)
    assert written.kind == real.kind
    assert list(written) == list(real)
    assert written.table() == real.table()
    for name in real:
        ours, theirs = written.options(name), real.options(name)
        assert list(ours) == list(theirs)
        for key, parameter in theirs.items():
            assert ours[key].default == parameter.default
            assert same_type(ours[key].annotation, parameter.annotation), (name, key)
        one, other = written.entry(name).constructor, real.entry(name).constructor
        assert takes_others(one) == takes_others(other)
        assert (argument_of(one) is None) == (argument_of(other) is None)


def same_type(one: object, other: object) -> bool:
    """Validators are functions of one name, written in two modules."""
    return str(one).partition(" at 0x")[0] == str(other).partition(" at 0x")[0]


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("methods", "kd:temperature=2,weight=3"),
        ("methods", "map_match:explainer=[ig:steps=4]"),
        ("models", "timm:resnet10t,pretrained=true,size=[64,32]"),
        ("data", "folder:pictures,limit=9"),
        ("judges", "insertion:explainer=gradcam"),
        ("follow", "best_explained:judge=[focus]"),
        ("schedules", "multi_step:milestones=[0.5,0.75]"),
    ],
)
def test_notation_is_resolved_alike(kind, part):
    assert str(catalogue(kind).resolve(part)) == str(registry(kind).resolve(part))


def test_a_catalogue_builds_nothing():
    with pytest.raises(TypeError, match="use the registry"):
        catalogue("methods").build("kd")
