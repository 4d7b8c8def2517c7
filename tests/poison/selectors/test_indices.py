"""Listed rows are taken as they are, from the first on."""

import numpy as np

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.poison.contract import SelectorPool


def test_the_first_of_the_list_in_its_own_order():
    pool = SelectorPool(count=50, listed_rows=np.array([30, 4, 44, 7]))
    chosen = [plugin.parse("select", "indices")(pool, count, generator(0)).tolist() for count in (1, 2, 4)]
    assert chosen == [[30], [4, 30], [4, 7, 30, 44]]
