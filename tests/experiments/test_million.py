from experiments import million


def test_a_row_for_each_step() -> None:
    *_, prepared, trained = million.table([1300], pixels=8).splitlines()
    for row, step in ((prepared, "prepare"), (trained, "an epoch of kd")):
        cells = row.strip("| ").split(" | ")
        assert cells[:2] == ["1,300", step]
        _, _, rate, memory, before, disk = (float(each.replace(",", "")) for each in cells[2:])
        assert rate > 10
        assert memory >= before > 50
        # 1,300 images of 192 bytes, and what is known of each
        assert disk <= 2
