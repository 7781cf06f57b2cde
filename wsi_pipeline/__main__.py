"""Lets `python -m wsi_pipeline` do what `wsi` does."""

from wsi_pipeline.cli import main

if __name__ == "__main__":
    main()
