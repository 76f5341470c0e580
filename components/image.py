"""The container image in which every step runs, and the decorator that makes a function a step in it.

The image is chosen when a pipeline is compiled: `python -m pipelines compile training --image REGISTRY/cyto-dl:TAG`,
or the environment variable CYTO_DL_IMAGE, read when this module is imported. It has `cyto_dl` and kfp installed, so
a step installs nothing when it starts.
"""

import os
from functools import partial

from kfp import dsl

DEFAULT_IMAGE = "cyto-dl:0.1.0"
IMAGE = os.environ.get("CYTO_DL_IMAGE") or DEFAULT_IMAGE

component = partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
