"""One file after another: which images a run reads, where its results go, and one of them.

What names and flags get wrong is refused before the first image is read.
"""

from dataclasses import dataclass
from pathlib import Path

from spoco_zoo.embedder import Progress
from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.files import refuse_existing
from spoco_zoo.images import find_images, read_image, read_labels, stem_of
from spoco_zoo.prediction import Settings, segment_foreign
from spoco_zoo.recipe import Recipe
from spoco_zoo.results import name_files, write_results
from spoco_zoo.segmentation import segment
from spoco_zoo.session import EmbeddingSession, NetworkSession


@dataclass(frozen=True)
class RunWishes:
    """What is the same for all images of a `run`."""

    recipe: Settings
    tile: int | None
    block: int | None
    kinds: tuple[str, ...]  # of results, as `results.KINDS`
    overwrite: bool
    progress: Progress | None = None  # of the tiles of an image


def run_one(
    session: EmbeddingSession | NetworkSession,
    source: Path,
    target: Path,
    mask: Path | None,
    wishes: RunWishes,
) -> str:
    """Segment one file and write its results; a line that says where and how many instances."""
    files = name_files(target, wishes.kinds)
    for path in files.values():
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
    write_results(files, labels, image.pixels, image.scale_um, overwrite=wishes.overwrite)
    return f"{next(iter(files.values()))}: {int(labels.max(initial=0))} instances"


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


def name_targets(sources: list[Path], out: Path, kinds: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """Say where the labels of each image go; no result to the place of another or of an image.

    Args:
        sources: The images.
        out: A folder, or a TIFF for one image.
        kinds: Of results, as `results.KINDS`.
    """
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
        for path in name_files(target, kinds).values():
            if path.resolve() in images:
                raise SettingError(f"--out would replace the image {path}: choose another folder")
        if target in taken:
            raise SettingError(
                f"{taken[target]} and {source} would both be written to {target}: "
                "run them into separate folders"
            )
        taken[target] = source
    return targets
