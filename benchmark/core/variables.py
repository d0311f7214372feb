"""Environment variables that would change a run although its configuration does not: which, why, and their removal."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from fnmatch import fnmatchcase

from benchmark.core.errors import UserError

# Pattern of the name -> what the variable would change. No setting of a run comes from these, so all are removed.
CHANGES_NUMBERS = {
    "ACCELERATE_*": "accelerate: mixed precision, accumulation, clipping, device, DeepSpeed, FSDP, compilation",
    "FSDP_*": "accelerate: sharding of the model",
    "MEGATRON_LM_*": "accelerate: sharding of the model",
    "PARALLELISM_CONFIG_*": "accelerate: tensor, context and sequence parallelism",
    "XLA_USE_BF16": "accelerate: float32 becomes bfloat16",
    "XLA_DOWNCAST_BF16": "accelerate: float64 becomes bfloat16",
    "NVIDIA_TF32_OVERRIDE": "CUDA: TF32 on or off, whatever torch is told",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "torch: TF32 in matrix products",
    "CUBLAS_WORKSPACE_CONFIG": "cuBLAS: the choice of kernels",
    "CUBLASLT_WORKSPACE_SIZE": "torch: the choice of kernels",
    "TORCH_BLAS_PREFER_*": "torch: the library of matrix products",
    "TORCH_LINALG_PREFER_*": "torch: the library of solvers",
    "TORCH_MKLDNN_MATMUL_*": "torch: which matrix products oneDNN computes",
    "TORCH_LINEAR_FLATTEN_3D": "torch: the shape of matrix products",
    "TORCH_ROCM_FA_PREFER_CK": "torch: the attention kernel",
    "TRANSFORMERS_SDPA_FORCE_GQA": "transformers: the attention kernel",
    "USE_HUB_KERNELS": "transformers: kernels that it fetches",
    "TRUST_REMOTE_CODE": "transformers: code of a checkpoint",
    "PYTORCH_TUNABLEOP_*": "torch: the choice of kernels",
    "PYTORCH_TENSOREXPR*": "torch: fusion of operations",
    "TORCH_COMPILE_*": "torch: what is compiled",
    "USE_TORCH_XLA": "transformers: the device",
    "PJRT_DEVICE": "torch-xla: the device",
    "PT_HPU_LAZY_MODE": "Habana: the device",
    "TORCH_CUDNN_*": "torch: the choice of convolution and attention kernels",
    "TORCHINDUCTOR_*": "torch: what a compiled model computes",
    "TORCHDYNAMO_*": "torch: what is compiled",
    "PYTORCH_JIT*": "torch: fusion of operations",
    "PYTORCH_NVFUSER_*": "torch: fusion of operations",
    "ATEN_CPU_CAPABILITY": "torch: the instruction set, and with it the rounding",
    "ONEDNN_*": "oneDNN: the instruction set and the default precision",
    "DNNL_*": "oneDNN: older names of the same",
    "MKL_*": "MKL: instruction set, reproducibility mode, threads",
    "OMP_DYNAMIC": "OpenMP: the number of threads changes while a run goes on",
    "OMP_THREAD_LIMIT": "OpenMP: fewer threads than the cell says",
    "KMP_DETERMINISTIC_REDUCTION": "OpenMP: the order of sums",
    "FLASH_ATTENTION_DETERMINISTIC": "flash-attn: the order of sums",
    "DS_SDMA_*": "DeepSpeed: how weights are gathered",
    "DS_DC_*": "DeepSpeed: what is offloaded",
}
# Variables that a launcher sets for its processes. Only `benchmark.running.rank` reads them, from our launcher.
CHANGES_LAYOUT = {
    "RANK": "torch, DeepSpeed: number of the process",
    "LOCAL_RANK": "torch, accelerate, DeepSpeed: number on this machine; chooses the GPU and starts a group",
    "WORLD_SIZE": "torch, accelerate: number of processes; above 1 a lone process waits for the others for ever",
    "LOCAL_WORLD_SIZE": "accelerate: processes of this machine",
    "LOCAL_SIZE": "DeepSpeed: processes of this machine",
    "GROUP_RANK": "torchrun: number of the machine",
    "GROUP_WORLD_SIZE": "torchrun: number of machines",
    "ROLE_RANK": "torchrun: number of the process in its role",
    "ROLE_WORLD_SIZE": "torchrun: processes of a role",
    "NODE_RANK": "accelerate: number of the machine",
    "CROSS_RANK": "DeepSpeed's launcher: number of the machine",
    "CROSS_SIZE": "DeepSpeed's launcher: number of machines",
    "MASTER_ADDR": "torch: where the processes meet",
    "MASTER_PORT": "torch: where the processes meet",
    "TORCHELASTIC_*": "transformers takes the process for one of torchrun's",
    "PET_*": "torchrun: defaults of its options, such as the number of processes",
    "OMPI_COMM_WORLD_*": "accelerate, DeepSpeed: numbers of an MPI job",
    "PMI_*": "accelerate: numbers of an MPI job",
    "MV2_COMM_WORLD_*": "accelerate: numbers of an MPI job",
}
# Names that match these patterns but change no number.
HARMLESS = {
    "ACCELERATE_LOG_LEVEL", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS", "TORCHDYNAMO_VERBOSE",
    "MKL_VERBOSE", "ONEDNN_VERBOSE", "DNNL_VERBOSE",
}
# Names that this process and its parents removed, for provenance.json. Values are not kept: they may name hosts.
removed: set[str] = set()
PASSED_ON = "SPIDERBENCH_REMOVED"  # passes these names to child processes


def neutralise(environment: MutableMapping[str, str], *, launched: bool) -> dict[str, str]:
    """Remove the variables that would change a number or the layout of the processes.

    Call it before torch is imported, because torch reads some of them then.

    Args:
        environment: changed in place; os.environ, or the environment of processes to be started.
        launched: whether our launcher started the process, which then needs the launcher's variables.

    Returns:
        Removed names with their values, except empty values, which change nothing.
    """
    patterns = CHANGES_NUMBERS if launched else {**CHANGES_NUMBERS, **CHANGES_LAYOUT}
    named = [name for name in environment if any(fnmatchcase(name, pattern) for pattern in patterns)]
    found = [name for name in named if name not in HARMLESS]
    return {name: value for name in found if (value := environment.pop(name))}


def neutralise_process(*, launched: bool) -> None:
    """Clean the environment of this process, and keep the removed names; see `neutralise`.

    Raises:
        UserError: another launcher started this program several times.
    """
    size, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK")
    if not launched and rank is not None and size.isdecimal() and int(size) > 1:
        raise UserError(
            f"A launcher started this program {size} times (RANK={rank}, WORLD_SIZE={size}). Start it once: "
            f"engine=zero2 gpus={size} starts the processes itself. If these are left over: unset RANK WORLD_SIZE."
        )
    found = set(neutralise(os.environ, launched=launched))
    removed.update(found, os.environ.get(PASSED_ON, "").split())
    if removed:
        os.environ[PASSED_ON] = " ".join(sorted(removed))
    if found and not launched:
        print(f"note: ignored, because only its settings define a cell: {', '.join(sorted(found))}", file=sys.stderr)
