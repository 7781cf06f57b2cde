"""What synthetic tissue is made of: noise, layout, glands, nuclei, stain, artefacts."""
