import hashlib

import pytest

from wsi_pipeline.errors import ConfigError, ModelError, UnknownNameError
from wsi_pipeline.models.cards import (
    ModelFolder,
    SegmenterCard,
    SelectorCard,
    find_model,
    read_card,
    shipped_models,
)
from wsi_pipeline.training.describing import DATASETS, check_folder, publish_part


def parts(folder) -> tuple[SelectorCard, SegmenterCard]:
    folder.mkdir(exist_ok=True)
    digests = {}
    for name in ("selector", "segmenter"):
        (folder / f"{name}.safetensors").write_bytes(name.encode())
        digests[name] = hashlib.sha256(name.encode()).hexdigest()
    free = {"architecture": {}, "training": {}, "metrics": {}}
    return (
        SelectorCard(
            sha256=digests["selector"], mpp=1.0, patch_px=64, top_m=4, tasks=("a",),
            **free,
        ),
        SegmenterCard(
            sha256=digests["segmenter"], mpp=0.5, region_px=64, nodes=8, **free
        ),
    )  # fmt: skip


@pytest.mark.parametrize("first", [0, 1])
def test_a_card_appears_when_both_parts_are_trained(tmp_path, first):
    folder = tmp_path / "mine"
    both = parts(folder)
    assert publish_part(folder, "glas", both[first]) is None
    assert publish_part(folder, "glas", both[1 - first]) == folder / "card.json"
    card = read_card(folder)
    assert (card.selector, card.segmenter, card.name) == (*both, "mine")
    assert card.finest_mpp == 0.5
    assert "commercial" in (folder / "LICENSE").read_text()
    assert not list(folder.glob("*.card.json"))


def test_training_one_part_again_keeps_the_other(tmp_path):
    folder = tmp_path / "mine"
    selector, segmenter = parts(folder)
    publish_part(folder, "synthetic", selector)
    publish_part(folder, "synthetic", segmenter)
    publish_part(folder, "synthetic", selector.model_copy(update={"top_m": 9}))
    assert read_card(folder).selector.top_m == 9
    assert read_card(folder).segmenter == segmenter


def test_parts_of_different_datasets_are_not_put_together(tmp_path):
    folder = tmp_path / "mine"
    selector, segmenter = (
        part.model_copy(update={"training": {"dataset": name}})
        for part, name in zip(parts(folder), ("glas", "synthetic"), strict=True)
    )
    publish_part(folder, "glas", selector)
    with pytest.raises(ModelError, match="different folders"):
        publish_part(folder, "synthetic", segmenter)


@pytest.mark.parametrize("name", ["tissue", "my model", ".x"])
def test_a_folder_that_is_no_name_is_refused_before_training(tmp_path, name):
    with pytest.raises(ConfigError, match="no name"):
        check_folder(tmp_path / name)


def test_changed_or_foreign_weights_are_not_loaded(tmp_path):
    folder = tmp_path / "mine"
    for part in parts(folder):
        publish_part(folder, "synthetic", part)
    model = find_model(folder)
    assert model.weights(model.card.selector) == folder / "selector.safetensors"
    (folder / "selector.safetensors").write_bytes(b"changed")
    with pytest.raises(ModelError, match="sha256"):
        model.weights(model.card.selector)
    (folder / "selector.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        model.weights(model.card.selector)
    pickled = model.card.selector.model_copy(update={"file": "selector.pt"})
    with pytest.raises(ModelError, match=r"only \.safetensors"):
        ModelFolder(folder, model.card).weights(pickled)


def test_a_folder_without_a_valid_card_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no valid model card"):
        find_model(tmp_path)
    (tmp_path / "card.json").write_text('{"name": "x"}')
    with pytest.raises(ModelError, match="no valid model card"):
        find_model(tmp_path)


@pytest.mark.parametrize("name", [None, "nope"])
def test_without_a_known_name_the_models_are_listed(name):
    with pytest.raises(UnknownNameError) as caught:
        find_model(name)
    for key, facts in DATASETS.items():
        assert f"{key}: {facts.summary}" in str(caught.value)


def test_shipped_models_are_whole_and_small():
    assert set(shipped_models()) == {"glas", "synthetic"}
    total = 0
    for name in shipped_models():
        model = find_model(name)
        for part in (model.card.selector, model.card.segmenter):
            total += model.weights(part).stat().st_size
        assert "not for diagnosis" in model.card.limits
        assert (model.path / "LICENSE").read_text().count("diagnosis") == 1
    assert total < 15 * 2**20
