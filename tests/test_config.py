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


def test_sizes_are_parsed_and_nonsense_is_refused():
    assert SelectOptions(memory="1GiB").memory == 2**30
    with pytest.raises(ConfigError, match="memory"):
        SelectOptions(memory="plenty")
