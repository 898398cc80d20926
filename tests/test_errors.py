from __future__ import annotations

import pytest

from gendd.errors import UserError, did_you_mean, nearest


def test_a_user_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^what was expected$"):
        raise UserError("what was expected")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x0b", "\x1c", "\x85", "\u2028"])
def test_the_message_is_one_line_whatever_it_names(end: str) -> None:
    message = str(UserError(f"expected a, got b{end}c; correct it"))
    assert message == "expected a, got b c; correct it" and len(message.splitlines()) == 1


def test_the_nearest_choice_is_named() -> None:
    assert did_you_mean("mixpu", ["mixup", "alpha", "repeats"]) == " Did you mean 'mixup'?"
    assert did_you_mean("resnet2", ["resnet20", "resnet110"]) == " Did you mean 'resnet20'?"


def test_without_a_near_choice_they_are_listed_in_order_and_once() -> None:
    assert did_you_mean("zzz", ["beta", "alpha", "beta"]) == " Choose from: alpha, beta."


def test_a_long_list_is_cut() -> None:
    choices = [f"k{index:02}" for index in range(13)]
    assert did_you_mean("zzz", choices[:12]) == f" Choose from: {', '.join(choices[:12])}."
    assert did_you_mean("zzz", choices) == f" Choose from: {', '.join(choices[:12])}, …."


def test_without_choices_nothing_is_said() -> None:
    assert did_you_mean("x", []) == ""
    assert did_you_mean("x", iter(())) == ""


def test_where_choices_were_listed_only_a_near_one_is_named() -> None:
    assert nearest("mixpu", ["mixup", "alpha"]) == " Did you mean 'mixup'?"
    assert nearest("zzz", ["mixup", "alpha"]) == nearest("zzz", []) == ""
