"""``lamina convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lamina.cli import completing, output
from lamina.cli.messages import say
from lamina.cli.session import Session

if TYPE_CHECKING:
    from lamina.store import Conversion, Converted


@click.command()
@click.argument("images", metavar="[IMAGE]...", nargs=-1, shell_complete=completing.images)
@click.option("--to", "target", metavar="DRIVER", required=True,
              help="erofs, overlay, aufs or vfs.")  # fmt: skip
@click.option("-a", "--all", "all_", is_flag=True, help="All images.")
@click.option("--keep", is_flag=True, help="Leave the old driver its copy.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@output.format_option
@click.pass_obj
def command(
    session: Session,
    images: tuple[str, ...],
    target: str,
    all_: bool,
    keep: bool,
    dry_run: bool,
    form: str,
) -> int:
    """Move images to another driver of the store.

    Every layer's tar is given back, verified, and kept by the new driver; ids and digests stay
    the same. A layer that several images share moves once. Containers stay with their driver,
    and so does what they stand on. Once the new driver has all images, the store is opened with
    it. A conversion that was interrupted is continued by the same command.

    \b
    Examples:
      lamina convert --to erofs --all --dry-run
      lamina convert --to erofs --all
      lamina convert --to overlay debian:12 --keep
    """
    if bool(images) == all_:
        raise click.UsageError("name images, or all of them by --all")
    with session.store(progress=True) as store:
        plan = store.convert(target, images, keep=keep)
        if dry_run:
            return _show_plan(plan, form)
        try:
            result = plan.run()
        except KeyboardInterrupt as error:
            error.add_note("what is finished stays, and the same command goes on")
            raise
    return _show_result(plan, result, form)


def _show_plan(plan: Conversion, form: str) -> int:
    names = [next(iter(image.names), output.short(image.id)) for image in plan.images]
    if form == "json":
        output.print_json(
            {
                "driver": plan.target,
                "images": names,
                "layers": len(plan.layers),
                "size": plan.size,
                "available": plan.available,
            }
        )
        return 0
    for name in names:
        output.write_line(f"image {name}")
    print(f"{output.count(len(names), 'image')} and {output.count(len(plan.layers), 'layer')} to "
          f"come to driver {plan.target}, {output.size(plan.size)}; "
          f"{output.size(plan.available)} are free")  # fmt: skip
    return 0


def _show_result(plan: Conversion, result: Converted, form: str) -> int:
    if form == "json":
        output.print_json(
            {
                "driver": plan.target,
                "images": result.images,
                "layers": result.layers,
                "size": result.size,
                "removed": result.removed,
                "default": result.is_default,
                "faults": [{"image": f.image, "what": f.what} for f in result.faults],
                "used": [{"image": u.image, "what": u.what} for u in result.used],
            }
        )
        return 1 if result.faults else 0
    print(f"{output.count(result.images, 'image')} converted to driver {plan.target} "
          f"({output.count(result.layers, 'new layer')}, {output.size(result.size)}); "
          f"{output.count(result.removed, 'old layer')} removed")  # fmt: skip
    if result.is_default:
        print(f"The store is opened with driver {plan.target} from now on")
    for each in (*result.used, *result.faults):
        say(str(each))
    return 1 if result.faults else 0
