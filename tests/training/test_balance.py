"""Terms in balance: norms are what was asked for, whatever the weights, and terms come and go."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from distilens.core import Answer, Batch, Method, Objective, Output, with_terms
from distilens.data import load
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.runs.recipe_file import make_recipe
from distilens.training.balance import BALANCES, norm
from distilens.training.loop import train
from distilens.training.settings import Training

NAMES = ["first", "second", "third"]


class Student(nn.Module):
    """Three weights, so that gradients are known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0, 12.0]))

    def terms(self, sizes=(1.0, 1.0, 1.0)) -> dict[str, torch.Tensor]:
        first, second, third = self.weight
        return {
            "first": sizes[0] * (3 * first + 4 * second),  # a gradient of norm 5
            "second": sizes[1] * 100 * third,
            "third": sizes[2] * 1e-3 * first.square(),  # of norm 6e-3
        }


def norms(terms: dict[str, torch.Tensor], student: nn.Module) -> list[float]:
    return [
        torch.autograd.grad(term, list(student.parameters()), retain_graph=True, allow_unused=True)[0].norm().item()
        for term in terms.values()
    ]


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (1.0, 850.0, 1e-3)])
def test_ratio_holds_gradients_at_a_multiple_of_the_first(sizes):
    student = Student()
    balance = BALANCES.build("ratio:0.3", NAMES)
    assert norms(balance(student.terms(sizes), student, 0), student) == pytest.approx([5, 1.5, 1.5], rel=1e-4)


def test_ratio_is_measured_every_so_many_steps_and_moves_half_the_way():
    student = Student()
    balance = BALANCES.build("ratio:0.3,every=10", NAMES)
    balance(student.terms(), student, 0)
    grown = student.terms((1.0, 4.0, 1.0))
    assert norms(balance(grown, student, 9), student) == pytest.approx([5, 6, 1.5], rel=1e-4)
    assert norms(balance(grown, student, 10), student) == pytest.approx([5, 3, 1.5], rel=1e-4)
    assert norms(balance(grown, student, 20), student) == pytest.approx([5, 1.5 * 2**0.5, 1.5], rel=1e-4)
    assert balance.notes()["third"] == pytest.approx(1.5 / 6e-3, rel=1e-4)


def test_a_term_that_comes_later_is_measured_when_it_comes():
    student = Student()
    balance = BALANCES.build("ratio:0.3", NAMES)
    some = {name: term for name, term in student.terms().items() if name != "second"}
    balance(some, student, 0)
    assert norms(balance(student.terms(), student, 3), student) == pytest.approx([5, 1.5, 1.5], rel=1e-4)


def test_what_is_switched_off_stays_off_and_a_first_term_without_gradient_changes_nothing():
    student = Student()
    balance = BALANCES.build("ratio:0.3", NAMES)
    found = norms(balance(student.terms((1.0, 0.0, 1.0)), student, 0), student)
    assert found == pytest.approx([5, 0, 1.5], rel=1e-4)
    balance = BALANCES.build("ratio:0.3", NAMES)
    found = norms(balance(student.terms((0.0, 1.0, 1.0)), student, 0), student)
    assert found == pytest.approx([0, 100, 6e-3], rel=1e-4)


def test_a_first_term_that_is_a_constant_now_is_waited_for():
    student = Student()
    balance = BALANCES.build("ratio:0.3,every=10", NAMES)
    terms = student.terms()
    still = {**terms, "first": terms["first"].detach()}
    assert norms({"second": balance(still, student, 0)["second"]}, student) == pytest.approx([100])
    assert norms(balance(terms, student, 1), student) == pytest.approx([5, 1.5, 1.5], rel=1e-4)


def test_terms_without_a_gradient_leave_a_balance_as_it_is():
    student = Student()
    balance = BALANCES.build("gradnorm", NAMES)
    still = {name: term.detach() for name, term in student.terms().items()}
    assert balance(still, student, 0) == still
    assert balance.notes() == dict.fromkeys(NAMES, 1.0)
    assert not balance.felt, "their norms are measured when they have one"


