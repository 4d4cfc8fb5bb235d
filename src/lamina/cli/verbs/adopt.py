"""``lamina adopt``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import click

from lamina.cli import adopting, output
from lamina.cli.messages import say
from lamina.cli.session import Session

if TYPE_CHECKING:
    from lamina.store.adopt import DockerSource

_MODES = ("check", "bring", "read_only", "in_place")


class _Given(NamedTuple):
    """What the command line says; see the options."""

    docker_root: str
    names: tuple[str, ...]
    check: bool
    bring: bool
    read_only: bool
    in_place: bool
    target: str | None
    delete_source: bool
    leave_out_damaged: bool
    force: bool
    dry_run: bool
    copy: bool
    no_verify: bool
    form: str

    @property
    def json(self) -> bool:
        return self.form == "json"


@click.command()
@click.argument("docker_root", metavar="DOCKER_ROOT", type=click.Path())
@click.argument("names", metavar="[IMAGE|CONTAINER]...", nargs=-1)
@click.option("--check", is_flag=True,
              help="Read all layers, and verify that each gives back its tar.")  # fmt: skip
@click.option("--bring", is_flag=True, help="Bring images and containers into the store.")
@click.option("--read-only", is_flag=True,
              help="Use them where they lie; what containers write goes to the store.")  # fmt: skip
@click.option("--in-place", is_flag=True,
              help="Rewrite the Docker root for another storage driver of Docker's.")  # fmt: skip
@click.option("--to", "target", type=click.Choice(["docker-overlay2"]),
              help="What --in-place rewrites it to.")  # fmt: skip
@click.option("--delete-source", is_flag=True,
              help="With --in-place: delete the old tree, once it was rewritten.")  # fmt: skip
@click.option("--leave-out-damaged", is_flag=True,
              help="With --in-place: go on without what is damaged.")  # fmt: skip
@click.option("--force", is_flag=True,
              help="With --delete-source: delete also what only the old tree has.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--copy", is_flag=True, help="With --bring: share no files by hard links.")
@click.option("--no-verify", is_flag=True, help="Do not verify the layers that are taken over.")
@output.format_option
@click.pass_obj
def command(session: Session, /, **options: object) -> int:
    """Take over images and containers that Docker left on AUFS.

    DOCKER_ROOT is the directory of a Docker up to version 23 whose storage driver was aufs, such
    as /var/lib/docker; no dockerd may run on it. Without --check, --bring, --read-only or
    --in-place this lists what there is and what is missing or damaged, and changes nothing. An
    adoption that was interrupted is continued by the same command.

    \b
    Examples:
      lamina adopt /var/lib/docker --check
      lamina adopt /var/lib/docker --bring --dry-run
      lamina adopt /var/lib/docker --bring
      lamina --driver aufs adopt /var/lib/docker --read-only
      lamina adopt /var/lib/docker --in-place --to docker-overlay2
    """
    given = _Given(**options)  # type: ignore[arg-type]
    _check_usage(given)
    if given.delete_source and not given.target:
        return _delete(given)
    from lamina.store.adopt import DockerSource, require_root

    if given.bring or given.read_only or given.in_place:
        require_root(f"taking over what is in {given.docker_root}")
    with DockerSource(given.docker_root, alone=given.in_place and not given.dry_run) as source:
        if given.in_place:
            status = _rewrite(session, source, given)
        elif given.bring or given.read_only:
            status = _bring(session, source, given)
        else:
            status = _list(session, source, given)
    if given.delete_source and not given.dry_run and not status:
        return _delete(given)
    return status


def _check_usage(given: _Given) -> None:
    modes = [mode for mode in _MODES if getattr(given, mode)]
    if len(modes) > 1:
        shown = " and ".join(f"--{mode.replace('_', '-')}" for mode in modes)
        raise click.UsageError(f"{shown} can't be had at once")
    if (given.target or given.delete_source) and not given.in_place:
        raise click.UsageError("--to and --delete-source go with --in-place")
    if given.in_place and not (given.target or given.delete_source):
        raise click.UsageError("--in-place needs --to docker-overlay2")
    if given.names and given.in_place:
        raise click.UsageError("--in-place rewrites everything: it takes no names")
    if given.copy and not given.bring:
        raise click.UsageError("--copy goes with --bring")
    if given.leave_out_damaged and not given.target:
        raise click.UsageError("--leave-out-damaged goes with --in-place --to")
    if given.force and not given.delete_source:
        raise click.UsageError("--force goes with --delete-source")
    if (given.dry_run or given.no_verify) and (not modes or given.check):
        raise click.UsageError("--dry-run and --no-verify go with --bring, --read-only, --in-place")


def _list(session: Session, source: DockerSource, given: _Given) -> int:
    from lamina.store.adopt import choose, layers_of, verify_all
    from lamina.store.rewrite import remaining_faults

    chosen = choose(source, given.names) if given.names else None
    faults, verified = remaining_faults(source), None
    if given.check:
        layers = layers_of(source, chosen)
        with session.progress() as report:
            faults += verify_all(source, layers, report)
        verified = len(layers)
    return adopting.show_list(session, source, chosen, faults, verified=verified, json=given.json)


def _bring(session: Session, source: DockerSource, given: _Given) -> int:
    from lamina.store.adopt import Way
    from lamina.store.roots import default_root

    source.check_apart(session.settings.root or default_root())
    way = Way.IN_PLACE if given.read_only else Way.COPY if given.copy else Way.LINK
    with session.store(progress=True) as store:
        plan = store.adopt(source, given.names, way=way, verify=not given.no_verify)
        if given.dry_run:
            return adopting.show_plan(session, plan, json=given.json)
        with _told_to_go_on():
            result = plan.run()
        return adopting.show_result(session, plan, result, json=given.json)


def _rewrite(session: Session, source: DockerSource, given: _Given) -> int:
    from lamina.store.rewrite import DamageFound, Rewrite

    work = Rewrite(source, verify=not given.no_verify,
                   leave_out_damaged=given.leave_out_damaged)  # fmt: skip
    if given.dry_run:
        return adopting.show_rewrite(session, work, json=given.json)
    try:
        with session.progress() as report, _told_to_go_on():
            result = work.run(report)
    except DamageFound as error:
        adopting.report(session, error.faults)
        say(f"{error}; --leave-out-damaged rewrites the rest")
        return 1
    status = adopting.show_rewritten(session, work, result, json=given.json)
    if (source.path / "aufs").exists() and not given.delete_source:
        session.remark(
            "the old tree is still there: until it is deleted (--in-place --delete-source), "
            "dockerd must be told to use overlay2 (--storage-driver, or in daemon.json)"
        )
    return status


def _delete(given: _Given) -> int:
    from lamina.store.rewrite import OnlyThere, delete_source, only_in_old

    if given.dry_run:
        print(f"Would delete aufs, image/aufs and lamina-rewrite in {given.docker_root}")
        if only := only_in_old(given.docker_root):
            say(f"only there is {only}: that takes --force")
            return 1
        return 0
    try:
        deleted = delete_source(given.docker_root, force=given.force)
    except OnlyThere as error:
        say(f"{error}; --force deletes that too")
        return 1
    adopting.show_deleted(given.docker_root, deleted, json=given.json)
    return 0


@contextmanager
def _told_to_go_on() -> Iterator[None]:
    """Whoever interrupts this is told how it goes on."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            error.add_note("what is finished stays, and the same command goes on")
        raise
