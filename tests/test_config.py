import orjson
import pytest

from wsi_pipeline.config import ExportOptions, RunConfig, SelectOptions, TileOptions
from wsi_pipeline.errors import ConfigError


def test_defaults_are_valid_and_stable():
    assert RunConfig().digest() == RunConfig().digest()
    assert RunConfig().select.memory == 2 * 2**30


def test_toml_sets_what_it_names_and_nothing_else(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "glas"\n[select]\ntop_m = 5\nmemory = "512MiB"\n')
    config = RunConfig.from_toml(file)
    assert (config.model, config.select.top_m) == ("glas", 5)
    assert config.select.memory == 512 * 2**20
    assert config.tile == TileOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[select]\ntopm = 5\n", r"\[select\] unknown option 'topm'"),
        ("[selekt]\n", "unknown option 'selekt'"),
        ("[select]\ntop_m = 0\n", r"\[select\] option 'top_m': got 0"),
        ("[tile]\nchunk_px = 'big'\n", r"\[tile\] option 'chunk_px': got 'big'"),
        ("[select\n", "cannot read"),
    ],
)
def test_a_wrong_config_names_file_and_option(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        RunConfig.from_toml(file)
    assert "run.toml" in str(caught.value)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml"):
        RunConfig.from_toml(tmp_path / "none.toml")


def test_updating_keeps_what_is_not_given():
    config = RunConfig().updated("export", gzip=True, frame=None)
    assert config.export == ExportOptions(gzip=True)
    assert config.updated(None, mpp=0.25).mpp == 0.25


@pytest.mark.parametrize(
    ("stated", "meant"),
    [
        ("1GiB", 2**30),
        ("1.5 GB", 1_500_000_000),
        ("2147483648", 2**31),
        (2**31, 2**31),
        ("0.5", 0.5),
        (0.1, 0.1),
        ("50%", 0.5),
        (" 12.5 % ", 0.125),
        ("1e-05", 1e-05),
        ("100%", 1.0),
        (1.0, 1.0),
    ],
)
def test_memory_is_bytes_or_a_share_and_survives_json(stated, meant):
    made = RunConfig().updated("select", memory=stated, gpu_memory=stated)
    for found in (made.select.memory, made.select.gpu_memory):
        assert (found, type(found)) == (meant, type(meant))
    again = RunConfig(**orjson.loads(orjson.dumps(made.model_dump(mode="json"))))
    assert again == made
    assert again.digest() == made.digest()
    assert type(again.select.memory) is type(meant)


@pytest.mark.parametrize(
    "stated",
    [
        "plenty", "", 0, "0", "0%", 0.0, "0GiB", -1, "-5GiB", -0.5, 1, "1", 8, "8", 1.5,
        "1.5", "150%", "100 KiB", float("nan"), float("inf"), True, None,
    ],
)  # fmt: skip
def test_memory_that_is_nothing_too_much_or_without_a_unit_is_refused(stated):
    with pytest.raises(ConfigError) as caught:
        SelectOptions(memory=stated)
    assert str(caught.value).startswith(f"option 'memory': got {stated!r}, expected 1 ")
    assert "5GiB" in str(caught.value)
    assert "100%" in str(caught.value)


def test_memory_in_a_file_may_be_a_share_or_bytes(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[select]\nmemory = 0.25\n[segment]\nmemory = 2147483648\n")
    config = RunConfig.from_toml(file)
    assert (config.select.memory, config.segment.memory) == (0.25, 2**31)