def test_gradnorm_lets_slow_terms_count_more():
    student = Student()
    balance = BALANCES.build("gradnorm:alpha=1,every=1", NAMES)
    even = norms(balance(student.terms(), student, 0), student)
    assert even[1] == pytest.approx(even[0], rel=1e-4)
    assert sum(balance.notes().values()) / 3 == pytest.approx(1, rel=1e-4)
    for step in range(1, 40):  # the first has fallen to a tenth, the others have not
        balance({**student.terms(), "first": student.terms()["first"] / 10}, student, step)
    found = norms(balance({**student.terms(), "first": student.terms()["first"] / 10}, student, 40), student)
    assert found[1] / found[0] == pytest.approx(10, rel=1e-2)
    assert found[2] == pytest.approx(found[1], rel=1e-2)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_gradnorm_is_its_formula(alpha):
    """The factors of two measurements, from gradients of norm 5, 100 and 6e-3 and losses of 1, 1/4 and 1/2 of the first ones."""
    student = Student()
    balance = BALANCES.build(f"gradnorm:alpha={alpha},every=1", NAMES)
    sizes = np.array([5.0, 100.0, 6e-3])

    def factors(pace: np.ndarray, norms: np.ndarray) -> np.ndarray:
        aims = norms.mean() * (pace / pace.mean()) ** alpha / norms
        return aims / aims.mean()

    first = factors(np.ones(3), sizes)
    balance(student.terms(), student, 0)
    assert list(balance.notes().values()) == pytest.approx(first, rel=1e-4)
    fallen = np.array([1.0, 0.25, 0.5])
    balance(student.terms(tuple(fallen)), student, 1)
    assert list(balance.notes().values()) == pytest.approx(np.sqrt(first * factors(fallen, sizes * fallen)), rel=1e-4)


def test_by_default_it_is_measured_every_40_steps_for_each_term():
    student = Student()
    balance = BALANCES.build("ratio", NAMES)
    assert norms(balance(student.terms(), student, 0), student) == pytest.approx([5, 1.5, 1.5], rel=1e-4)  # 0.3
    grown = student.terms((1.0, 4.0, 1.0))
    for step in (39, 40, 80, 119, 121, 128):
        assert norms(balance(grown, student, step), student)[1] == pytest.approx(6, rel=1e-4), step
    assert norms(balance(grown, student, 120), student)[1] == pytest.approx(3, rel=1e-4)


def test_two_terms_are_enough_for_uncertainty_and_the_papers_middle_alpha_is_the_default():
    balance = BALANCES.build("uncertainty", NAMES[:2])
    assert balance.s.requires_grad
    found = balance({"first": torch.tensor(2.0), "second": torch.tensor(3.0)}, Student(), 0)
    assert [term.requires_grad for term in found.values()] == [True, True]
    assert balance.notes() == {"first": 1.0, "second": 1.0}
    assert BALANCES.build("gradnorm", NAMES).alpha == 1.5


def test_nothing_is_measured_in_evaluation():
    student = Student()
    balance = BALANCES.build("ratio:0.3", NAMES).eval()
    assert norms(balance(student.terms(), student, 0), student) == pytest.approx([5, 100, 6e-3], rel=1e-4)
    assert balance.notes() == {}
    with torch.no_grad():
        balance.train()(student.terms(), student, 0)
    assert balance.notes() == {}


@pytest.mark.parametrize("way", ["gradnorm:every=1", "ratio:0.3,every=1"])
def test_a_term_that_is_0_does_not_touch_the_others(way):
    student, plain = Student(), Student()
    balance, other = (BALANCES.build(way, NAMES) for _ in range(2))
    for step in range(3):
        found = balance(student.terms((1.0, 1.0, 0.0)), student, step)
        two = {name: term for name, term in plain.terms().items() if name != "third"}
        expected = other(two, plain, step)
        assert norms(found, student)[:2] == pytest.approx(norms(expected, plain), rel=1e-5)
        assert balance.factors[2] == 1
    awake = norms(balance(student.terms(), student, 3), student)
    assert all(0 < norm < 1000 for norm in awake)
    if way.startswith("ratio"):
        assert awake[2] == pytest.approx(1.5, rel=1e-4)


