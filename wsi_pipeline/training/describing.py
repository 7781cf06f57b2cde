"""Puts the trained parts of a model together: card.json and the licence beside it."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import orjson

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError, ModelError, UnknownNameError
from wsi_pipeline.models.cards import (
    ClassCard,
    ModelCard,
    ScreenCard,
    SegmenterCard,
    SelectorCard,
    model_name,
    read_card,
    write_card,
)
from wsi_pipeline.publishing import publish_bytes, publish_json
from wsi_pipeline.synthetic import SYNTHETIC_CLASSES
from wsi_pipeline.training.datasets.glas import GLAS_CLASSES
from wsi_pipeline.training.datasets.record import SegmentData


@dataclass(frozen=True)
class DatasetFacts:
    """What a card says about the data a model was trained on.

    Parameters
    ----------
    summary, intended_use, limits, data : str
        Sentences of the card.
    licence : str
        Short name of the weights' licence.
    licence_text : str
        What LICENSE in the model's folder says.
    classes : tuple of MaskClass
        Of the masks.
    """

    summary: str
    intended_use: str
    limits: str
    data: str
    licence: str
    licence_text: str
    classes: tuple[MaskClass, ...]


DATASETS = {
    "synthetic": DatasetFacts(
        summary="painted prostate slides of `wsi synth` (demo, tests, trials)",
        intended_use="The demo, tests and timing. It shows that the pipeline works.",
        limits="Knows painted slides only; on real tissue its masks mean nothing. "
        "Research use only, not for diagnosis.",
        data="Slides painted by wsi_pipeline.synthetic. Segmenter: seeds from 10000 "
        "for training, from 20000 for validation. Selector: from 30000 and 40000. "
        "The demo's seeds are below 1000.",
        licence="Apache-2.0",
        licence_text="The weights in this folder were trained on images that this "
        "project painted itself.\nThey are under the Apache License, Version 2.0, as "
        "the code is.\nResearch use only, not for diagnosis.\n",
        classes=tuple(SYNTHETIC_CLASSES),
    ),
    "glas": DatasetFacts(
        summary="benign and malignant colon glands in H&E at 0.62 um/px (GlaS)",
        intended_use="Research on colon gland segmentation, and trials of the pipeline "
        "on real H&E.",
        limits="Colon, not prostate: 101 images from one laboratory. Grade was given "
        "per image and painted onto its glands. The selector ranks gland above stroma; "
        "its slide-level 'malignant' is near chance. Research use only, no commercial "
        "use, not for diagnosis.",
        data="GlaS / Warwick-QU (Sirinukunwattana et al., Med. Image Anal. 2017): "
        "101 training and 25 validation images, split by patient; the published split "
        "leaks patients and was not used.",
        licence="research only, no commercial use (GlaS / Warwick-QU)",
        licence_text="The weights in this folder were trained on the GlaS / Warwick-QU "
        "data, which may be used\nfor research only and not commercially. The weights "
        "carry the same limit.\nThe code's Apache-2.0 licence does not cover them.\n"
        "They know colon glands, not prostate. Not for diagnosis.\n",
        classes=GLAS_CLASSES,
    ),
}


_SELECTOR = "Selector, from slide-level labels: "
_AND_SELECTOR = "; selector: as the owner of its slides states"
_SELECTS_ONLY = DatasetFacts(
    summary="selects patches; has no segmenter",
    intended_use="Research by those who trained it.",
    limits="Measured on the validation slides of its own table only. Research use "
    "only, not for diagnosis.",
    data="",
    licence="",
    licence_text="",
    classes=(),
)


def check_folder(out: Path) -> None:
    """Refuse, before training, a folder that no model could be called after.

    Raises
    ------
    ConfigError
        If the folder's name is no name for a model.
    """
    try:
        model_name(out.resolve().name)
    except ValueError as error:
        raise ConfigError(f"{out}: {error}") from None


def describe(dataset: str) -> DatasetFacts:
    """Facts of a dataset.

    Raises
    ------
    UnknownNameError
        If there is no such dataset; lists those there are.
    """
    if dataset not in DATASETS:
        raise UnknownNameError(
            f"unknown dataset {dataset!r}; there are: {', '.join(DATASETS)}"
        )
    return DATASETS[dataset]


def facts_of(data: SegmentData) -> DatasetFacts:
    """Facts of a dataset: those above, or what the dataset says of itself."""
    if data.name in DATASETS:
        return DATASETS[data.name]
    return DatasetFacts(
        summary=f"trained on {data.name}",
        intended_use="Research by those who trained it.",
        limits="Measured on the validation split of its own dataset only. Research use "
        "only, not for diagnosis.",
        data=f"{data.name}: {len(data.train)} training and {len(data.validation)} "
        f"validation images. {data.note}",
        licence=data.licence,
        licence_text=f"The weights in this folder were trained on {data.name}.\n"
        f"{data.licence}\nNot for diagnosis.\n",
        classes=data.classes,
    )


def publish_part(
    out: Path,
    dataset: str,
    part: SelectorCard | SegmenterCard,
    facts: DatasetFacts | None = None,
) -> Path | None:
    """Write a part's card; with both parts there, the model's card and licence too.

    A selector trained from slide-level labels is a model by itself, and goes with a
    segmenter that was trained on other data.

    Parameters
    ----------
    out : Path
        The model's folder, whose name becomes the model's name.
    dataset : str
        Its name.
    part : SelectorCard or SegmenterCard
        What was trained.
    facts : DatasetFacts, optional
        Sentences of the card; left out, those known for the name.

    Returns
    -------
    Path or None
        card.json, or None while the other part is missing.

    Raises
    ------
    UnknownNameError
        If there is no such dataset.
    ModelError
        If the other part was trained on another dataset.
    """
    selector: SelectorCard | None
    segmenter: SegmenterCard | None
    if isinstance(part, SelectorCard):
        selector, segmenter = part, _other(out, "segmenter", SegmenterCard)
    else:
        selector, segmenter = _other(out, "selector", SelectorCard), part
    by_labels = selector is not None and _is_by_labels(selector)
    if isinstance(part, SelectorCard) and by_labels:
        facts = _facts_of_folder(out, segmenter)
    else:
        facts = facts or describe(dataset)
        _check_same(out, dataset, None if by_labels else selector, segmenter)
    if selector is None or (segmenter is None and not by_labels):
        name = "selector" if isinstance(part, SelectorCard) else "segmenter"
        publish_json(out / f"{name}.card.json", part.model_dump(mode="json"))
        return None
    if by_labels:
        facts = _with_labels(facts, selector)
    card = ModelCard(
        name=out.resolve().name,
        version=version("wsi-pipeline"),
        summary=facts.summary,
        intended_use=facts.intended_use,
        limits=facts.limits,
        licence=facts.licence,
        data=facts.data,
        classes=tuple(
            ClassCard(value=c.value, name=c.name, rgb=c.rgb) for c in facts.classes
        ),
        selector=selector,
        segmenter=segmenter,
        screen=_fitting_screen(out, selector),
    )
    write_card(out, card)
    publish_bytes(out / "LICENSE", facts.licence_text.encode())
    for name in ("selector", "segmenter"):
        (out / f"{name}.card.json").unlink(missing_ok=True)
    return out / "card.json"


def _is_by_labels(selector: SelectorCard) -> bool:
    """Whether it was trained from a user's slide-level labels."""
    return selector.training.get("labels") == "slides"


