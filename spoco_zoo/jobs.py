"""One file after another: which images a run reads, where their labels go, and one of them.

What names and flags get wrong is refused before the first image is read.
"""

from dataclasses import dataclass
from pathlib import Path

from spoco_zoo.embedder import Progress
from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.files import refuse_existing
from spoco_zoo.images import find_images, read_image, read_labels, stem_of, write_labels
from spoco_zoo.prediction import Settings, segment_foreign
from spoco_zoo.recipe import Recipe
from spoco_zoo.segmentation import segment
from spoco_zoo.session import EmbeddingSession, NetworkSession


@dataclass(frozen=True)
class RunWishes:
    """What is the same for all images of a `run`."""

    recipe: Settings
    tile: int | None
    block: int | None
    overlay: bool
    overwrite: bool
    progress: Progress | None = None  # of the tiles of an image


def run_one(
    session: EmbeddingSession | NetworkSession,
    source: Path,
    target: Path,
    mask: Path | None,
    wishes: RunWishes,
) -> int:
    """Segment one file; the count of its instances."""
    from spoco_zoo.figures import overlay as draw
    from spoco_zoo.figures import write_png

    picture = _picture_of(target)
    for path in (target, picture) if wishes.overlay else (target,):
        refuse_existing(path, overwrite=wishes.overwrite)
    image = read_image(source, session.package.n_axes)
    foreground = None if mask is None else read_labels(mask)
    try:
        if isinstance(session, NetworkSession):
            labels = segment_foreign(
                image.pixels,
                session,
                wishes.recipe,
                mask=foreground,
                tile=wishes.tile,
                progress=wishes.progress,
            )
        else:
            labels = segment(
                image.pixels,
                session,
                recipe=wishes.recipe if isinstance(wishes.recipe, Recipe) else None,
                mask=foreground,
                tile=wishes.tile,
                block=wishes.block,
                progress=wishes.progress,
            )
    except ImageError as error:
        raise ImageError(f"{source}: {error}") from error
    if wishes.overlay:
        write_png(picture, draw(image.pixels, labels), overwrite=wishes.overwrite)
    write_labels(target, labels, image.scale_um, overwrite=wishes.overwrite)
    return int(labels.max(initial=0))


def find_masks(sources: list[Path], mask: Path | None) -> dict[Path, Path | None]:
    """Say which mask belongs to which image."""
    if mask is None:
        return dict.fromkeys(sources)
    if not mask.is_dir():
        if len(sources) > 1:
            raise SettingError(
                f"--mask is {mask} for {len(sources)} images: expected a folder of masks, "
                "each of the name of its image"
            )
        return {sources[0]: mask}
    masks = {stem_of(path): path for path in find_images([str(mask)])}
    missing = [source for source in sources if stem_of(source) not in masks]
    if missing:
        raise SettingError(
            f"--mask is {mask}, which has no mask for {missing[0]}: expected one of its name "
            "for each image"
        )
    return {source: masks[stem_of(source)] for source in sources}


def name_targets(sources: list[Path], out: Path, *, overlay: bool) -> list[tuple[Path, Path]]:
    """Say where the labels of each image go; no two to one place, none over an image."""
    if len(sources) == 1 and out.suffix.lower() in (".tif", ".tiff"):
        targets = [(sources[0], out)]
    else:
        if out.suffix.lower() in (".tif", ".tiff") or out.is_file():
            raise SettingError(
                f"--out is {out} for {len(sources)} images: expected a folder for their labels"
            )
        targets = [(source, out / f"{stem_of(source)}.tif") for source in sources]
    taken: dict[Path, Path] = {}
    images = {source.resolve() for source in sources}
    for source, target in targets:
        for path in (target, _picture_of(target)) if overlay else (target,):
            if path.resolve() in images:
                raise SettingError(f"--out would replace the image {path}: choose another folder")
        if target in taken:
            raise SettingError(
                f"{taken[target]} and {source} would both be written to {target}: "
                "run them into separate folders"
            )
        taken[target] = source
    return targets


def _picture_of(target: Path) -> Path:
    """Say where the overlay of a label image goes."""
    return target.parent / "overlays" / f"{target.stem}.png"
