"""Options that take a spec string, as a user sees them."""

import click
import pytest

from sslbd_cli.cli.spec import Spec
from sslbd_cli.main import toolkit

COMMANDS = toolkit.list_commands(click.Context(toolkit))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_default_is_shown_as_it_is_typed(name, sslbd):
    command = toolkit.get_command(click.Context(toolkit), name)
    status, out, _ = sslbd(name, "--help")
    assert status == 0 and "[default: (" not in out
    for option in (o for o in command.params if isinstance(o, click.Option) and isinstance(o.type, Spec)):
        for default in option.default if isinstance(option.default, tuple) else ():
            assert f"[default: {default}]" in out


def test_the_default_of_detect_is_dede(sslbd):
    assert "[default: dede]" in sslbd("detect", "--help")[1]
