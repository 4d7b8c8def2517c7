"""Describe an artefact and how it was made."""

from __future__ import annotations

from typing import Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run
from sslbd_cli.words import one_line


@options.command(
    "info",
    examples=(
        "sslbd data shapes --count 500 | sslbd info",
        "sslbd info --recipe backdoored.safetensors > rebuild.sh",
    ),
)
@options.input_argument("ARTEFACT")
@click.option("--recipe", is_flag=True, help="Print a shell script that rebuilds the file.")
@click.option("--digest", is_flag=True, help="Print only the content digest.")
@click.option("--verify", is_flag=True, help="Hash the content again and compare it with the recorded digest.")
@options.json_lines
def command(run: Run, input: str, recipe: bool, digest: bool, verify: bool, json_lines: bool) -> None:
    """Show what an artefact holds, how it was made, and whether it is intact.

    Every command checks the content digest of its inputs; --verify does only this.
    """
    from sslbd_cli.artefacts import kinds
    from sslbd_cli.artefacts import recipe as recipes
    from sslbd_cli.cli.output import print_results
    from sslbd_cli.errors import InputError

    if recipe + digest + verify > 1:
        raise InputError("give one of --recipe, --digest and --verify")
    found = kinds.read_any(input, sealed=verify)
    if recipe:
        click.echo(recipes.script(found.history, found.kind), nl=False)
    elif digest:
        click.echo(found.sha256)
    elif verify:
        print_results({"kind": found.kind, "sha256": found.sha256, "verified": True}, json_lines=json_lines)
    else:
        print_results(describe(found), json_lines=json_lines)


def describe(found: Any) -> dict[str, Any]:
    """Describe an artefact: kind, digest, content, and its history with one line per command."""
    from sslbd_cli.artefacts.captions import decode
    from sslbd_cli.artefacts.recipe import command_line

    rows: dict[str, Any] = {"kind": found.kind, "sha256": found.sha256}
    if found.kind == "dataset":
        rows |= {
            "images": len(found.images),
            "size": found.extent,
            "classes": len(found.classes),
        }
        rows["labels"] = found.labels is not None
        if found.captions is not None:
            rows["captions"] = True
            rows["first caption"] = one_line(decode(found.captions[:1])[0], "?")
        if found.truth is not None:
            rows["poisoned"] = int(found.truth.poisoned.sum())
    elif found.kind == "encoder":
        rows |= {
            "arch": found.arch,
            "size": found.size,
            "dim": found.dim,
            "mean": list(found.mean),
            "std": list(found.std),
        }
        rows["parameters"] = int(sum(t.size for t in found.tensors.values()))
        if any(name.startswith("text.") for name in found.tensors):
            rows["text tower"] = True
    elif found.kind == "features":
        rows |= {"rows": len(found.feats), "dim": found.feats.shape[1], "labels": found.labels is not None}
    elif found.kind == "guard":
        rows |= {"method": found.method, "size": found.size, "encoder": found.encoder, "reference": found.reference}
        rows |= {"calibration images": len(found.calibration), "search_space": found.search_space}
        rows["doubt"] = found.doubt or None
    else:
        rows |= {"command": found.command, "results": found.results}
    rows["history"] = [command_line(entry) for entry in found.history]
    return rows
