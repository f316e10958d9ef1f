"""Folders in which an image and its mask are two files: side by side, by split, and as VOC, ADE20K and Cityscapes have them."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import datasets

from .layouts import IMAGE_SUFFIXES, Layout, content_digest, has_metadata
from .presets import ADE20K_CLASSES, CITYSCAPES_CLASSES, VOC_CLASSES, cityscapes_id_map

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "photos", "photographs", "pictures")
MASK_FOLDERS = ("masks", "mask", "annotations", "ann_dir", "labels", "label", "gt")
MASK_FOLDER_ENDINGS = ("annot", "_annot", "_labels", "_label", "_masks", "_mask", "_gt")
MASK_NAME_ENDINGS = (
    "", "_mask", "_masks", "_label", "_labels", "_labelTrainIds", "_labelIds", "_gt", "_seg", "_segmentation", "_L",
)  # fmt: skip
SPLIT_NAME = re.compile(r"(train|training|trainval|val|valid|validation|dev|test|testing)(19|20)?\d*", re.IGNORECASE)
VOC_KEY = re.compile(r"\d{4}_\d{6}")
Opener = Callable[[], datasets.Dataset]


def is_split_name(name: str) -> bool:
    return SPLIT_NAME.fullmatch(name) is not None


def subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def holds_masks(folder: Path) -> bool:
    """Whether it is a folder with images in it, and not that of COCO's annotations, whose pictures count segments."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")) and not any(folder.glob("panoptic_*.json"))


# ---- recognisers


def image_and_mask_folders(folder: Path) -> Layout | None:
    """`images/` and `masks/` (or as they are called elsewhere), flat or with a folder per split in both."""
    if (pair := find_pair(folder)) is None:
        return None
    images, masks = pair
    shared = sorted({path.name for path in subfolders(images)} & {path.name for path in subfolders(masks)})
    if any(map(is_split_name, shared)):
        loose = next((path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES), None)
        if loose:
            raise ValueError(f"{images} holds the splits {shared}, and images outside them such as {loose.name}; move these")
        splits = {name: partial(open_pairs, images / name, masks / name) for name in shared}
    else:
        splits = {"train": partial(open_pairs, images, masks)}
    ade20k = next((path.name for path in masks.rglob("*.png")), "").startswith("ADE_")
    return Layout(splits, class_names=[[name] for name in ADE20K_CLASSES] if ade20k else None, reduce_labels=ade20k)


def splits_with_folders(folder: Path) -> Layout | None:
    """`SPLIT/images/` and `SPLIT/masks/`."""
    found = {path.name: find_pair(path) for path in subfolders(folder)}
    return Layout({name: partial(open_pairs, *pair) for name, pair in found.items() if pair})


def split_and_mask_split(folder: Path) -> Layout | None:
    """`train/` and `trainannot/`, `train/` and `train_labels/`, as copies of CamVid have it."""
    names = [path.name for path in subfolders(folder)]
    pairs = {name: name + ending for name in names for ending in MASK_FOLDER_ENDINGS if name + ending in names}
    return Layout({name: partial(open_pairs, folder / name, folder / masks) for name, masks in pairs.items()})


