import subprocess
import sys

import wsi_pipeline


def test_every_name_of_the_face_is_there():
    for name in wsi_pipeline.__all__:
        assert getattr(wsi_pipeline, name).__name__ == name
    assert len(wsi_pipeline.__all__) <= 14


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(wsi_pipeline, "tile")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, wsi_pipeline;"
        "print([m for m in ('torch', 'dask', 'zarr', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]"
