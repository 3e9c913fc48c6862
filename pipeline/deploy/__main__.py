"""`handdown deploy`: every command for a bundle. Each one imports only what it needs."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pipeline.deploy import trouble
from pipeline.deploy.access import origin_of
from pipeline.deploy.limits import Limits
from pipeline.deploy.program import IS_PACKED, PROGRAM, missing
from pipeline.deploy.read_bundle import FORMATS, BundleError, open_bundle

if TYPE_CHECKING:  # `doctor` works without numpy
    from pipeline.deploy.predictor import Predictor

Run = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    run: Run = args.run
    try:
        code = run(args)
        sys.stdout.flush()
        return code
    except BundleError as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(missing(error), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `... | head`
        _say_no_more()
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (said := trouble.in_words(error)) is None:
            raise
        print(said, file=sys.stderr)
        _say_no_more()  # if it was the output that cannot be written
        return 2


def _say_no_more() -> None:
    """Without this, Python would write the rest of the output when it ends, and fail again."""
    with suppress(OSError):  # an output that is no file needs nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _predict(args: argparse.Namespace) -> int:
    from pipeline.deploy import predict

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # prints file names that are not UTF-8 unchanged
    return predict.command(
        _predictor(args), args.pictures, style=args.style, top=args.top, threads=args.threads
    )


def _verify(args: argparse.Namespace) -> int:
    from pipeline.deploy import verify

    return verify.command(args.bundle, expect=args.expect)


def _info(args: argparse.Namespace) -> int:
    from pipeline.deploy import info

    print(info.text(open_bundle(args.bundle)), end="")
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    from pipeline.deploy import benchmark_bundle

    return benchmark_bundle.command(
        args.bundle, threads=args.threads, rounds=args.rounds, seconds=args.seconds
    )


def _serve(args: argparse.Namespace) -> int:
    from pipeline.deploy.serve import serve

    limits = Limits(**{limit.name: getattr(args, f"max_{limit.name}") for limit in fields(Limits)})
    return serve(
        _predictor(args),
        host=args.host,
        port=args.port,
        limits=limits,
        threads=args.threads,
        origins=tuple(args.allow_origin),
    )


def _page(args: argparse.Namespace) -> int:
    from pipeline.deploy import browser_page

    out = args.out or Path(f"{args.bundle.resolve().name}.html")
    return browser_page.command(open_bundle(args.bundle), runtime=args.runtime, out=out, format=args.format)


def _pack(args: argparse.Namespace) -> int:
    from pipeline.deploy import pack

    pack.pack(args.out)
    print(
        f"{args.out} is written. It runs on any machine with numpy, Pillow and onnxruntime: "
        f"`python {args.out} predict BUNDLE PICTURES...`"
    )
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from pipeline.deploy import doctor

    return doctor.command(args.provider)


def _predictor(args: argparse.Namespace) -> "Predictor":
    from pipeline.deploy.predictor import Predictor

    warnings.simplefilter("ignore")  # Pillow warns about unusual files
    providers = args.provider or ("cpu",)
    return Predictor(
        args.bundle,
        format=args.format,
        threads=args.threads,
        providers=providers,
        min_confidence=args.min_confidence,
        expect=args.expect,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Use a bundle, check it and measure it on this machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_predict(commands)
    _add_verify(commands)
    _add_info(commands)
    _add_benchmark(commands)
    _add_serve(commands)
    _add_page(commands)
    if not IS_PACKED:
        _add_pack(commands)
    _add_doctor(commands)
    return parser


def _add_predict(commands: Commands) -> None:
    parser = _add(commands, "predict", _predict, "print the class of pictures")
    parser.add_argument("pictures", type=Path, nargs="+", help="picture files, or folders of any size")
    style = parser.add_mutually_exclusive_group()
    style.add_argument(
        "--json",
        dest="style",
        action="store_const",
        const="json",
        default="table",
        help="print one JSON object for each picture",
    )
    style.add_argument("--csv", dest="style", action="store_const", const="csv", help="print a CSV table")
    parser.add_argument(
        "--top", type=_count, default=1, metavar="N", help="show the N likeliest classes (default: 1)"
    )
    _add_runtime(parser)


def _add_verify(commands: Commands) -> None:
    summary = "check that a bundle is whole and answers here as it did where it was exported"
    _add_expect(_add(commands, "verify", _verify, summary))


def _add_info(commands: Commands) -> None:
    _add(commands, "info", _info, "print the facts of a bundle: classes, files, measurements, origin")


def _add_benchmark(commands: Commands) -> None:
    parser = _add(commands, "benchmark", _benchmark, "measure how fast each format is on this machine")
    parser.add_argument(
        "--threads", type=_count, default=1, metavar="N", help="cores that one batch may use (default: 1)"
    )
    parser.add_argument(
        "--rounds", type=_count, default=3, metavar="N", help="processes for each format (default: 3)"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="time for each batch size (default: 1)"
    )


def _add_serve(commands: Commands) -> None:
    summary = "answer over HTTP (also needs starlette, uvicorn and python-multipart)"
    parser = _add(commands, "serve", _serve, summary)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default: 127.0.0.1, which only this machine can reach)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="the port to listen on; 0 takes a free one (default: 8000)"
    )
    parser.add_argument(
        "--allow-origin",
        type=_origin,
        action="append",
        default=[],
        metavar="URL",
        help="another site whose pages may use it, such as https://host; can be repeated (default: none)",
    )
    for limit in fields(Limits):
        parser.add_argument(
            f"--max-{limit.name.replace('_', '-')}",
            type=float if isinstance(limit.default, float) else _count,
            default=limit.default,
            metavar="N",
            help=f"{limit.metadata['help']} (default: {limit.default})",
        )
    _add_runtime(parser)


def _add_page(commands: Commands) -> None:
    summary = "write one HTML file that runs the student in a browser, without a network"
    parser = _add(commands, "page", _page, summary)
    parser.add_argument(
        "--runtime",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the folder where `npm install onnxruntime-web` was run (default: this folder)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the file to write (default: BUNDLE.html in this folder)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="onnx", help="the student to put into the page (default: onnx)"
    )


def _add_pack(commands: Commands) -> None:
    parser = commands.add_parser(
        "pack", help="write one file with these commands, to use without this project"
    )
    parser.set_defaults(run=_pack)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictor.pyz"),
        metavar="FILE",
        help="the file to write (default: predictor.pyz)",
    )


def _add_doctor(commands: Commands) -> None:
    parser = commands.add_parser("doctor", help="show which runtime really works on this machine")
    parser.set_defaults(run=_doctor)
    parser.add_argument(
        "--provider", default="cpu", metavar="NAME", help="the provider that must work (default: cpu)"
    )


def _add(commands: Commands, name: str, run: Run, summary: str) -> argparse.ArgumentParser:
    """A command whose first argument is a bundle."""
    parser = commands.add_parser(name, help=summary)
    parser.set_defaults(run=run)
    parser.add_argument("bundle", type=Path, help="the folder that stage export wrote")
    return parser


def _add_expect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expect", default="", metavar="FINGERPRINT", help="fail unless the bundle has this fingerprint"
    )


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    _add_expect(parser)
    parser.add_argument(
        "--min-confidence",
        type=float,
        metavar="P",
        help="answer `unknown` where the likeliest class has a smaller probability (default: never)",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="onnx: float32, answers as evaluated; int8: faster (default: onnx)",
    )
    parser.add_argument("--threads", type=_count, default=1, metavar="N", help="cores to use (default: 1)")
    parser.add_argument(
        "--provider",
        action="append",
        metavar="NAME",
        help="cpu, cuda, ...; if it does not work, the command fails and uses no other (default: cpu)",
    )


def _origin(text: str) -> str:
    try:
        return origin_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("give a number of 1 or more")
    return count


if __name__ == "__main__":
    sys.exit(main())
