"""The rules of QuPath's importer of GeoJSON, with a remedy for each."""
