"""The verbs that train: `wsi train select`, `wsi train segment`, `wsi train screen`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import typer

from wsi_pipeline.arguments import Data, ModelName, Seed
from wsi_pipeline.console import print_json, terminal_of
from wsi_pipeline.training.label_options import BagOptions, LabelTraining
from wsi_pipeline.training.screen_options import ScreenTraining

LABELS = "Samplesheets and folders"
_USUAL = LabelTraining()
_USUAL_SCREEN = ScreenTraining()

SelectDataset = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="A samplesheet (.csv), a folder with images/ and labels.csv, 'synthetic' "
        "or 'glas'.",
    ),
]
SegmentDataset = Annotated[
    str,
    typer.Argument(
        help="'synthetic', 'glas', 'folder' (your own images and masks), ...; an "
        "unknown name lists them all."
    ),
]
ClassSet = Annotated[
    str | None, typer.Option(help="Another set of classes, such as 'binary' of glas.")
]
ModelOut = Annotated[Path, typer.Option("--out", "-o", help="The model's folder.")]
ResizerBase = Annotated[
    str,
    typer.Option(
        "--resizer",
        metavar="BASE",
        help="Train a resizer before the net, which starts as this filter "
        "('bilinear', ...); an unknown name lists them all.",
    ),
]
ResizedPx = Annotated[
    int,
    typer.Option(
        "--resized-px",
        metavar="N",
        min=0,
        help="Side in px to which --resizer brings patches; goes with it.",
    ),
]
TrainDevice = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Devices = Annotated[int, typer.Option(min=1, help="GPUs to train on.")]
Pretrained = Annotated[
    Path | None,
    typer.Option(help="Weights the net starts from: a safetensors file."),
]
Results = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the results of the sheet's slides (`wsi tissue`).",
        rich_help_panel=LABELS,
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="A column of labels (may be repeated); else all that are nothing else.",
        rich_help_panel=LABELS,
    ),
]
PatchPx = Annotated[
    int | None,
    typer.Option(
        min=16,
        help="Side of a patch: of pictures, or of features that do not state it.",
        rich_help_panel=LABELS,
    ),
]
PatchMpp = Annotated[
    float | None,
    typer.Option("--mpp", help="um/px of these patches.", rich_help_panel=LABELS),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="'small', 'resnet18', 'timm:NAME', ...; an unknown name lists them.",
        rich_help_panel=LABELS,
    ),
]
Position = Annotated[
    bool,
    typer.Option(
        "--position",
        help="Let attention see where patches lie.",
        rich_help_panel=LABELS,
    ),
]
TrainTopM = Annotated[
    int,
    typer.Option(
        "--top-m", help="Patches to learn from per slide.", rich_help_panel=LABELS
    ),
]
Bags = Annotated[
    int, typer.Option(help="Slides per step and device.", rich_help_panel=LABELS)
]
Share = Annotated[
    float,
    typer.Option(
        help="Share of a slide's patches that a step looks at, drawn anew.",
        rich_help_panel=LABELS,
    ),
]
Rate = Annotated[
    float, typer.Option("--lr", help="Peak learning rate.", rich_help_panel=LABELS)
]
Precision = Annotated[
    Literal["32-true", "bf16-mixed"],
    typer.Option(help="Of the nets' numbers.", rich_help_panel=LABELS),
]

train = typer.Typer(no_args_is_help=True, help="Train the nets of a model.")


@train.command("select")
def train_selector(
    dataset: SelectDataset,
    out: ModelOut,
    data: Data = Path("../shared/data"),
    results: Results = None,
    task: Tasks = None,
    patch_px: PatchPx = None,
    mpp: PatchMpp = None,
    encoder: Encoder = None,
    pretrained: Pretrained = None,
    position: Position = False,
    top_m: TrainTopM = _USUAL.top_m,
    bags: Bags = _USUAL.bags,
    share: Share = _USUAL.share,
    lr: Rate = _USUAL.lr,
    precision: Precision = _USUAL.precision,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    resizer: ResizerBase = "",
    resized_px: ResizedPx = 0,
    seed: Seed = 0,
    device: TrainDevice = "cpu",
    devices: Devices = 1,
) -> None:
    """Train a selector from slide-level labels.

    A samplesheet has a row per slide and a column per task with 1, 0, or nothing for
    unknown: sample,slide,<labels> with --results, or sample,features,<labels> for
    features that TRIDENT, CLAM or others extracted; group (patient) and split (train,
    val, test) may be there. A folder has images/ and labels.csv: name,<labels>.
    Interrupted, it goes on where it stopped when it is called again; OUT/training
    holds the losses.
    """
    from wsi_pipeline.models.selector import SelectorShape
    from wsi_pipeline.training.describing import check_folder, describe, publish_part
    from wsi_pipeline.training.from_labels import fitting_shape, train_from_labels
    from wsi_pipeline.training.labelled_bags import is_labelled, open_bags
    from wsi_pipeline.training.select import train_select

    check_folder(out)
    read = BagOptions(results, tuple(task or ()), patch_px, mpp, seed)
    options = LabelTraining(
        steps, bags, top_m, share, lr, pretrained, precision, device, devices, seed
    )
    shape = SelectorShape(resizer=resizer, resized_px=resized_px, position=position)
    labelled = is_labelled(dataset)
    if not labelled:
        describe(dataset)
        _refuse_all_but(dataset, read, options, encoder)
    with terminal_of() as terminal:
        tick = terminal.ticker("train select")
        if labelled:
            found = open_bags(Path(dataset), read)
            shape = fitting_shape(found, shape, encoder, pretrained)
            part = train_from_labels(found, out, shape, options, progress=tick)
        else:
            part = train_select(
                dataset, out, data_dir=data, steps=steps, seed=seed, device=device,
                shape=shape, progress=tick,
            )  # fmt: skip
    card = publish_part(out, part.training["dataset"], part)
    _say(card, "segment", part.metrics)


def _refuse_all_but(
    dataset: str, read: BagOptions, options: LabelTraining, encoder: str | None
) -> None:
    """A data set of ours has its own recipe: steps, seed and device may be chosen."""
    from wsi_pipeline.errors import ConfigError

    usual = LabelTraining(steps=options.steps, device=options.device, seed=options.seed)
    if (read, options, encoder) != (BagOptions(seed=read.seed), usual, None):
        raise ConfigError(
            f"{dataset!r} has its own recipe: what --help lists under {LABELS!r}, and "
            "--pretrained and --devices, belong to your own slides"
        )


@train.command("segment")
def train_segmenter(
    dataset: SegmentDataset,
    out: ModelOut,
    data: Data = Path("../shared/data"),
    steps: Annotated[int, typer.Option(help="Training steps of each arm.")] = 1000,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="What to train (may be repeated); learned and uniform."),
    ] = None,
    body: Annotated[str, typer.Option(help="Segmentation net.")] = "unet",
    body_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An option of the net (may be repeated), such as encoder=resnet34; an "
            "unknown name lists them.",
        ),
    ] = None,
    pretrained: Pretrained = None,
    nodes: Annotated[int, typer.Option(min=16, help="Samples along a side.")] = 64,
    resizer: ResizerBase = "",
    batch: Annotated[int, typer.Option(min=1, help="Regions per step.")] = 8,
    images: Annotated[int, typer.Option(min=1, help="Images to paint.")] = 96,
    classes: ClassSet = None,
    mpp: Annotated[
        float | None, typer.Option(help="um/px, where the files do not state it.")
    ] = None,
    focus: Annotated[
        float, typer.Option(min=0, help="Exponent of the focal loss; 0 = plain.")
    ] = 0.0,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Rare classes count more.")
    ] = False,
    seed: Seed = 0,
    device: TrainDevice = "cpu",
    devices: Devices = 1,
) -> None:
    """Train a segmenter: its sampler, and an evenly sampled arm beside it.

    Interrupted, it goes on where it stopped when it is called again; OUT/training
    holds losses and pictures.
    """
    from wsi_pipeline.models.resizer import check_base
    from wsi_pipeline.models.spec import SegmenterSpec
    from wsi_pipeline.training.arms import LossOptions
    from wsi_pipeline.training.datasets import DatasetOptions, load_dataset
    from wsi_pipeline.training.describing import check_folder, facts_of, publish_part
    from wsi_pipeline.training.segment import train_segment

    check_folder(out)
    options = dict(_named_value(text) for text in body_option or ())
    if resizer:
        check_base(resizer)
    wanted = DatasetOptions(images=images, classes=classes, mpp=mpp, seed=seed)
    found = load_dataset(dataset, data, options=wanted)
    spec = SegmenterSpec(
        len(found.classes), nodes=nodes, body=body, body_options=options,
        resizer=resizer, strategies=tuple(strategy or ("learned", "uniform")),
    )  # fmt: skip
    with terminal_of() as terminal:
        part = train_segment(
            found, out, spec, steps=steps, seed=seed, device=device, batch=batch,
            pretrained=pretrained, loss=LossOptions(focus, balanced), devices=devices,
            progress=terminal.ticker("train segment"),
        )  # fmt: skip
    card = publish_part(out, found.name, part, facts_of(found))
    _say(card, "select", part.metrics)


@train.command("screen")
def train_screen_of(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of results with `wsi select` done, or of single slides."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for the model with its screen; may be its own."
        ),
    ],
    model: ModelName = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="Results to measure on (may be repeated), of other patients; else two "
            "thirds of the slides, by lot."
        ),
    ] = None,
    factor: Annotated[
        int, typer.Option(min=2, help="How much coarser it sees the patches.")
    ] = _USUAL_SCREEN.factor,
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps.")
    ] = _USUAL_SCREEN.steps,
    seed: Seed = 0,
    device: TrainDevice = "cpu",
) -> None:
    """Train a screen: it rejects patches after a coarse look (`wsi select --screen`).

    It learns from what the model's selector found on slides, without any label, and is
    measured on others: to vouch for a recall of 0.95, at least 19 of them are needed.
    """
    from wsi_pipeline.models.cards import find_model
    from wsi_pipeline.training.screen import train_screen
    from wsi_pipeline.training.taught import deal, find_taught

    found = find_model(model)
    options = ScreenTraining(factor, steps, device=device, seed=seed)
    slides = find_taught(results, found)
    if calibration:
        others = find_taught(calibration, found)
    else:
        slides, others = deal(slides, seed)
    with terminal_of() as terminal:
        tick = terminal.ticker("train screen")
        card = train_screen(found, slides, others, out, options, progress=tick)
    print_json(card.metrics)
    print(out / "card.json")


def _named_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value JSON where it is JSON and text else."""
    from wsi_pipeline.errors import ConfigError

    name, sign, value = text.partition("=")
    if not (name and sign):
        raise ConfigError(f"--body-option {text!r}: expected NAME=VALUE")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _say(card: Path | None, other: str, metrics: dict[str, Any]) -> None:
    print_json(metrics)
    print(card or f"no card yet: train the other part with `wsi train {other}`")
