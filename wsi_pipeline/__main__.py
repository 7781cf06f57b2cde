"""Lets `python -m wsi_pipeline` do what `wsi` does."""

from wsi_pipeline.cli import main

main()
