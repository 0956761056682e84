"""``octavo``: the commands by name, and how errors leave the program.

A command's module is imported when it is called, so that ``octavo --help`` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

import click
from click.exceptions import NoArgsIsHelpError

from octavo.errors import OctavoError, UsageError, nearest
from octavo.version import __version__

COMMANDS = {
    "run": ("octavo.cli.run:run", "Stream an answer, or chat."),
    "serve": ("octavo.cli.serve:serve", "Serve a model to clients of OpenAI's API."),
    "batch": ("octavo.cli.batch:batch", "Run a file of OpenAI batch requests; resumable."),
    "bench": (
        "octavo.cli.bench:bench",
        "Measure throughput, latency, start, a server, or a step's parts.",
    ),
    "check": ("octavo.cli.check:check", "Prove the engine right on a model, pair by pair."),
    "eval": ("octavo.cli.evaluate:evaluate", "Measure how well a model predicts a text."),
    "export": ("octavo.cli.export:export", "Write a model in another format, quantized if asked for."),
    "inspect": ("octavo.cli.inspect:inspect", "Show what a model is and what fits in memory."),
    "pull": ("octavo.cli.pull:pull", "Fetch a model and print where it is."),
}
"""Name -> where the command is, and its line in the list of commands."""

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


class LazyGroup(click.Group):
    """A group whose commands are known by name and imported when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            raise UsageError(f"no command {cmd_name!r}{nearest(cmd_name, COMMANDS)}; accepted: {', '.join(COMMANDS)}")
        module, name = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="octavo")
def cli() -> None:
    """Octavo runs large language models.

    MODEL is an alias (smollm2-135m), a hub repository (Qwen/Qwen2.5-0.5B-Instruct), a folder, or a .gguf file.
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for a bad model or file, 2 for bad usage, 130 after Ctrl-C."""
    sys.exit(_run(argv))


def _run(argv: list[str] | None) -> int:
    _tolerate_any_text()
    try:
        result = cli.main(args=argv, prog_name="octavo", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except NoArgsIsHelpError as help_:
        click.echo(help_.format_message())
        return 2
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except OctavoError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):  # click has ended the line with the ^C already
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Standard output must not be flushed again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error), 1)


def _tolerate_any_text() -> None:
    """No bytes on standard input and no letter of an answer may be the end of the program.

    Bytes that are no text become lone surrogates, as in arguments; the tokenizer refuses them and says where.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _fail(message: str, code: int) -> int:
    click.echo("octavo: " + " ".join(message.split()), err=True)
    return code


if __name__ == "__main__":
    main()