def masks_beside_images(folder: Path) -> Layout | None:
    """`NAME.jpg` and `NAME_mask.png` in one folder, or in a folder per split."""
    places = [path for path in subfolders(folder) if is_split_name(path.name)] or [folder]
    splits = {}
    for place in places:
        stems = {path.stem for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        ending = next((end for end in MASK_NAME_ENDINGS[1:] if any(stem + end in stems for stem in stems)), None)
        if ending:
            splits["train" if place == folder else place.name] = partial(open_beside, place, ending)
    return Layout(splits)


def pascal_voc(folder: Path) -> Layout | None:
    """`JPEGImages/`, `SegmentationClass/`, and where there are some, lists in `ImageSets/Segmentation/SPLIT.txt`."""
    images, masks = folder / "JPEGImages", folder / "SegmentationClass"
    if not (images.is_dir() and masks.is_dir()):
        return None
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    splits = {path.stem: partial(open_listed, images, masks, path) for path in lists}
    own = all(VOC_KEY.fullmatch(path.stem) for path in image_files(masks))
    return Layout(
        splits or {"train": partial(open_listed, images, masks, None)},
        class_names=[[name] for name in VOC_CLASSES] if own else None,
    )


def cityscapes(folder: Path) -> Layout | None:
    """`leftImg8bit/SPLIT/CITY/` and `gtFine/SPLIT/CITY/`; train ids where they were made, else label ids mapped to them."""
    images, masks = folder / "leftImg8bit", folder / "gtFine"
    if not (images.is_dir() and masks.is_dir()):
        return None
    train_ids = next(masks.rglob("*_gtFine_labelTrainIds.png"), None) is not None
    ending = "_gtFine_labelTrainIds" if train_ids else "_gtFine_labelIds"
    splits = {path.name: partial(open_cityscapes, path, masks / path.name, ending) for path in subfolders(images)}
    splits = {name: opener for name, opener in splits.items() if (masks / name).is_dir()}
    names = [[name] for name in CITYSCAPES_CLASSES]
    return Layout(splits, class_names=names, id_map=None if train_ids else cityscapes_id_map())


# ---- opening


def find_pair(folder: Path) -> tuple[Path, Path] | None:
    """The folder of images and the folder of masks in `folder`."""
    if has_metadata(folder):
        return None
    folders = {path.name.lower(): path for path in subfolders(folder)}
    images = next((folders[name] for name in IMAGE_FOLDERS if name in folders), None)
    masks = next((folders[name] for name in MASK_FOLDERS if name in folders and holds_masks(folders[name])), None)
    return (images, masks) if images and masks and not has_metadata(images) else None


def by_stem(files: Iterable[Path], root: Path, ending: str = "") -> dict[str, str]:
    """Path below `root` without suffix and `ending` -> file."""
    found: dict[str, str] = {}
    for path in files:
        stem = path.relative_to(root).with_suffix("").as_posix().removesuffix(ending)
        if stem in found:
            raise ValueError(f"{found[stem]} and {path} have the same name but for the suffix; remove one of them")
        found[stem] = str(path)
    return found


def open_pairs(images: Path, masks: Path) -> datasets.Dataset:
    """Pairs of files with the same name but for the suffix (and an ending such as `_mask`); every file needs its partner.

    Raises:
        ValueError: an image without a mask or the reverse, no image at all, or two images of one name.
    """
    image_of, files = by_stem(image_files(images), images), image_files(masks)
    if not image_of and not files:
        raise ValueError(
            f"there are no images in {images}: put them there, with their masks in {masks}, or delete both folders"
        )
    mask_of = by_stem(files, masks)
    for ending in MASK_NAME_ENDINGS:
        stripped = by_stem([path for path in files if path.stem.endswith(ending)], masks, ending)
        if len(stripped) == len(files) and stripped.keys() & image_of.keys():
            mask_of = stripped
            break
    unpaired = sorted(image_of.keys() ^ mask_of.keys())
    if unpaired or not image_of:
        raise ValueError(
            f"{images} ({len(image_of)} images) and {masks} ({len(mask_of)} masks) must hold the same names, at least one; "
            f"without a partner: {unpaired[:5]}; add what is missing, or take these away"
        )
    return pair_dataset(image_of, mask_of)


def open_beside(folder: Path, ending: str) -> datasets.Dataset:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    masks = by_stem([path for path in files if path.stem.endswith(ending)], folder, ending)
    images = by_stem([path for path in files if not path.stem.endswith(ending)], folder)
    unpaired = sorted(images.keys() ^ masks.keys())
    if unpaired:
        raise ValueError(f"every image in {folder} needs a mask NAME{ending}; without a partner: {unpaired[:5]}")
    return pair_dataset(images, masks)


def open_listed(images: Path, masks: Path, names: Path | None) -> datasets.Dataset:
    """The images of a list that have a mask; all masks where there is no list."""
    image_of, mask_of = by_stem(image_files(images), images), by_stem(image_files(masks), masks)
    listed = sorted(mask_of) if names is None else [line.split()[0] for line in names.read_text().splitlines() if line.strip()]
    missing = [name for name in listed if name not in image_of or name not in mask_of]
    if missing or not listed:
        raise ValueError(f"{names or masks} names {len(listed)} images; without an image or a mask are {missing[:5]}")
    return pair_dataset({name: image_of[name] for name in listed}, mask_of)


def open_cityscapes(images: Path, masks: Path, ending: str) -> datasets.Dataset:
    image_of = by_stem(sorted(images.rglob("*_leftImg8bit.*")), images, "_leftImg8bit")
    mask_of = by_stem(sorted(masks.rglob(f"*{ending}.png")), masks, ending)
    unpaired = sorted(image_of.keys() ^ mask_of.keys())
    if unpaired or not image_of:
        raise ValueError(f"{images} and {masks}/*{ending}.png must hold the same names; without a partner: {unpaired[:5]}")
    return pair_dataset(image_of, mask_of)


def pair_dataset(image_of: dict[str, str], mask_of: dict[str, str]) -> datasets.Dataset:
    """Rows of key, image and mask, whose fingerprint follows the content and not the place."""
    keys = list(image_of)
    columns = {"image": [image_of[key] for key in keys], "mask": [mask_of[key] for key in keys], "key": keys}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    dataset._fingerprint = content_digest(keys, [columns["image"], columns["mask"]])
    return dataset
