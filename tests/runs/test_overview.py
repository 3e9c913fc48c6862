import pytest
from world import World

from pipeline import methods
from pipeline.runs.overview import overview, table
from pipeline.taps.answer import Answer


def rows_of(name: str, **settings: object) -> dict[str, list[str]]:
    world = World.make()
    method, step = world.method(name, **settings), world.step(2)
    return {row[0]: row[1:] for row in overview(step.student, step.teacher, method.matched())}


def test_every_map_of_both_networks_has_its_shape_without_the_batch() -> None:
    rows = rows_of("kd")
    assert list(rows) == ["stem", "stage1", "stage2", "stage3", "pooled", "logits"]
    assert rows["stage2"] == ["32 x 4 x 4", "32 x 4 x 4", ""]
    assert rows["logits"] == ["3", "3", "logits"]


def test_maps_that_only_the_teacher_has_are_in_their_place() -> None:
    names = {
        "stem stage1 stage3": "stem stage1 stage2 stage3 stage4",
        "middle stage3": "stem stage1 stage2 middle stage3 stage4",
        "middle": "stem stage1 stage2 stage3 stage4 middle",
    }
    step = World.make().step(2)
    example, logits = step.student.maps["stage1"], step.student.logits
    for student, expected in names.items():
        own, others = [
            Answer(logits, dict.fromkeys(each.split(), example), step.student.pooled, {})
            for each in (student, "stem stage1 stage2 stage3 stage4")
        ]
        rows = overview(own, others, [])
        assert [row[0] for row in rows] == [*expected.split(), "pooled", "logits"]
        assert [row[0] for row in rows if row[1]] == [*student.split(), "pooled", "logits"]


def test_what_a_map_is_matched_with_is_in_its_row() -> None:
    rows = rows_of("fitnet", student_map="stage1", teacher_map="stage3", joint=True)
    assert (rows["stage1"][2], rows["stage3"][2], rows["logits"][2]) == ("stage3", "", "logits")


def test_the_matches_of_a_partner_are_shown_too() -> None:
    rows = rows_of("at", kd_weight=1.0, combine={"name": "crd"})
    assert {name: row[2] for name, row in rows.items() if row[2]} == {
        "stage1": "stage1",
        "stage2": "stage2",
        "stage3": "stage3",
        "pooled": "pooled",
        "logits": "logits",
    }


@pytest.mark.parametrize("name", [name for name in methods.names() if name != "ce"])
def test_every_method_shows_what_it_matches(name: str) -> None:
    assert [row for row in rows_of(name).values() if row[2]]


def test_without_a_teacher_only_the_student_is_shown() -> None:
    step = World.make().step(2)
    rows = overview(step.student, None, [])
    assert all(row[2:] == ["", ""] for row in rows)


def test_the_table_is_aligned() -> None:
    lines = table([["stem", "16 x 8 x 8", "16 x 8 x 8", ""], ["logits", "3", "3", "logits"]]).splitlines()
    assert lines[0] == "output  student     teacher     matched with the teacher's"
    assert lines[2] == "logits  3           3           logits"
