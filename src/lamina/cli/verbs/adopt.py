"""``lamina adopt``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from lamina.cli import output
from lamina.cli.messages import say
from lamina.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lamina.oci.docker import Fault
    from lamina.store import Store
    from lamina.store.adopt import Adopted, Adoption, DockerSource
    from lamina.store.rewrite import Rewrite


@click.command()
@click.argument("docker_root", metavar="DOCKER_ROOT", type=click.Path())
@click.argument("names", metavar="[IMAGE|CONTAINER]...", nargs=-1)
@click.option("--check", is_flag=True,
              help="Read all layers, and verify that each gives back its tar.")  # fmt: skip
@click.option("--bring", "mode", flag_value="bring",
              help="Bring images and containers into the store.")  # fmt: skip
@click.option("--read-only", "mode", flag_value="read-only",
              help="Use them where they lie; what containers write goes to the store.")  # fmt: skip
@click.option("--in-place", "mode", flag_value="in-place",
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
def command(
    session: Session,
    docker_root: str,
    names: tuple[str, ...],
    check: bool,
    mode: str | None,
    target: str | None,
    delete_source: bool,
    leave_out_damaged: bool,
    force: bool,
    dry_run: bool,
    copy: bool,
    no_verify: bool,
    form: str,
) -> int:
    """Take over images and containers that Docker left on AUFS.

    DOCKER_ROOT is the directory of a Docker up to version 23 whose storage driver was aufs, such
    as /var/lib/docker; no dockerd may run on it. Without --bring, --read-only or --in-place this
    lists what there is and what is missing or damaged, and changes nothing. An adoption that was
    interrupted is continued by the same command.

    \b
    Examples:
      lamina adopt /var/lib/docker --check
      lamina adopt /var/lib/docker --bring --dry-run
      lamina adopt /var/lib/docker --bring
      lamina --driver aufs adopt /var/lib/docker --read-only
      lamina adopt /var/lib/docker --in-place --to docker-overlay2
    """
    _check_usage(names, mode, target, delete_source=delete_source, copy=copy)
    if leave_out_damaged and not target:
        raise click.UsageError("--leave-out-damaged goes with --in-place --to")
    if force and not delete_source:
        raise click.UsageError("--force goes with --delete-source")
    if delete_source and mode == "in-place" and not target:
        return _delete(docker_root, dry_run=dry_run, force=force)
    from lamina.store.adopt import DockerSource, Way
    from lamina.store.roots import default_root

    with DockerSource(docker_root, alone=mode == "in-place" and not dry_run) as source:
        if mode is None:
            return _list(session, source, form, check=check)
        if check and (status := _report(_verified(session, source))):
            return status
        if mode == "in-place":
            from lamina.store.rewrite import Rewrite

            work = Rewrite(source, verify=not (no_verify or check),
                           leave_out_damaged=leave_out_damaged)  # fmt: skip
            if dry_run:
                return _show_rewrite(work)
            with _told_to_go_on():
                status = _rewrite(session, source, work)
            if not delete_source:
                return status
            source.close()
            return _delete(docker_root, dry_run=False, force=force)
        source.check_apart(session.settings.root or default_root())
        way = Way.IN_PLACE if mode == "read-only" else Way.COPY if copy else Way.LINK
        with session.store(progress=True) as store:
            plan = store.adopt(source, names, way=way, verify=not (no_verify or check))
            if dry_run:
                return _show_plan(plan)
            with _told_to_go_on():
                result = plan.run()
            return _show_result(store, plan, result)


@contextmanager
def _told_to_go_on() -> Iterator[None]:
    """Whoever interrupts this is told how it goes on."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            error.add_note("what is finished stays, and the same command goes on")
        raise


def _check_usage(
    names: tuple[str, ...],
    mode: str | None,
    target: str | None,
    *,
    delete_source: bool,
    copy: bool,
) -> None:
    if (target or delete_source) and mode != "in-place":
        raise click.UsageError("--to and --delete-source go with --in-place")
    if mode == "in-place" and not (target or delete_source):
        raise click.UsageError("--in-place needs --to docker-overlay2")
    if names and mode not in ("bring", "read-only"):
        raise click.UsageError("names of images and containers go with --bring or --read-only")
    if copy and mode != "bring":
        raise click.UsageError("--copy goes with --bring")


_REWRITING = {
    "begun": "A rewriting for overlay2 was begun: --in-place --to docker-overlay2 goes on with it.",
    "done": "Rewritten for overlay2: start Docker with that storage driver; --in-place "
    "--delete-source deletes the old tree.",
}

# -- listing ----------------------------------------------------------------------------


def _list(session: Session, source: DockerSource, form: str, *, check: bool) -> int:
    from lamina.store.rewrite import remaining_faults, stage_of

    faults = _verified(session, source) if check else remaining_faults(source)
    stage = stage_of(source.path)
    if form == "json":
        rewriting = stage and stage.value
        output.print_json({**_described(source, faults), "rewriting": rewriting})
        return 1 if faults else 0
    catalog = source.catalog
    rows = [
        [
            ", ".join(image.names) or "<none>",
            output.short(image.id),
            str(len(image.chain)),
            output.size(sum(catalog.layers[id].size for id in image.chain)),
        ]
        for image in catalog.shown()
    ]
    output.print_table(["IMAGE", "IMAGE ID", "LAYERS", "SIZE"], rows)
    print()
    rows = [
        [
            box.name,
            output.short(box.id),
            next(iter(catalog.images[box.image].names), output.short(box.image)),
            output.size(source.survey(box.mount_id).size) if box.name not in bad else "?",
        ]
        for bad in [{fault.id for fault in faults}]
        for box in sorted(catalog.containers.values(), key=lambda box: box.name)
    ]
    output.print_table(["CONTAINER", "CONTAINER ID", "IMAGE", "WRITTEN"], rows)
    if stage is not None:
        print(f"\n{_REWRITING[stage.value]}")
    if check:
        print(f"\nVerified: {len(catalog.layers)} layers, {len(faults)} faults")
    return _report(faults)


