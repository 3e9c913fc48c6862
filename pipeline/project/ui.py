"""MLflow on this machine, open on this project's runs."""

import os

from pipeline.project.dvc import BIN


def ui(port: int = 5000) -> None:
    """Serve MLflow on this machine until Ctrl-C, and print the link to this project's runs."""
    from pipeline.track import view_link

    link = view_link(port)
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith("http"):
        print(f"Open {link}")
        return
    print(f"Open {link} (ready in about ten seconds; Ctrl-C stops it)", flush=True)
    hosts = f"localhost:{port},127.0.0.1:{port}"
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        # not an option: everybody on this machine could read its password in the list of processes
        "MLFLOW_BACKEND_STORE_URI": address or "sqlite:///mlflow.db",
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    server = [
        "mlflow",
        "server",
        "--workers",
        "1",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--allowed-hosts",
        hosts,
    ]
    store = ["--artifacts-destination", "./mlartifacts"]
    os.execvpe(BIN / "mlflow", [*server, *store], environment)  # noqa: S606
