"""What trains, as Slurm job arrays: one task for each part of the graph.

DVC's locks hold for the processes of one machine. So a task works in a copy of the project, a git clone of
its own, and shares DVC's cache with it. There DVC remembers what each stage made (its run-cache), so that
`handdown run` brings all of it home without training.
"""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import atomic_file
from pipeline.project.ahead import Stage, stages_ahead
from pipeline.project.dvc import printed_by_dvc, programs
from pipeline.project.locks import mend_locks
from pipeline.project.parts import Part
from pipeline.project.side_by_side import begun
from pipeline.settings import InputError

FOLDER = Path(".work/slurm")
MADE = ("dvc.lock", "tool/dvc.lock", "metrics/")  # by the graph: a copy does not need them from git
SCRIPT = """#!/bin/bash
#SBATCH --job-name=handdown
#SBATCH --array=0-{last}
{options}# Each task makes a part of the graph in a copy of the project. `handdown run` brings it home later.
set -euo pipefail
NAMES=({names})
THERE=({there})  # stages that have run: their files come out of DVC's cache
STAGES=({stages})  # to make; those that another task has made come out of the cache, too
TASK="$SLURM_ARRAY_TASK_ID"
PROJECT={project}
FOLDER="$PROJECT/{folder}"
COPY="$FOLDER/${{NAMES[$TASK]}}"
export PATH={programs}:"$PATH" OMP_NUM_THREADS="${{OMP_NUM_THREADS:-${{SLURM_CPUS_ON_NODE:-1}}}}"
if [ ! -f "$COPY/"{inside}dvc.yaml ]; then  # or else it goes on where it was stopped
  rm -rf "$COPY"
  git clone --quiet --no-checkout {repository} "$COPY"
  git -C "$COPY" checkout --quiet {commit}
fi
cd "$COPY/"{inside}
cp "$FOLDER/dvc.lock" dvc.lock
printf '[cache]\\n    dir = "%s"\\n    type = "hardlink,symlink,copy"\\n' {cache} > .dvc/config.local
dvc checkout --quiet ${{THERE[$TASK]}}
dvc repro -s ${{STAGES[$TASK]}}
cd "$FOLDER"
rm -rf "$COPY"
"""


def slurm(options: str = "", send: bool = False) -> None:
    """Show Slurm files for all that trains (--options="--gres=gpu:1 --time=4:00:00"), and --send them."""
    mend_locks()
    if send and shutil.which("sbatch") is None:
        raise InputError("There is no program sbatch here. Call this on a machine that can send to Slurm.")
    commit = _commit()
    stages = stages_ahead()
    todo = begun(stages)
    if not todo:
        print("Nothing is left to train. Make the rest: handdown run")
        return
    folder = FOLDER / commit[:12]
    files = write_files(todo, stages, folder, options, commit)
    for file in files:
        print(f"\n{file}:\n\n{file.read_text()}", flush=True)
    if send:
        _send(files)
        print(f"Their output will be in {folder}. When they have ended: handdown run")
    else:
        print("To send them, call this again with --send.")


def write_files(
    todo: Sequence[Part], stages: Sequence[Stage], folder: Path, options: str, commit: str
) -> list[Path]:
    """A file for each array: first the parts that need no other one, then those that need these ..."""
    if "\n" in options:
        raise InputError("--options: write all options of sbatch on one line.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile("dvc.lock", folder / "dvc.lock")
    files = []
    for number, array in enumerate(arrays(todo), start=1):
        files.append(folder / f"{number}.sbatch")
        with atomic_file(files[-1]) as file:
            file.write_text(script(array, todo, stages, folder, options, commit))
    return files


def arrays(todo: Sequence[Part]) -> list[list[Part]]:
    """The parts, so that each array needs only those before it."""
    found: list[list[Part]] = []
    left, done = list(todo), set[str]()
    while left:
        found.append([part for part in left if part.after <= done])
        done |= {part.name for part in found[-1]}
        left = [part for part in left if part.name not in done]
    return found


def script(
    array: Sequence[Part],
    todo: Sequence[Part],
    stages: Sequence[Stage],
    folder: Path,
    options: str,
    commit: str,
) -> str:
    there, own = zip(*(_stages_of(part, todo, stages) for part in array), strict=True)
    return SCRIPT.format(
        last=len(array) - 1,
        options=f"#SBATCH {options}\n" if options else "",
        names=shlex.join(part.name for part in array),
        there=_words(there),
        stages=_words(own),
        project=shlex.quote(str(Path.cwd())),
        repository=shlex.quote(_git("rev-parse", "--show-toplevel").strip()),
        inside=shlex.quote(_git("rev-parse", "--show-prefix").strip()),
        folder=folder,
        programs=shlex.quote(str(programs())),
        commit=commit,
        cache=shlex.quote(printed_by_dvc("cache", "dir").strip()),
    )


def _stages_of(part: Part, todo: Sequence[Part], stages: Sequence[Stage]) -> tuple[list[str], list[str]]:
    """What has run and is needed; and what is to run, with that of the parts before, in DVC's order."""
    by_name = {each.name: each for each in todo}
    of_parts, waiting = set[str](), [part]
    while waiting:
        each = waiting.pop()
        of_parts |= set(each.stages)
        waiting += [by_name[name] for name in each.after]
    own = [stage for stage in stages if stage.name in of_parts]
    needed = {name for stage in own for name in stage.before} - of_parts
    return [stage.name for stage in stages if stage.name in needed], [stage.name for stage in own]


def _words(lists: Sequence[Sequence[str]]) -> str:
    """For an array of bash, each list as one word of it."""
    return " ".join(shlex.quote(" ".join(names)) for names in lists)


def _commit() -> str:
    """What the copies are made of."""
    relative = ("-c", "color.status=false", "-c", "status.relativePaths=true")  # a project may be in a folder
    changed = [line[3:] for line in _git(*relative, "status", "--short", "--", ".").splitlines()]
    if own := [path for path in changed if not path.strip('"').startswith(MADE)]:
        raise InputError(
            f"{', '.join(own)}: not committed, and the tasks work on copies of the last commit. Commit "
            "first: git add -A, then git commit."
        )
    return _git("rev-parse", "HEAD").strip()


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        raise InputError(f"`git {' '.join(words)}` failed: {done.stderr.strip()}")
    return done.stdout


def _send(files: Sequence[Path]) -> None:
    """Each array begins when the one before it has ended well. Slurm writes their output beside the files."""
    before: list[str] = []
    for file in files:
        command = ["sbatch", "--parsable", *before, file.name]
        done = subprocess.run(  # noqa: S603
            command,
            cwd=file.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise InputError(f"`{shlex.join(command)}` failed: {done.stderr.strip()}")
        job = done.stdout.strip().partition(";")[0]  # after it, the name of a cluster
        print(f"{file} is job {job}", flush=True)
        before = [f"--dependency=afterok:{job}"]
