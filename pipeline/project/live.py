"""What is training right now, in MLflow."""

from pathlib import Path


def live(port: int = 5000, work: Path = Path(".work")) -> None:
    """Show the curves of what is training right now in MLflow, until Ctrl-C."""
    from pipeline.track.follow import follow
    from pipeline.track.view import view_link

    print(
        f"Open {view_link(port, 'training')} (served by `handdown ui`). Ctrl-C ends this, not the training.",
        flush=True,
    )
    try:
        follow(work)
    except KeyboardInterrupt:
        return
