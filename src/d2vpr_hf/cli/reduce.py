"""`d2vpr reduce`: a checkpoint that gives shorter descriptors, by a PCA fitted on photos."""

import argparse

from .options import (
    add_json_option,
    add_model_options,
    add_photos_argument,
    embedding_settings,
    open_embedder,
    print_json,
    share,
    whole_number,
)
from .parser import CommandParser, UsageError, add_command

DESCRIPTION = """\
Makes a checkpoint whose descriptors are shorter, by a PCA fitted on photos, and keeps in it what it was fitted on.
  d2vpr reduce training_photos d2vpr-512 --model d2vpr --dim 512 --renormalise --whitening 0.5

Fit it on photos that nothing is tested on: an evaluation refuses a model whose PCA saw its test photos. --preset
published is how D2-VPR's published results were made: 4096 numbers, 16,384 photos of pitts30k/images/train, not
renormalised, so that descriptors are ranked by distance."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "reduce",
        run,
        summary="make a checkpoint with shorter descriptors (PCA)",
        usage="PHOTOS OUT (--dim N | --preset published) [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("which photos, and where to")
    add_photos_argument(group)
    group.add_argument("out", metavar="OUT", help="the checkpoint folder to make; it must not exist yet, or be empty")
    group.add_argument("--name", metavar="NAME", help="of the photos, for the checkpoint (default: their folder's)")
    group = parser.add_argument_group("which PCA")
    group.add_argument("--dim", metavar="N", type=whole_number(1), help="numbers in a descriptor")
    group.add_argument("--preset", metavar="NAME", choices=("published",), help="published: as the paper's results")
    group.add_argument(
        "--images", metavar="N", type=whole_number(2), help="photos to fit it on, drawn at random (default: 16384)"
    )
    group.add_argument("--seed", metavar="N", type=whole_number(0), help="draws them (default: 0)")
    group.add_argument("--renormalise", action="store_true", help="bring the shorter descriptors to length 1")
    group.add_argument(
        "--whitening",
        metavar="X",
        type=share,
        help="divide each number by its variance to the power X/2, so that directions of little variance count more, "
        "0 to 1; 0.5 is recommended, with --renormalise (default: 0)",
    )
    add_json_option(group)
    add_model_options(parser, dim_words=None)
    return parser


def run(options: argparse.Namespace) -> int:
    own = {
        name: value
        for name in ("dim", "images", "seed", "renormalise", "whitening")
        if (value := getattr(options, name)) not in (None, False)
    }
    if (options.preset is None) == ("dim" not in own):
        raise UsageError("give --dim N, or --preset published, which says itself how many.")
    if options.preset and own:
        raise UsageError(f"--preset {options.preset} says itself what --{next(iter(own))} is. Leave one of them out.")
    from ..messages import percent
    from ..retrieval.pca import PUBLISHED_PCA, PcaSettings, reduce_checkpoint

    embedder = open_embedder(options.model, **embedding_settings(options))
    pca = reduce_checkpoint(
        options.photos,
        options.out,
        embedder,
        settings=PUBLISHED_PCA if options.preset else PcaSettings(**own),
        name=options.name,
    )
    about = pca.to_config()
    if options.json:
        print_json({"folder": options.out, "descriptor_dim": pca.dim, **about})
        return 0
    print(f"{options.out}: {pca.dim} numbers a descriptor, which keep {percent(pca.variance_kept)} of the variance")
    print(f"fitted on {pca.images} photos of {pca.source.name} (seed {pca.seed}, files {about['files_sha256'][:8]})")
    if pca.whitening:
        print(f"whitened: each number is divided by its variance to the power {pca.whitening:g}/2")
    print("descriptors have length 1" if pca.renormalise else "not renormalised: descriptors are ranked by distance")
    return 0
