"""Check what `make -n` would run: each `sslbd` command line must be valid."""

import re
import shlex

from sslbd_cli.manual import build

COMMANDS = {name: command for group in build.book().commands.values() for name, command in group.items()}


def checked(plan: str) -> list[str]:
    """Return the names of the commands in a plan. Options, presets and spec strings are parsed, but nothing is run."""
    lines = re.findall(r"^\s*sslbd (.*?)(?: 2?> .*)?(?: \|\| test .*)?$", plan, re.MULTILINE)
    for line in lines:
        name, *argv = shlex.split(line.replace("$((42 + ", "$((").replace("$((", "").replace("))", ""))
        with COMMANDS[name].make_context(name, argv) as context:
            assert context.params
    return [line.split()[0] for line in lines]
