"""``jax-mtlser demo``: a page in the browser, and an HTTP endpoint, for a trained run."""

import argparse
import importlib.util
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jax_mtlser.commands.command import UsageError, answer_errors, set_up_process

if TYPE_CHECKING:
    from jax_mtlser.inference.recognizer import Recognizer
    from jax_mtlser.serving.examples import Example

__all__ = ["demo_command"]


def demo_command(argv: Sequence[str]) -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        "jax-mtlser demo",
        description="A page to try a trained run on recordings, and POST /predict for programs. There is no "
        "authentication: whoever reaches the port can use it.",
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True, metavar="RUN", help="run folder of a training")
    add("--member", help="member's name, several with commas between them, or all: the mean of their probabilities; "
        "may be left out where there is one only")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=7860, help="default: 7860; 0 for any that is free")
    add("--max-seconds", type=float, default=300.0, metavar="S", help="longest recording (default: 300)")
    add("--max-megabytes", type=float, default=25.0, metavar="MB", help="largest upload (default: 25)")
    add("--examples", type=Path, metavar="DIR", help="recordings to offer (default: test recordings of the run)")
    arguments = parser.parse_args(list(argv[1:]))
    return answer_errors(lambda: _serve(arguments))


def _serve(arguments: argparse.Namespace) -> int:
    missing = [name for name in ("starlette", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} not installed; the page needs: pip install 'jax-mtlser[demo-page]'")
    for flag, value in (("--max-seconds", arguments.max_seconds), ("--max-megabytes", arguments.max_megabytes)):
        if not 0 < value < float("inf"):
            raise UsageError(f"{flag} is {value:g}; it must be greater than 0")
    if arguments.examples is not None and not arguments.examples.is_dir():
        raise UsageError(f"there is no folder {arguments.examples}; name one with recordings for --examples")
    listener = _listen(arguments.host, arguments.port)
    with listener:
        set_up_process()
        import uvicorn

        from jax_mtlser.inference.recognizer import Recognizer
        from jax_mtlser.serving.app import build_app
        from jax_mtlser.serving.guard import is_loopback
        from jax_mtlser.training.progress import Display

        display = Display()
        member = arguments.member
        recognizer = Recognizer.load(arguments.workdir, member if member in (None, "all") else member.split(","))
        examples = _examples(arguments, recognizer)
        own = is_loopback(arguments.host)
        app = build_app(
            recognizer,
            title=arguments.workdir.resolve().name,
            max_seconds=arguments.max_seconds,
            max_megabytes=arguments.max_megabytes,
            examples=examples,
            hosts=() if own else None,
        )
        listener.listen(128)  # whoever follows the printed address waits for the server, and is not turned away
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        members = ", ".join(member.name for member in recognizer.members)
        display.line(f"{members} and {len(examples)} examples at http://{shown}:{port} (Ctrl-C ends it)")
        if not own:
            display.line("anyone who reaches this address can use it: there is no authentication")
        config = uvicorn.Config(app, log_level="warning", server_header=False, limit_concurrency=64)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded, so that a port in use is told at once."""
    if not 0 <= port <= 65_535:  # a resolver would take the remainder
        raise UsageError(f"--port is {port}; it must be 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"cannot listen on {host} port {port}: {error}; name another --host or --port") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host} port {port}: {error}; name another --host or --port") from None
    return listener


def _examples(arguments: argparse.Namespace, recognizer: "Recognizer") -> "list[Example]":
    from jax_mtlser.serving.examples import examples_in_folder, examples_of_run, in_a_row

    longest = arguments.max_seconds
    if arguments.examples is None:
        name = recognizer.members[0].name
        examples = examples_of_run(arguments.workdir, name, recognizer.emotions, longest)
    else:
        examples = examples_in_folder(arguments.examples, longest)
        if not examples:
            raise UsageError(f"{arguments.examples} has no recording that can be used and lasts at most {longest:g} s")
    return examples + in_a_row(examples, longest)