def _check_same(
    out: Path,
    dataset: str,
    *parts: SelectorCard | SegmenterCard | None,
) -> None:
    """Refuse to put together what the card's sentences would not be true of."""
    made = {
        p.training["dataset"]
        for p in parts
        if p is not None and "dataset" in p.training
    }
    if made - {dataset}:
        raise ModelError(
            f"{out}: holds a part trained on {', '.join(sorted(made - {dataset}))}, "
            f"this one on {dataset}; train them into different folders"
        )


def _facts_of_folder(out: Path, segmenter: SegmenterCard | None) -> DatasetFacts:
    """What to say of the segmenter that is there, or of none."""
    if segmenter is None:
        return _SELECTS_ONLY
    if (out / "card.json").is_file():
        card = read_card(out)
        text = (out / "LICENSE").read_text(encoding="utf-8")
        return DatasetFacts(
            card.summary,
            card.intended_use,
            card.limits,
            # without what an earlier selector was trained on
            card.data.partition(_SELECTOR)[0].strip(),
            card.licence.partition(_AND_SELECTOR)[0],
            text.partition(_SELECTOR)[0],
            card.mask_classes,
        )
    dataset = segmenter.training.get("dataset", "")
    if dataset not in DATASETS:
        raise ModelError(
            f"{out}: its segmenter was trained on {dataset!r} before there was a "
            "selector; train it again after this selector, into the same folder"
        )
    return DATASETS[dataset]


def _with_labels(facts: DatasetFacts, selector: SelectorCard) -> DatasetFacts:
    """Sentences of a model whose selector was trained from slide-level labels."""
    data: str = selector.training["data"]
    return replace(
        facts,
        data=f"{facts.data} {_SELECTOR}{data}".strip(),
        licence=f"{facts.licence}{_AND_SELECTOR}".removeprefix("; "),
        licence_text=f"{facts.licence_text}{_SELECTOR}{data}\n"
        "Its weights are under the terms of who owns these slides.\n"
        "Not for diagnosis.\n",
    )


def _fitting_screen(out: Path, selector: SelectorCard) -> ScreenCard | None:
    """The screen that is there, if it was trained from this selector."""
    screen = read_card(out).screen if (out / "card.json").is_file() else None
    fits = screen is not None and screen.selector_sha256 == selector.sha256
    return screen if fits else None


def _other[Part: (SelectorCard, SegmenterCard)](
    out: Path, name: str, kind: type[Part]
) -> Part | None:
    """The part trained earlier, from its own card or the model's."""
    alone, whole = out / f"{name}.card.json", out / "card.json"
    if alone.is_file():
        return kind(**orjson.loads(alone.read_bytes()))
    if whole.is_file():
        found = orjson.loads(whole.read_bytes())[name]
        return None if found is None else kind(**found)
    return None
