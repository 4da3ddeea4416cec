"""How far a validation has come, by a clock of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.validation.progress import Progress, Tracker, stages_of
from edgepack.validation.settings import ValidationSettings

STAGES = stages_of(ValidationSettings(repeat=3, reference="ref", golden=Path("g.jsonl")))


class Clock:
    """`phase` begins at second `at`."""

    def __init__(self, stages: tuple[str, ...], budget_s: float = 1000.0) -> None:
        self.now = 0.0
        self.told: list[Progress] = []
        self.tracker = Tracker(stages, self.told.append, time_budget_s=budget_s, clock=lambda: self.now)

    def at(self, second: float, phase: str) -> Progress:
        self.now = second
        self.tracker(phase)
        return self.told[-1]


def test_every_process_is_a_stage() -> None:
    assert STAGES == (
        "verify", "first load", "cold load 1", "run 1", "cold load 2", "run 2", "cold load 3", "run 3",
        "tokenize", "reference", "package", "golden",
    )  # fmt: skip
    assert stages_of(ValidationSettings(repeat=1)) == ("verify", "first load", "cold load 1", "run 1")


@pytest.mark.parametrize(
    ("phase", "stage"),
    [
        ("verify", 1), ("first load", 2), ("cold load 2", 5), ("run 1: load", 4), ("run 3: prefill 1024", 8),
        ("tokenize", 9), ("reference load", 10), ("reference 7/14", 10), ("package 1/14", 11), ("golden load", 12),
        ("judging golden 2/5", 12),
    ],
)  # fmt: skip
def test_words_name_their_stage(phase: str, stage: int) -> None:
    told = Clock(STAGES).at(3, phase)
    assert (told.phase, told.stage, told.stages, told.elapsed_s) == (phase, stage, 12, 3)


def test_the_tenth_run_is_not_the_first_and_other_words_stay_where_they_are() -> None:
    clock = Clock(stages_of(ValidationSettings(repeat=11)))
    assert clock.at(0, "run 10: decode").stage == clock.at(1, "run 10: decode").stage == 22
    assert clock.at(2, "conversation 1/4").stage == 22


def test_what_is_left_is_known_from_what_was_seen() -> None:
    clock = Clock(stages_of(ValidationSettings(repeat=2)))
    assert clock.at(0, "verify").left_s is None
    assert clock.at(5, "first load").left_s is None
    told = clock.at(25, "cold load 1")  # of 20 s at most, twice; nobody knows about a run
    assert (told.left_s, told.whole) == (40, False)
    told = clock.at(31, "run 1: load")  # a cold load takes 6 s
    assert (told.left_s, told.whole) == (6, False)
    told = clock.at(61, "cold load 2")  # a run 30 s
    assert (told.left_s, told.whole) == (36, True)
    assert clock.at(67, "run 2: load").left_s == 30
    assert clock.at(80, "run 2: decode").left_s == 17
    assert clock.at(200, "run 2: long decode").left_s == 0


def test_beyond_the_budget_repetitions_get_shorter_so_that_it_is_a_bound() -> None:
    clock = Clock(stages_of(ValidationSettings(repeat=3)), budget_s=100)
    clock.at(0, "first load")
    clock.at(10, "cold load 1")
    clock.at(12, "run 1: load")
    told = clock.at(62, "cold load 2")
    assert (told.left_s, told.whole) == (38, False)


def test_parts_that_are_counted_tell_the_rest_without_the_load_before_them() -> None:
    clock = Clock(("reference", "package"))
    clock.at(0, "reference load")
    assert clock.at(90, "reference 1/5").left_s is None
    told = clock.at(94, "reference 3/5")  # two parts in 4 s
    assert (told.left_s, told.whole) == (6, False)
