from pathlib import Path

from pipeline.track.follow import follow
from pipeline.track.view import view_link
from stages.entry import command


def stage(work: Path, port: int) -> None:
    """What trains right now in MLflow, until Ctrl-C; no part of the graph."""
    print(f"Open {view_link(port, 'training')} (served by `make ui`). Ctrl-C ends this, not the training.", flush=True)
    try:
        follow(work)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    command(stage)