def test_a_term_that_was_0_at_first_is_felt_soon():
    """As `osakd`, which has seen no other image at its first step: not every 120 steps alone, and not at every one of them."""
    student = Student()
    balance, asked = BALANCES.build("ratio:0.3", NAMES), []
    measure = balance.measure
    balance.measure = lambda terms, parameters: (asked.append(step), measure(terms, parameters))
    for step in range(20):
        balance(student.terms((1.0, 1.0, 0.0)), student, step)
    assert asked == [0, 1, 2, 4, 8, 16]
    for step in range(20, 40):
        found = balance(student.terms(), student, step)
    assert asked == [0, 1, 2, 4, 8, 16, 32]
    assert norms(found, student) == pytest.approx([5, 1.5, 1.5], rel=1e-4)


def test_gradnorm_goes_on_without_the_first():
    student = Student()
    balance = BALANCES.build("gradnorm", NAMES)
    found = norms(balance(student.terms((0.0, 1.0, 1.0)), student, 0), student)
    assert found[1] == pytest.approx(found[2], rel=1e-4)


def test_methods_without_a_term_lead_nothing():
    """`opdf` may be the first of a list: the first term is what the others are measured by."""
    student = Student()
    found = BALANCES.build("ratio:0.3", ["opdf", *NAMES])(student.terms(), student, 0)
    assert norms(found, student) == pytest.approx([5, 1.5, 1.5], rel=1e-4)


def test_small_terms_are_felt_in_half_precision():
    weight = nn.Parameter(torch.tensor([2.0]))
    inside = (weight * 1.0).half().float()  # its gradient goes through half precision, where 1e-9 is 0
    assert norm(1e-9 * inside.sum(), [weight]).item() == pytest.approx(1e-9, rel=1e-3)
    assert norm(1e9 * (weight * 1.0).half().float().sum(), [weight]).item() == pytest.approx(1e9, rel=1e-3)


@pytest.mark.parametrize("way", ["gradnorm", "uncertainty"])
def test_a_loss_that_can_be_negative_is_refused_where_losses_are_judged(way):
    methods = build_methods(["ce", "vid"])
    student = build_model("resnet8", tuple("abc"), (16, 16))
    with pytest.raises(
        UserError, match=f"balance={way} compares the size of losses, but the loss of vid can be negative"
    ):
        Objective(student, methods, BALANCES.build(way, list(methods)))
    Objective(student, methods, BALANCES.build("ratio:0.3", list(methods)))


def test_uncertainty_of_a_term_that_stays_0_goes_on():
    student = Student()
    balance = BALANCES.build("uncertainty", NAMES)
    with torch.no_grad():
        balance.s.copy_(torch.tensor([0.0, 300.0, -300.0]))
    found = balance(student.terms((1.0, 1.0, 0.0)), student, 0)
    assert all(term.isfinite() for term in found.values())
    assert list(balance.notes().values()) == pytest.approx([1, math.exp(-10), math.exp(10)], rel=1e-5)
    assert found["third"].item() == pytest.approx(-5)


