"""What ``lamina adopt`` prints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lamina.cli import output
from lamina.cli.messages import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lamina.cli.session import Session
    from lamina.oci.docker import ContainerRecord, Fault, ImageRecord
    from lamina.store.adopt import Adopted, Adoption, DockerSource, LeftOut
    from lamina.store.rewrite import Deleted, Rewrite, Rewritten

_ID = re.compile(r"(?:sha256:)?\b([0-9a-f]{12})[0-9a-f]{52}\b")

_REWRITING = {
    "begun": "A rewriting for overlay2 was begun: --in-place --to docker-overlay2 goes on with it.",
    "done": "Rewritten for overlay2: start Docker with that storage driver; --in-place "
    "--delete-source deletes the old tree.",
}


# -- what is wrong ----------------------------------------------------------------------


def report(session: Session, faults: Sequence[Fault], left_out: LeftOut | None = None) -> int:
    """Name what is wrong, each cause once, and what is left out for it; the exit status.

    With ``--debug`` every fault is named, and ids are whole.
    """
    from lamina.store.adopt import roots

    if session.settings.debug:
        for fault in faults:
            say(str(fault))
    else:
        for root in roots(faults):
            follow = f" ({root.others} more follow from that)" if root.others else ""
            say(_ID.sub(r"\1", f"{root.fault}{follow}"))
    if left_out:
        say(f"left out: {left_out}")
    return 1 if faults or left_out else 0


def _faults(faults: Iterable[Fault]) -> list[dict[str, str]]:
    return [
        {"kind": fault.kind, "id": fault.id, "what": fault.what, "cause": fault.cause}
        for fault in faults
    ]


def _left_out(left_out: LeftOut) -> dict[str, list[str]]:
    return {"images": left_out.images, "containers": left_out.containers}


# -- listing ----------------------------------------------------------------------------


def show_list(
    session: Session,
    source: DockerSource,
    chosen: tuple[list[ImageRecord], list[ContainerRecord]] | None,
    faults: Sequence[Fault],
    *,
    verified: int | None,
    json: bool,
) -> int:
    """Images and containers, which of them are damaged, and why.

    ``chosen``: those asked for, None for all; ``verified``: the number of layers that were read.
    """
    from lamina.store.adopt import damaged
    from lamina.store.rewrite import stage_of

    wrong = damaged(source.catalog, faults)
    everything = (
        source.catalog.shown(),
        sorted(source.catalog.containers.values(), key=lambda box: box.name),
    )
    images, boxes = everything if chosen is None else chosen
    stage = stage_of(source.path)
    if json:
        described = _described(source, images, boxes, wrong)
        rewriting = stage and stage.value
        output.print_json({**described, "faults": _faults(faults), "rewriting": rewriting})
        return 1 if faults else 0
    _print_images(source, images, wrong, lost=chosen is None)
    print()
    _print_containers(source, boxes, wrong, lost=chosen is None)
    status = report(session, faults)
    if status and wrong:
        say(f"damaged: {wrong}")
    if verified is not None:
        print(
            f"\nVerified: {output.count(verified, 'layer')}, {output.count(len(faults), 'fault')}"
        )
    print(f"\n{_next_step(source, stage and stage.value, verified)}")
    return status


def _next_step(source: DockerSource, stage: str | None, verified: int | None) -> str:
    if stage is not None:
        return _REWRITING[stage]
    more = f"'lamina adopt {source.path} --bring --dry-run' says what would come into a store"
    if verified is not None:
        return f"Next: {more}."
    return f"Next: 'lamina adopt {source.path} --check' reads everything, {more}."


def _print_images(
    source: DockerSource, images: list[ImageRecord], wrong: LeftOut, *, lost: bool
) -> None:
    catalog = source.catalog
    rows = [
        [
            called,
            output.short(image.id),
            str(len(image.chain)),
            output.size(sum(catalog.layers[id].size for id in image.chain)),
            _status(called if image.names else output.short(image.id), wrong.images),
        ]
        for image in images
        for called in [", ".join(image.names) or "<none>"]
    ]
    gone = sorted(catalog.lost.items()) if lost else ()
    rows += [
        [", ".join(names) or "<none>", output.short(id), "?", "?", "damaged"] for id, names in gone
    ]
    output.print_table(["IMAGE", "IMAGE ID", "LAYERS", "SIZE", "STATUS"], rows)


def _print_containers(
    source: DockerSource, boxes: list[ContainerRecord], wrong: LeftOut, *, lost: bool
) -> None:
    rows = [
        [
            box.name,
            output.short(box.id),
            next(iter(source.catalog.images[box.image].names), output.short(box.image)),
            _written(source, box),
            _status(box.name, wrong.containers),
        ]
        for box in boxes
    ]
    gone = sorted(source.catalog.lost_containers) if lost else ()
    rows += [["?", output.short(id), "?", "?", "damaged"] for id in gone]
    output.print_table(["CONTAINER", "CONTAINER ID", "IMAGE", "WRITTEN", "STATUS"], rows)


def _status(name: str, wrong: list[str]) -> str:
    return "damaged" if name in wrong else "ok"


def _written(source: DockerSource, box: ContainerRecord) -> str:
    try:
        return output.size(source.survey(box.mount_id).size)
    except OSError:
        return "?"


def _described(
    source: DockerSource,
    images: list[ImageRecord],
    boxes: list[ContainerRecord],
    wrong: LeftOut,
) -> dict[str, object]:
    return {
        "root": str(source.path),
        "images": [
            {
                "id": image.id,
                "names": list(image.names),
                "layers": list(image.chain),
                "size": sum(source.catalog.layers[id].size for id in image.chain),
            }
            for image in images
        ],
        "containers": [
            {"id": box.id, "name": box.name, "image": box.image, "command": list(box.command)}
            for box in boxes
        ],
        "damaged": _left_out(wrong),
    }


# -- bringing ---------------------------------------------------------------------------


def show_plan(session: Session, plan: Adoption, *, json: bool) -> int:
    """What would come, and whether there is room for it."""
    need, have = plan.need(), plan.available()
    if json:
        output.print_json(
            {
                "images": [{"id": i.id, "names": list(i.names)} for i in plan.images],
                "containers": [{"id": box.id, "name": box.name} for box in plan.containers],
                "layers": len(plan.layers),
                "size": plan.size,
                "need": need.size,
                "available": have.size,
                **_outcome(plan, plan.left_out, plan.faults),
            }
        )
        plan.check_room()
        return 1 if plan.faults else 0
    for image in plan.images:
        output.write_line(f"image {', '.join(image.names) or output.short(image.id)}")
    for box in plan.containers:
        output.write_line(f"container {box.name}")
    status = report(session, plan.faults, plan.left_out)
    print(f"\n{output.count(len(plan.layers), 'layer')} and "
          f"{output.count(len(plan.containers), 'container')} to come, "
          f"{output.size(plan.size)}, {_how(plan)}")  # fmt: skip
    _show_what_is_here(plan)
    print(f"Takes at most {output.size(need.size)} and {need.files:,} files; "
          f"{output.size(have.size)} are free")  # fmt: skip
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


def _outcome(plan: Adoption, left_out: LeftOut, faults: list[Fault]) -> dict[str, object]:
    return {
        "driver": plan.core.driver_name,
        "here": {"images": plan.images_here, "containers": plan.containers_here},
        "left_out": _left_out(left_out),
        "faults": _faults(faults),
    }


def show_result(session: Session, plan: Adoption, result: Adopted, *, json: bool) -> int:
    """What came of it."""
    if json:
        output.print_json(
            {
                "images": result.images,
                "containers": result.containers,
                "layers": result.layers,
                "size": result.size,
                **_outcome(plan, result.left_out, result.faults),
            }
        )
        return 1 if result.faults else 0
    status = report(session, result.faults, result.left_out)
    how = "read in place" if plan.way.value == "in place" else "brought"
    print(f"{output.count(result.images, 'image')} and "
          f"{output.count(result.containers, 'container')} {how} "
          f"({output.count(result.layers, 'new layer')}, {output.size(result.size)}), driver "
          f"{plan.core.driver_name}")  # fmt: skip
    _show_what_is_here(plan)
    return status


# -- rewriting --------------------------------------------------------------------------


def show_rewrite(session: Session, work: Rewrite, *, json: bool) -> int:
    """What would be rewritten, and whether there is room for it."""
    if json:
        output.print_json(
            {
                "images": len(work.images),
                "layers": len(work.layers),
                "containers": len(work.containers),
                "need": 0 if work.is_done else work.need(),
                "available": work.available(),
                "left_out": _left_out(work.left_out),
                "faults": _faults(work.faults),
            }
        )
        return 1 if work.faults else 0
    if work.is_done:
        print("It was rewritten before")
        return 0
    status = report(session, work.faults)
    if work.left_out:
        say(f"damaged, and left out with --leave-out-damaged: {work.left_out}")
    layers, containers = len(work.layers), len(work.containers)
    print(f"{_images(work)}, {output.count(layers, 'layer')} and "
          f"{output.count(containers, 'container')} to be rewritten for overlay2")  # fmt: skip
    if work.is_begun:
        print("It was begun before, and goes on")
    print(f"Takes at most {output.size(work.need())}; {output.size(work.available())} are free")
    work.check_room()
    return status


def _images(work: Rewrite) -> str:
    """``13 images (4 of them without a name)``: ``docker images`` shows fewer."""
    unnamed = sum(not image.names for image in work.images)
    return output.count(len(work.images), "image") + (
        f" ({unnamed} of them without a name)" if unnamed else ""
    )


def show_rewritten(session: Session, work: Rewrite, result: Rewritten, *, json: bool) -> int:
    """What came of it."""
    if json:
        output.print_json(
            {
                "images": result.images,
                "layers": result.layers,
                "containers": result.containers,
                "copied": result.copied,
                "before": result.before,
                "left_out": _left_out(result.left_out),
                "faults": _faults(result.faults),
            }
        )
        return 1 if result.faults else 0
    status = report(session, result.faults, result.left_out)
    if result.before:
        print("It was rewritten before")
    else:
        layers, containers = result.layers, result.containers
        print(f"{_images(work)}, {output.count(layers, 'layer')} and "
              f"{output.count(containers, 'container')} rewritten for overlay2 "
              f"({output.size(result.copied)} copied)")  # fmt: skip
    return status


def show_deleted(root: str, deleted: Deleted, *, json: bool) -> None:
    """What was deleted."""
    if json:
        output.print_json({"deleted": list(deleted.trees), "size": deleted.size})
    elif deleted.trees:
        print(f"Deleted {', '.join(deleted.trees)}; {output.size(deleted.size)} given back")
    else:
        print(f"There is no aufs tree in {root}: it was rewritten and deleted before")
