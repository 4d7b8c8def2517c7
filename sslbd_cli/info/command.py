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
    artefact = kinds.read_any(input, sealed=verify)
    if recipe:
        click.echo(recipes.script(artefact.history, artefact.kind), nl=False)
    elif digest:
        click.echo(artefact.sha256)
    elif verify:
        print_results({"kind": artefact.kind, "sha256": artefact.sha256, "verified": True}, json_lines=json_lines)
    else:
        print_results(describe(artefact), json_lines=json_lines)


def describe(artefact: Any) -> dict[str, Any]:
    """Describe an artefact: kind, digest, content, and its history with one line per command."""
    from sslbd_cli.artefacts.captions import decode
    from sslbd_cli.artefacts.history import main_line
    from sslbd_cli.artefacts.recipe import command_line
    from sslbd_cli.plugin import brief

    rows: dict[str, Any] = {"kind": artefact.kind, "sha256": artefact.sha256}
    if artefact.kind == "dataset":
        rows |= {
            "images": len(artefact.images),
            "size": artefact.extent,
            "classes": len(artefact.classes),
        }
        rows["labels"] = artefact.labels is not None
        if artefact.captions is not None:
            rows["captions"] = True
            rows["first caption"] = one_line(decode(artefact.captions[:1])[0], "?")
        if artefact.truth is not None:
            rows["poisoned"] = int(artefact.truth.poisoned.sum())
    elif artefact.kind == "encoder":
        rows |= {
            "arch": artefact.arch,
            "size": artefact.size,
            "dim": artefact.dim,
            "mean": list(artefact.mean),
            "std": list(artefact.std),
        }
        rows["parameters"] = int(sum(t.size for t in artefact.tensors.values()))
        if artefact.text is not None:
            rows["text tower"] = brief("arch", artefact.text["tower"])
            rows["tokeniser"] = artefact.text["tokeniser"] or None
    elif artefact.kind == "features":
        rows |= {"rows": len(artefact.feats), "dim": artefact.feats.shape[1], "labels": artefact.labels is not None}
    elif artefact.kind == "guard":
        rows |= {
            "method": artefact.method,
            "size": artefact.size,
            "encoder": artefact.encoder,
            "reference": artefact.reference,
        }
        rows |= {"calibration images": len(artefact.calibration), "search_space": artefact.search_space}
        rows["doubt"] = artefact.doubt or None
    else:
        rows |= {"command": artefact.command, "results": artefact.results}
    rows["history"] = [command_line(entry) for entry in main_line(artefact.history)]
    return rows
