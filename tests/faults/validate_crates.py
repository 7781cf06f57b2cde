"""Validates RO-Crates against Process Run Crate, without a network; see `make faults`.

Runs where the packages roc-validator and rocrate are: `validate_crates.py FOLDER...`.
"""

import sys
from importlib.metadata import distribution

import requests
from rocrate_validator import models, services

_CONTEXT = "https://w3id.org/ro/crate/1.1/context"


def _request(
    session: requests.Session, method: str, url: str, **options: object
) -> requests.Response:
    """Answer with the context that the package rocrate ships; all else is not there."""
    response = requests.Response()
    response.url, response.status_code, response._content = url, 404, b""
    if url == _CONTEXT:
        file = distribution("rocrate").locate_file("rocrate/data/ro-crate.jsonld")
        response.status_code, response._content = 200, file.read_bytes()
        response.headers["Content-Type"] = "application/ld+json"
    return response


def main(folders: list[str]) -> int:
    """Print what is required and missing; return how many crates are not valid."""
    requests.Session.request = _request
    wrong = 0
    for folder in folders:
        settings = services.ValidationSettings(
            rocrate_uri=folder,
            profile_identifier="process-run-crate",
            requirement_severity=models.Severity.REQUIRED,
            no_cache=True,
        )
        issues = services.validate(settings).get_issues()
        wrong += bool(issues)
        for issue in issues:
            sys.stdout.write(f"{folder} {issue.check.identifier} {issue.message}\n")
    right = len(folders) - wrong
    sys.stdout.write(f"{right} of {len(folders)} crates are valid\n")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
