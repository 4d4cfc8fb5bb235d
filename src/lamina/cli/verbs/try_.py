"""``lamina try``."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamina.cli import output, rootless
from lamina.cli.messages import message, say
from lamina.cli.process import finishing
from lamina.cli.session import Session
from lamina.errors import InvalidName, LaminaError

if TYPE_CHECKING:
    from lamina.archive.changes import Change
    from lamina.sandbox.fork import Fork
    from lamina.sandbox.helper import Helper

_ANSWERS = ["keep", "apply", "discard"]


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--keep", metavar="NAME", help="Keep the changes as an image; don't ask.")
@click.option("--apply", is_flag=True, help="Do the changes to this machine; don't ask.")
@click.option("--discard", is_flag=True, help="Forget the changes; don't ask.")
@click.option("--in", "only", metavar="DIR",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Fork only this directory; the rest of the machine is read-only.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True,
              help="Print the changes as JSON; the command's output goes to stderr.")  # fmt: skip
@click.argument("command", metavar="COMMAND [ARG]...", nargs=-1, required=True,
                type=click.UNPROCESSED)  # fmt: skip
@click.pass_obj
def command(
    session: Session,
    keep: str | None,
    apply: bool,
    discard: bool,
    only: Path | None,
    as_json: bool,
    command: tuple[str, ...],
) -> int:
    """Run a command on a fork of this machine, then keep or undo.

    It sees this machine as it is: files, network, user, directory, terminal. What it writes goes
    to a layer. When it has ended, shows what changed, and asks whether to keep that as an image,
    apply it to the machine or discard it; without a terminal and without a flag, discards. The
    exit status is the command's; 125 if Lamina failed.

    \b
    Examples:
      lamina try -- make install
      lamina try --apply --in /etc -- sed -i s/old/new/ /etc/hosts
      lamina try --keep tools:1 -- apt-get install -y build-essential
    """
    if (keep is not None) + apply + discard > 1:
        raise click.UsageError("--keep, --apply and --discard are one choice")
    if keep is not None:
        from lamina.oci.reference import normalize

        keep = normalize(keep)  # now, not after an hour's work
    decided = "keep" if keep else "apply" if apply else "discard" if discard else None
    return _Trial(session, decided, keep, as_json).run(command, only)


class _Trial:
    """One command's fork, from begin to end."""

    def __init__(
        self, session: Session, decided: str | None, name: str | None, as_json: bool
    ) -> None:
        self.session = session
        self.decided = decided
        self.name = name
        self.as_json = as_json
        self.gathered = False
        self.asks = decided is None and not as_json and sys.stdin.isatty() and sys.stderr.isatty()

    def run(self, argv: tuple[str, ...], only: Path | None) -> int:
        from lamina.sandbox.helper import Helper

        # What is to run the command starts while the fork is prepared.
        with Helper("forked", stdout=sys.stderr if self.as_json else None) as helper:
            return self._run(argv, only, helper)

    def _run(self, argv: tuple[str, ...], only: Path | None, helper: Helper) -> int:
        from lamina.sandbox.fork import fork_machine
        from lamina.store.leases import Leases
        from lamina.store.roots import prepare

        settings = rootless.locate(self.session.settings)
        assert settings.root is not None
        assert settings.run_root is not None
        prepare(settings.root, settings.run_root)
        leases = Leases(settings.root / "staging")  # a fork left by a crash is swept with the rest
        with closing(leases), leases.path() as workdir:
            hidden = [settings.root, settings.run_root]
            with fork_machine(workdir, only=only, hide=hidden) as fork:
                result = fork.run(argv, helper=helper, forward_signals=True)
                self.conclude(fork, result.returncode)
                return result.returncode

    def conclude(self, fork: Fork, status: int) -> None:
        """Show the changes, and do with them what was decided, now or before."""
        changes, sizes = fork.changes(), fork.sizes()
        if not self.as_json:
            _show(changes, sizes, quiet=self.session.quiet and not self.asks)
        outcome, image = "discarded", None
        while changes:
            choice = self.decided or (self.asks and _ask()) or "discard"
            try:
                if choice == "apply":
                    self.apply(fork)
                    outcome = "applied"
                elif choice == "keep":
                    outcome, image = "kept", self.keep(fork)
            except (LaminaError, OSError) as error:
                if not self.asks:
                    raise
                say(message(error))  # and ask again: the changes are at stake
                continue
            break
        if self.as_json:
            output.print_json(
                {
                    "status": status,
                    "changes": [_described(change, sizes) for change in changes],
                    "outcome": outcome,
                    "image": image,
                }
            )
        elif changes:
            self.session.remark(f"kept as {self.name}" if image else outcome)

    def apply(self, fork: Fork) -> None:
        """Do the changes to this machine."""
        if self.gathered:
            raise LaminaError("the changes were put together for an image: keep or discard them")
        with finishing("applying"):
            fork.apply()

    def keep(self, fork: Fork) -> str:
        """Make an image of the changes, one layer; its id. Can be tried again."""
        from lamina.archive.pack import pack
        from lamina.archive.stream import open_chunks
        from lamina.oci.epoch import source_date_epoch
        from lamina.store.packing import pack_options

        if self.name is None:
            self.name = click.prompt("Name of the image", value_proc=_image_name, err=True)
        with self.session.store(progress=True) as store:
            layer = fork.workdir / "kept"
            if not self.gathered:
                fork.gather(layer)
                self.gathered = True
            options = pack_options(clamp_mtime=source_date_epoch())
            with closing(open_chunks(pack([layer], fmt=fork.format, options=options))) as tar:
                return store.import_tar(tar, self.name).id


def _ask() -> str:
    question = "Keep as an image, apply to this machine, or discard?"
    answer: str = click.prompt(question, value_proc=_choice, default="discard", err=True)
    return answer


def _choice(typed: str) -> str:
    """The answer that was typed, or its first letters."""
    found = [answer for answer in _ANSWERS if answer.startswith(typed.strip().lower())]
    if len(found) != 1:
        raise click.UsageError(f"one of {', '.join(_ANSWERS)}")
    return found[0]


def _image_name(typed: str) -> str:
    from lamina.oci.reference import normalize

    try:
        return normalize(typed.strip())
    except InvalidName as error:
        raise click.UsageError(str(error)) from None  # asks again: the changes are at stake


def _show(changes: list[Change], sizes: dict[bytes, int], *, quiet: bool) -> None:
    """On stderr, for stdout is the command's: a tree for a person, else a line a change."""
    if quiet:
        return
    sys.stdout.flush()
    if not changes:
        say("nothing changed")
    elif sys.stderr.isatty():
        from lamina.cli.tree import print_changes

        print_changes(changes, sizes)
    else:
        for change in changes:
            size = sizes.get(change.path)
            shown = f"   {output.size(size)}" if size is not None else ""
            os.write(2, str(change).encode("utf-8", "surrogateescape") + f"{shown}\n".encode())


def _described(change: Change, sizes: dict[bytes, int]) -> dict[str, object]:
    return {
        "path": os.fsdecode(change.path),
        "kind": str(change.kind),
        "size": sizes.get(change.path),
    }
