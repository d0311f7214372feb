"""What a training imports at its first step. The fork server imports it once, and every process is forked from that.

DeepSpeed alone brings some 650 modules of torch's compiler with an optimizer that no test uses.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
from pathlib import Path

import deepspeed
from PIL import Image

import tests.multiprocess.parity
import tests.multiprocess.warm  # noqa: F401
from tests.benchmark.models import tiny

for module in (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llava.modeling_llava",
):
    importlib.import_module(module)
assert deepspeed.ops.__compatible_ops__  # found out at the first look: DeepSpeed tries the compiler
deepspeed.utils.nvtx.enable_nvtx = False  # ranges of NVIDIA's profiler around each of 100,000 calls
Image.init()
with tempfile.TemporaryDirectory() as folder:  # what the first model of a process costs more than the next
    tiny.load("llava", tiny.write("llava", Path(folder)))
gc.collect()
gc.freeze()  # DeepSpeed collects garbage whenever it starts, which would search all these modules
