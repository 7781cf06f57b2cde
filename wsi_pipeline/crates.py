"""Describes a finished slide as a Workflow Run RO-Crate: what was made, and from what.

The folder of a slide's results is the crate. Nobody is named in it, and no folder.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from wsi_pipeline.publishing import json_bytes, publish_json
from wsi_pipeline.results import NOTICE, Manifest, SlideFolder
from wsi_pipeline.software import PACKAGE

CRATE = "https://w3id.org/ro/crate/1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_SHA256 = "https://w3id.org/ro/terms/workflow-run#sha256"  # not a term of 1.1
_KINDS = {
    ".csv": "text/csv",
    ".geojson": "application/geo+json",
    ".gz": "application/gzip",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".toml": "application/toml",
    ".zip": "application/zip",
}

type Entity = dict[str, Any]
"""One entity of the JSON-LD graph."""


def publish_crate(folder: SlideFolder, manifest: Manifest) -> None:
    """Write ``ro-crate-metadata.json`` beside the results of a slide.

    Parameters
    ----------
    folder : SlideFolder
        Results.
    manifest : Manifest
        About to be published.

    Raises
    ------
    ExportError
        If it cannot be written.

    References
    ----------
    Process Run Crate 0.5 of Workflow Run RO-Crate (Leo et al., 2024); RO-Crate 1.1.
    """
    publish_json(folder.crate, describe_slide(folder, manifest))


def describe_slide(folder: SlideFolder, manifest: Manifest) -> dict[str, Any]:
    """What ``ro-crate-metadata.json`` holds, JSON values; see `publish_crate`."""
    return {
        "@context": [f"{CRATE}/context", {"sha256": _SHA256}],
        "@graph": _graph(folder, manifest),
    }


def _graph(folder: SlideFolder, manifest: Manifest) -> list[Entity]:
    inputs = [*_slide_files(manifest), *_side_files(manifest)]
    model, weights = _model(manifest)
    software = [_package(PACKAGE, manifest.version)]
    software += [_package(name, v) for name, v in manifest.software.items()]
    software[0]["softwareRequirements"] = _references(software[1:])
    software[0] |= {"description": NOTICE}
    outputs = _outputs(folder, manifest)
    used = [*inputs, model, *weights]
    config = folder.name_of(folder.config)
    made = [entity for entity in outputs if entity["@id"] != config]
    action = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": f"wsi run of {manifest.slide}",
        "description": _how(folder, manifest),
        "instrument": {"@id": software[0]["@id"]},
        "object": _references([*used, {"@id": config}]),
        "result": _references(made),
        "endTime": manifest.ended,
        "actionStatus": "http://schema.org/CompletedActionStatus",
    }
    terms = {
        "@id": "#terms",
        "@type": "CreativeWork",
        "name": NOTICE,
        "description": f"Licence of the model: {manifest.model['licence']}. "
        f"{manifest.model['limits']}",
    }
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"Masks of {manifest.slide}",
        "description": f"{NOTICE} {manifest.status}: {manifest.reason}".rstrip(": "),
        "identifier": manifest.slide_id,
        "datePublished": manifest.ended,
        "license": {"@id": terms["@id"]},
        "conformsTo": {"@id": PROFILE},
        "hasPart": _references([*outputs, *inputs, *weights]),
        "mentions": {"@id": action["@id"]},
    }
    descriptor = {
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "about": {"@id": "./"},
        "conformsTo": {"@id": CRATE},
    }
    profile = {
        "@id": PROFILE,
        "@type": "CreativeWork",
        "name": "Process Run Crate",
        "version": PROFILE.rpartition("/")[2],
    }
    return [descriptor, root, profile, terms, action, *software, *used, *outputs]


def _slide_files(manifest: Manifest) -> list[Entity]:
    """Files of the slide; equal ones count once."""
    found = manifest.facts["tile"].get("inputs", ())
    return _once(_input(file, "slide") for file in found)


def _side_files(manifest: Manifest) -> list[Entity]:
    """The user's tissue mask and features, where there are any."""
    facts = manifest.facts["tissue"]
    names = ("mask", "tissue mask"), ("features", "features of the patches")
    return _once(
        _input({"name": words, "sha256": facts[f"{name}_sha256"]}, words)
        for name, words in names
        if f"{name}_sha256" in facts
    )


def _input(file: Mapping[str, Any], role: str) -> Entity:
    """A file that lies elsewhere: its content is its name."""
    if "sha256" not in file:
        mark = " ".join(file["version"])
        return {
            "@id": f"#{quote(file['name'], safe='')}",
            "@type": "CreativeWork",
            "name": file["name"],
            "description": f"{role}; of this version in its store: {mark}",
        }
    entity = {
        "@id": f"urn:sha256:{file['sha256']}",
        "@type": "File",
        "name": file["name"],
        "description": role,
        "sha256": file["sha256"],
    }
    if "size" in file:
        entity["contentSize"] = str(file["size"])
    return entity


def _once(entities: Iterable[Entity]) -> list[Entity]:
    return list({entity["@id"]: entity for entity in entities}.values())


def _model(manifest: Manifest) -> tuple[Entity, list[Entity]]:
    """The model, and its files of weights."""
    facts = manifest.model
    parts = ("selector", "segmenter", "screen")
    weights = _once(
        _input({"name": f"{part}.safetensors", "sha256": sha256}, "weights")
        for part in parts
        if (sha256 := facts.get(f"{part}_sha256"))
    )
    model = {
        "@id": "#model",
        "@type": "CreativeWork",
        "name": facts["name"],
        "version": facts["version"],
        "description": f"{facts['summary']}. {facts['limits']}",
        "hasPart": _references(weights),
    }
    return model, weights


def _package(name: str, number: str) -> Entity:
    return {
        "@id": f"pkg:pypi/{name}@{quote(number, safe='')}",
        "@type": "SoftwareApplication",
        "name": name,
        "softwareVersion": number,
    }


def _outputs(folder: SlideFolder, manifest: Manifest) -> list[Entity]:
    """Files of the folder; of stores of chunks the folder, whose files are listed."""
    files = dict(manifest.files)
    places = folder.manifest, folder.run
    for place, document in zip(places, manifest.documents(), strict=True):
        data = json_bytes(document)
        digest = sha256(data).hexdigest()
        files[place.name] = {"size": len(data), "sha256": digest}
    entities: list[Entity] = []
    for name, facts in sorted(files.items()):
        top, slash, _ = name.partition("/")
        if not slash:
            entities.append(_output(name, facts))
        elif f"{top}/" != (entities[-1]["@id"] if entities else ""):
            entities.append(
                {
                    "@id": f"{top}/",
                    "@type": "Dataset",
                    "name": top,
                    "description": "sha256 of its files: see manifest.json",
                }
            )
    return entities


def _output(name: str, facts: Mapping[str, Any]) -> Entity:
    entity = {
        "@id": quote(name),
        "@type": "File",
        "name": name,
        "contentSize": str(facts["size"]),
        "sha256": facts["sha256"],
    }
    kind = _KINDS.get(name[name.rfind(".") :])
    return entity | ({"encodingFormat": kind} if kind else {})


def _how(folder: SlideFolder, manifest: Manifest) -> str:
    """How to do it again; a samplesheet keeps the slide's id."""
    return (
        f"wsi run SHEET --model {manifest.model['name']} "
        f"--config {folder.name_of(folder.config)} -o OUT; SHEET is a CSV file with "
        f"the row sample = {manifest.slide_id}, slide = the file of that name"
    )


def _references(entities: Iterable[Entity]) -> list[Entity]:
    return [{"@id": entity["@id"]} for entity in entities]
