"""The pictures of folders, and the names of their results."""

from collections.abc import Sequence
from pathlib import Path

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def find_pictures(paths: Sequence[str], output: str | Path) -> list[tuple[Path, Path]]:
    """Each picture with the name of its results below the output folder, without a suffix.

    An output folder amid the pictures is not searched: its overlays are no pictures.

    Raises:
        ValueError: a path does not exist, a folder holds no picture or is that of the output, or two pictures would have the
            same results.
    """
    output = Path(output).resolve()
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            if path.resolve() == output:
                raise ValueError(
                    f"--output {path} is the folder of the pictures; name another one, such as {path / 'segmented'}."
                )
            pictures = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            pictures = [file for file in pictures if output not in file.resolve().parents]
            if not pictures:
                raise ValueError(f"{path} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            names = {picture: picture.relative_to(path) for picture in pictures}
        elif path.is_file():
            names = {path: Path(path.name)}
        else:
            raise ValueError(f"There is no file or folder {path}.")
        for picture, name in names.items():
            # photo.jpg and photo.png in one folder keep their suffixes, so that neither overwrites the other
            stem = name.with_suffix("") if name.with_suffix("") not in found else name
            if stem in found:
                raise ValueError(f"{picture} and {found[stem]} would be saved under one name: run them one after the other.")
            found[stem] = picture
    return [(picture, stem) for stem, picture in found.items()]
