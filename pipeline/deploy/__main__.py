"""`python -m pipeline.deploy`: what can be done with a bundle where numpy, Pillow and onnxruntime are all there is."""

import argparse
import os
import sys
import warnings
from dataclasses import fields
from pathlib import Path

from pipeline.deploy.bundle import FORMATS, BundleError, open_bundle
from pipeline.deploy.limits import Limits


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        return _run(given)
    except BundleError as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"{error}. `python -m pipeline.deploy doctor` says what is here.", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _run(given: argparse.Namespace) -> int:
    """Each command imports what it needs and no more."""
    if given.command == "predict":
        from pipeline.deploy import predict
        from pipeline.deploy.predictor import Predictor

        warnings.simplefilter("ignore")  # Pillow's remarks on odd files
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="surrogateescape")  # names of files that aren't UTF-8 come out as they are
        predictor = Predictor(given.bundle, format=given.format, threads=given.threads, providers=given.provider or ("cpu",))
        return predict.command(predictor, given.pictures, form=given.form, top=given.top, threads=given.threads)
    if given.command == "verify":
        from pipeline.deploy import verify

        return verify.command(given.bundle, expect=given.expect)
    if given.command == "info":
        from pipeline.deploy import info

        print(info.text(open_bundle(given.bundle)), end="")
        return 0
    if given.command == "bench":
        from pipeline.deploy import bench

        return bench.command(given.bundle, threads=given.threads, rounds=given.rounds, seconds=given.seconds)
    if given.command == "serve":
        from pipeline.deploy.predictor import Predictor
        from pipeline.deploy.serve import serve

        warnings.simplefilter("ignore")
        predictor = Predictor(given.bundle, format=given.format, threads=given.threads, providers=given.provider or ("cpu",))
        limits = Limits(**{each.name: getattr(given, f"max_{each.name}") for each in fields(Limits)})
        return serve(predictor, host=given.host, port=given.port, limits=limits, threads=given.threads)
    if given.command == "page":
        from pipeline.deploy import page

        bundle = open_bundle(given.bundle)
        return page.command(
            bundle, runtime=given.runtime, out=given.out or Path(f"{given.bundle.resolve().name}.html"), format=given.format
        )
    if given.command == "pack":
        from pipeline.deploy import pack

        pack.pack(given.out)
        print(f"{given.out}: `python {given.out} predict BUNDLE PICTURES...` on any machine with numpy, Pillow and onnxruntime.")
        return 0
    from pipeline.deploy import doctor

    return doctor.command(given.provider)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.deploy", description="Answers from a bundle, and what it is worth here.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predict = _command(commands, "predict", "the classes of pictures")
    predict.add_argument("pictures", type=Path, nargs="+", help="files, or folders of any size")
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", default="table", help="one JSON object a line")
    form.add_argument("--csv", dest="form", action="store_const", const="csv")
    predict.add_argument("--top", type=_count, default=1, metavar="N", help="the N likeliest classes (1)")
    _runtime(predict)

    verify = _command(commands, "verify", "is it whole, and does it answer here as where it was exported?")
    verify.add_argument("--expect", default="", metavar="FINGERPRINT", help="the fingerprint it must have")

    _command(commands, "info", "what it says of itself")

    bench = _command(commands, "bench", "how fast it is here")
    bench.add_argument("--threads", type=_count, default=1, metavar="N", help="cores that a batch may use (1)")
    bench.add_argument("--rounds", type=_count, default=3, metavar="N", help="processes a format (3)")
    bench.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of measuring for each batch size (1)")

    serve = _command(commands, "serve", "over HTTP (needs starlette, uvicorn and python-multipart too)")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1: this machine only)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (8000)")
    for each in fields(Limits):
        kind = float if isinstance(each.default, float) else _count
        said = f"{each.metadata['says']} ({each.default})"
        serve.add_argument(f"--max-{each.name}", type=kind, default=each.default, metavar="N", help=said)
    _runtime(serve)

    page = _command(commands, "page", "one HTML file that runs the student in a browser, without a network")
    page.add_argument("--runtime", type=Path, default=Path(), metavar="DIR", help="where `npm install onnxruntime-web` was run (here)")
    page.add_argument("--out", type=Path, metavar="FILE", help="the file to write (BUNDLE.html, here)")
    page.add_argument("--format", choices=FORMATS, default="onnx", help="which student goes in (onnx)")

    pack = commands.add_parser("pack", help="all of this as one file, for machines without this project")
    pack.add_argument("--out", type=Path, default=Path("predictor.pyz"), metavar="FILE", help="the file to write (predictor.pyz)")

    doctor = commands.add_parser("doctor", help="which runtime is really here")
    doctor.add_argument("--provider", default="cpu", metavar="NAME", help="the one that has to work (cpu)")
    return parser


def _command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help)
    command.add_argument("bundle", type=Path, help="the folder that the export stage wrote")
    return command


def _runtime(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=FORMATS, default="onnx", help="onnx (float32, answers as evaluated) or int8 (faster)")
    command.add_argument("--threads", type=_count, default=1, metavar="N", help="cores to use (1)")
    command.add_argument("--provider", action="append", metavar="NAME", help="cpu, cuda, ...; it is used or refused, never replaced")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("1 or more")
    return count


if __name__ == "__main__":
    sys.exit(main())
