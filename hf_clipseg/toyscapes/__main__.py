"""`python -m hf_clipseg.toyscapes`: writes scenes as a folder, or draws a sheet of them."""

import argparse

from . import SPLITS, ToyscapesDataset, export_imagefolder, export_parquet, write_contact_sheet


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hf_clipseg.toyscapes", description="Write Toyscapes to disk.")
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a folder that datasets.load_dataset reads")
    export.add_argument("--output", required=True, metavar="FOLDER")
    export.add_argument("--format", choices=("parquet", "imagefolder"), default="parquet")
    export.add_argument("--splits", nargs="+", default=list(SPLITS), metavar="SPLIT", help=f"among {', '.join(SPLITS)}")
    export.add_argument("--size", nargs=2, type=int, default=(128, 128), metavar=("HEIGHT", "WIDTH"))
    export.add_argument("--num_samples", type=int, help="per split; default 10,000 for train, 500 for the others")
    export.add_argument("--seed", type=int, default=0)
    export.add_argument("--omission_rate", type=float, default=0.5)
    export.add_argument("--closeup_rate", type=float, default=0.0)
    export.add_argument("--num_proc", type=int, help="processes that draw (Parquet only)")
    sheet = commands.add_parser("contact-sheet", help="draw scenes above their masks")
    sheet.add_argument("--output", required=True, metavar="FILE.png")
    sheet.add_argument("--seed", type=int, default=0)
    sheet.add_argument("--first", type=int, default=0, help="index of the first scene")
    sheet.add_argument("--columns", type=int, default=6)
    sheet.add_argument("--rows", type=int, default=3)
    sheet.add_argument("--size", type=int, default=192, help="side of a scene in pixels")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    size, rates = tuple(arguments.size), (arguments.omission_rate, arguments.closeup_rate)
    scenes = [ToyscapesDataset(split, size, arguments.num_samples, arguments.seed, *rates) for split in arguments.splits]
    if arguments.format == "parquet":
        export_parquet(arguments.output, scenes, arguments.num_proc)
    else:
        export_imagefolder(arguments.output, scenes)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m hf_clipseg.toyscapes`; wrong values end with a message and exit status 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "export":
            _export(arguments)
        else:
            shape = (arguments.columns, arguments.rows, arguments.size)
            write_contact_sheet(arguments.output, arguments.seed, arguments.first, *shape)
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
