import platform
from pathlib import Path

from pipeline.export import machine


def test_it_names_the_cpu_and_the_instruction_sets_that_matter(tmp_path: Path) -> None:
    one = "processor : {}\nmodel name : Some CPU @ 2 GHz\nflags : fpu avx2 avx512_vnni sse\n\n"
    (tmp_path / "cpuinfo").write_text(one.format(0) + one.format(1))
    assert machine.cpu(tmp_path / "cpuinfo") == {
        "model": "Some CPU @ 2 GHz",
        "flags": ["avx2", "avx512_vnni"],
    }
    assert machine.has_vnni(["avx2", "avx512_vnni"])
    assert not machine.has_vnni(["avx2", "avx512f"])


def test_without_cpuinfo_it_names_the_architecture(tmp_path: Path) -> None:
    assert machine.cpu(tmp_path / "nowhere") == {"model": platform.machine(), "flags": []}
