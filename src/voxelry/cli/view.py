"""The command that shows images and predictions in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from voxelry.cli.terminal import Adapters, Device, ImageOptions, app, read_options
from voxelry.core.errors import DataError, SettingError
from voxelry.core.remote import Remote, as_path

__all__ = ["view"]


@app.command()
def view(
    inputs: Annotated[list[Path], typer.Argument(help="Images, folders of them, DICOM series, or a .txt list.")],
    model: Annotated[
        Path | None,
        typer.Option(parser=as_path, metavar="<path>", help="A bundle, or the folder of a run, to predict with."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder that answers are saved in.")] = Path("answers"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    host_name: Annotated[
        list[str] | None, typer.Option(help="Name under which a reverse proxy shows the page, see docs/view.md.")
    ] = None,
    adapter: Adapters = None,
    device: Device = None,
    open: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    option: ImageOptions = None,
) -> None:
    """Look at images in a browser, click, correct what a model answers, save it. Nothing leaves this machine."""
    from voxelry.bundle.settings import bundle_folder, read_settings
    from voxelry.core.optional import require
    from voxelry.engine.inputs import gather_inputs

    require("starlette", "view")
    from voxelry.serve.run import serve
    from voxelry.serve.within import links_out

    def load() -> Any:
        from voxelry.bundle.model import load

        return load(str(model), device)

    if model is None and adapter:
        raise SettingError("adapter: expected with --model, the bundle that it was trained on")
    if model is not None and not isinstance(model, Remote):
        read_settings(bundle_folder(model))  # what is no bundle is refused before a page opens
    images, folders = gather_inputs(inputs), [path for path in inputs if path.is_dir()]
    if links := links_out(images, inputs):
        more = f" and {len(links) - 1} more" if len(links) > 1 else ""
        said = f"{links[0]}{more}: links to what wasn't named are left out; name where they lead to, too"
        print(f"voxelry: warning: {said}", file=sys.stderr)
        images = [path for path in images if path not in links]
        if not images:
            raise DataError(f"{', '.join(map(str, inputs))}: no images there but links")
    loader = None if model is None else load
    serve(
        images,
        loader,
        out,
        port=port,
        open_browser=open,
        reading=read_options(option),
        folders=folders,
        hosts=host_name or (),
        adapters=adapter or (),
    )