def test_uncertainty_forgets_what_was_large():
    """A learning rate that suits the student may carry `s` far: it comes back when the loss does."""
    student = Student()
    balance = BALANCES.build("uncertainty", NAMES)
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.2, momentum=0.9)
    for step in range(400):
        size = 60.0 if step < 50 else 0.5
        loss = sum(balance({"first": torch.tensor(1.0), "second": torch.tensor(size)}, student, step).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert balance.notes()["second"] == pytest.approx(1, rel=0.1)  # 1 / 2L
    assert balance.notes()["first"] == pytest.approx(0.5, rel=0.1)


def test_only_what_has_a_loss_is_a_term():
    assert with_terms(build_methods(["opdf", "ce", "powerprop", "kd"])) == ["ce", "kd"]


@pytest.mark.parametrize("way", ["ratio:0.3", "gradnorm", "uncertainty"])
def test_one_term_is_as_it_is(way):
    """The base student learns the labels alone, under the same settings."""
    balance = BALANCES.build(way, ["ce"])
    term = torch.tensor(3.0, requires_grad=True)
    assert balance({"ce": term}, Student(), 0)["ce"].item() == 3.0
    assert not any(parameter.requires_grad for parameter in balance.parameters())  # unused ones stop several processes


def test_uncertainty_is_its_formula_and_is_trained():
    student = Student()
    balance = BALANCES.build("uncertainty", NAMES)
    with torch.no_grad():
        balance.s.copy_(torch.tensor([0.0, 1.0, -2.0]))
    terms = student.terms()
    found = balance(terms, student, 0)
    for (name, term), s in zip(terms.items(), (0.0, 1.0, -2.0), strict=True):
        assert float(found[name].detach()) == pytest.approx(float(term.detach()) * 2.718281828**-s + s / 2, rel=1e-5)
    torch.stack(list(found.values())).sum().backward()
    assert (balance.s.grad != 0).all()


def test_its_state_is_saved():
    student = Student()
    balance = BALANCES.build("ratio:0.3", NAMES)
    balance(student.terms(), student, 0)
    other = BALANCES.build("ratio:0.3", NAMES)
    other.load_state_dict(balance.state_dict())
    assert other.notes() == balance.notes()
    found = norms(other(student.terms((1.0, 2.0, 1.0)), student, 1), student)  # known: not measured again
    assert found == pytest.approx([5, 3, 1.5], rel=1e-4)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("ratio:-1", "above 0"),
        ("ratio:0", "above 0"),
        ("ratio:inf", "above 0"),
        ("ratio:much", "above 0"),
        ("even", "unknown balance"),
        ("ratio:0.3,every=0", "every"),
    ],
)
def test_what_cannot_be_is_said(part, said):
    with pytest.raises(UserError, match=said):
        BALANCES.build(part, NAMES)


def test_a_recipe_with_an_unknown_balance_is_refused():
    with pytest.raises(UserError, match="gradnorm"):
        make_recipe({"data": "shapes", "student": {"model": "resnet8"}, "train": {"balance": "gradnrm"}})


class Said(Method):
    """A term of a known size."""

    def loss(self, batch: Batch, output: Output, answer: Answer) -> torch.Tensor:
        return output.logits.sum(1) * 0 + 2.0


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (0.0, 0.0, [2, 2, 2, 2, 2]),
        (0.5, 0.0, [0, 1, 2, 2, 2]),
        (0.0, 0.5, [2, 2, 2, 1, 0]),
        (0.5, 1.0, [0, 1, 1, 0.5, 0]),
    ],
)
def test_terms_come_and_go(warmup, decay, expected):
    model = build_model("resnet8", tuple("abcd"), (16, 16))
    method = Said()
    method.warmup, method.decay = warmup, decay
    objective = Objective(model, {"said": method})
    batch = Batch(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]), torch.arange(2))
    found = [objective(batch.replaced(progress=part / 4), Answer())["said"].item() for part in range(5)]
    assert found == pytest.approx(expected)


def test_every_method_takes_them_and_has_defaults_of_its_own():
    methods = build_methods(["kd:warmup=0.1,decay=0.2", "reviewkd", "sp", "pkt:weight=5"])
    assert (methods["kd"].warmup, methods["kd"].decay) == (0.1, 0.2)
    assert (methods["reviewkd"].weight, methods["reviewkd"].warmup) == (20.0, 0.08)
    assert (methods["sp"].weight, methods["pkt"].weight) == (3000.0, 5.0)
    with pytest.raises(UserError, match="warmup"):
        build_methods(["kd:warmup=2"])


@pytest.mark.parametrize("balance", ["ratio:0.3,every=2", "gradnorm:every=2", "uncertainty"])
def test_a_student_is_trained_in_balance(balance, tmp_path):
    data = load("shapes:train=64,test=40,size=16", tmp_path)
    from distilens.teachers import LiveTeacher
    from distilens.training.log import Log

    student = build_model("resnet8", data.classes, data.size)
    log = Log()
    teacher = LiveTeacher(build_model("resnet14", data.classes, data.size))
    settings = Training(epochs=2, batch_size=16, balance=balance)
    methods = build_methods(["ce", "kd", "fitnet"])
    train(student, methods, data, settings, teacher=teacher, log=log)
    notes = [row["notes"] for row in log.rows if "notes" in row][-1]
    assert notes["balance/fitnet"] != 1
    assert set(notes) >= {"balance/ce", "balance/kd", "balance/fitnet"}
