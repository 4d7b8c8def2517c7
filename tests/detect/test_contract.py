"""The page that the contract of detectors begins with: its example runs, and its table names what there is."""

import re
import textwrap

import numpy as np

from sslbd_cli.core import nets
from sslbd_cli.core.session import Session
from sslbd_cli.detect import contract
from tests.micro import make_dataset, make_encoder

EXAMPLE = textwrap.dedent(contract.__doc__[contract.__doc__.index("    @dataclass") :])
ROW = re.compile(
    r"^    (inputs|samples|encoder): .*?  +(\w+)(?: \(\*\))?  +(\w[\w, ]*?)  +(\w[\w, ]*?)  +(\w.*)$", re.M
)


def test_the_example_is_a_detector(cpu):
    names: dict = vars(contract) | {"__name__": "sslbd_cli.detect.methods.long_embedding"}
    exec(EXAMPLE, names)
    data = make_dataset()
    method = names["LongEmbedding"]()
    evidence = contract.Evidence(data.images[:20], data.images[20:])
    findings = method.run(nets.load(make_encoder()).eval(), evidence, Session(cpu))
    assert method.name == "long-embedding" and method.judges == "inputs"
    assert findings.search_space == "judged inputs whose embedding is longer than clean ones usually are"
    assert findings.scores.values.shape == (20,) and findings.scores.calibration.shape == (10,)
    assert np.isfinite(findings.scores.values).all() and set(findings.learned) == {"usual"}


def test_the_table_names_what_there_is():
    rows = ROW.findall(contract.__doc__)
    assert [row[0] for row in rows] == ["inputs", "samples", "encoder"]
    for _, base, methods, given, returned in rows:
        cls = getattr(contract, base)
        required = {name for name in dir(cls) if getattr(getattr(cls, name), "__isabstractmethod__", False)}
        assert required == set(methods.split(", "))
        for word in f"{given}, {returned}".split(", "):
            assert word == "images" or hasattr(contract, word), word
