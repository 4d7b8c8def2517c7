"""What PatchSearch and PoisonCAM share: cluster, find windows, test them for flips, learn the patches, flag images.

The two differ in how a window is found and in what is flagged: a subclass gives those keys their defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core import poisonnet
from sslbd_cli.core.bases import Detector, Evidence, Findings
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.localise import Cam, Localiser, Mask, Oracle, Random, Rise
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.plugin import key
from sslbd_cli.core.scan import Clusters, FlipTest, Lens, crop, find_clusters
from sslbd_cli.core.search import Candidates, Schedule, planned, search
from sslbd_cli.core.train import Watch

LANDINGS = 5  # clusters that a trigger's images may be split over