def _described(source: DockerSource, faults: list[Fault]) -> dict[str, object]:
    catalog = source.catalog
    return {
        "root": str(source.path),
        "images": [
            {
                "id": image.id,
                "names": list(image.names),
                "layers": list(image.chain),
                "size": sum(catalog.layers[id].size for id in image.chain),
            }
            for image in catalog.shown()
        ],
        "containers": [
            {"id": box.id, "name": box.name, "image": box.image, "command": list(box.command)}
            for box in catalog.containers.values()
        ],
        "faults": [{"kind": fault.kind, "id": fault.id, "what": fault.what} for fault in faults],
    }


def _verified(session: Session, source: DockerSource) -> list[Fault]:
    from lamina.store.adopt import verify_all
    from lamina.store.rewrite import remaining_faults

    known = source.faults
    with session.progress() as report:
        found = verify_all(source, report)
    return [*remaining_faults(source), *(fault for fault in found if fault not in known)]


def _report(faults: Iterable[Fault]) -> int:
    """Name what is wrong; the exit status."""
    status = 0
    for fault in faults:
        say(str(fault))
        status = 1
    return status


# -- bringing ---------------------------------------------------------------------------


def _show_plan(plan: Adoption) -> int:
    for image in plan.images:
        output.write_line(f"image {', '.join(image.names) or output.short(image.id)}")
    for box in plan.containers:
        output.write_line(f"container {box.name}")
    need, have = plan.need(), plan.available()
    print(f"\n{output.count(len(plan.layers), 'layer')} and "
          f"{output.count(len(plan.containers), 'container')} to come, "
          f"{output.size(plan.size)}, {_how(plan)}")  # fmt: skip
    _show_what_is_here(plan)
    print(f"Takes at most {output.size(need.size)} and {need.files:,} files; "
          f"{output.size(have.size)} are free")  # fmt: skip
    status = _report(plan.faults)
    plan.check_room()
    return status


def _how(plan: Adoption) -> str:
    if plan.way.value == "in place":
        return "read in place"
    if plan.linking:
        return "images by hard links, what containers wrote by copies"
    return "sharing blocks" if plan.sharing else "by copies"


def _show_what_is_here(plan: Adoption) -> None:
    here = [output.count(plan.images_here, "image")] * bool(plan.images_here)
    here += [f"{output.count(number, 'container')} (driver {driver})"
             for driver, number in sorted(plan.containers_here.items())]  # fmt: skip
    if here:
        print(f"In the store already: {', '.join(here)}")


def _show_result(store: Store, plan: Adoption, result: Adopted) -> int:
    how = "read in place" if plan.way.value == "in place" else "brought"
    print(f"{output.count(result.images, 'image')} and "
          f"{output.count(result.containers, 'container')} {how} "
          f"({output.count(result.layers, 'new layer')}, {output.size(result.size)}), driver "
          f"{store.driver.name}")  # fmt: skip
    _show_what_is_here(plan)
    return _report(result.faults)


# -- rewriting --------------------------------------------------------------------------


def _rewrite(session: Session, source: DockerSource, work: Rewrite) -> int:
    from lamina.store.rewrite import DamageFound

    try:
        with session.progress() as report:
            result = work.run(report)
    except DamageFound as error:
        _report(error.faults)
        say(f"{error}; --leave-out-damaged rewrites the rest")
        return 1
    if result.before:
        print(f"{source.path} was rewritten before")
    else:
        print(f"{output.count(result.images, 'image')}, {output.count(result.layers, 'layer')} and "
              f"{output.count(result.containers, 'container')} rewritten for overlay2 "
              f"({output.size(result.copied)} copied)")  # fmt: skip
    status = _report(result.faults)
    if result.left_out:
        say(f"left out: {result.left_out}")
        status = 1
    if (source.path / "aufs").exists():
        session.remark(
            "the old tree is still there: until it is deleted (--in-place --delete-source), "
            "dockerd must be told to use overlay2 (--storage-driver, or in daemon.json)"
        )
    return status


def _show_rewrite(work: Rewrite) -> int:
    if work.is_done:
        print("It was rewritten before")
        return 0
    images = output.count(len(work.images), "image")
    layers = output.count(len(work.layers), "layer")
    boxes = output.count(len(work.containers), "container")
    print(f"{images}, {layers} and {boxes} to be rewritten for overlay2")
    if work.is_begun:
        print("It was begun before, and goes on")
    print(f"Takes at most {output.size(work.need())}; {output.size(work.available())} are free")
    status = _report(work.faults)
    if work.left_out:
        say(f"damaged, and left out with --leave-out-damaged: {work.left_out}")
    work.check_room()
    return status


def _delete(root: str, *, dry_run: bool, force: bool) -> int:
    from lamina.store.rewrite import OnlyThere, delete_source, only_in_old

    if dry_run:
        print(f"Would delete aufs, image/aufs and lamina-rewrite in {root}")
        if only := only_in_old(root):
            say(f"only there is {only}: that takes --force")
            return 1
        return 0
    try:
        deleted = delete_source(root, force=force)
    except OnlyThere as error:
        say(f"{error}; --force deletes that too")
        return 1
    if not deleted.trees:
        print(f"There is no aufs tree in {root}: it was rewritten and deleted before")
    else:
        print(f"Deleted {', '.join(deleted.trees)}; {output.size(deleted.size)} given back")
    return 0
