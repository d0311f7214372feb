"""Adapters of the peft library. The parameters of a method are the fields of the library's configuration."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from methods.adapter import NAME, AdapterMethod, check_targets

if TYPE_CHECKING:
    from torch import nn

    from benchmark.training.adapters import Samples


class Peft(AdapterMethod):
    """An adapter that peft puts into linear layers or norms.

    Attributes:
        type: its name in peft.PeftType.
        ours: parameters that are not fields of the library's configuration.
    """

    type: ClassVar[str]
    ours: ClassVar[tuple[str, ...]] = ("targets",)

    def options(self, layers: Sequence[str]) -> dict[str, Any]:
        """Return the fields of the library's configuration, without the layers to adapt."""
        return {name: value for name, value in asdict(self.params).items() if name not in self.ours}

    def insert(self, model: nn.Module, layers: Sequence[str], calibration: Samples | None) -> None:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
        from peft.utils import PeftType

        # One expression: the library would shorten a list of 20 names or more.
        wanted = "|".join(map(re.escape, layers))
        kind = PeftType[self.type]
        make: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        config = make(target_modules=wanted, **self.options(layers))
        self.prepare(model, config, calibration)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(self.seed)
            PEFT_TYPE_TO_TUNER_MAPPING[kind](model, config, NAME)
        del model.peft_config  # otherwise the Trainer takes the model for one of the library's own

    def prepare(self, model: nn.Module, config: Any, calibration: Samples | None) -> None:
        """Do what must precede the insertion."""


def check_positive(**values: float) -> None:
    """Raise ValueError for a value that is not above 0."""
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name}={value} must be above 0.")


def rank_fault(rank: int, shape: Sequence[int]) -> str | None:
    """Return why a matrix of a shape cannot have an adapter of a rank; None if it can."""
    if rank <= min(shape):
        return None
    return f"r={rank} is above the layer's rank {min(shape)}. Choose r from 1 to {min(shape)}"


# ---------------------------------------------------------------------------------------------------------------
# LoRA

@dataclass(frozen=True)
class LoraParams:
    """targets: regular expression for the names of layers below a decoder block; r: rank; lora_alpha: numerator of the
    scale; use_rslora: divide it by sqrt(r), not by r; use_dora: learn the norms of the columns apart;
    init_lora_weights: how A and B begin."""

    targets: str = ".*"
    r: int = 32
    lora_alpha: int = 64
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Literal["default", "pissa", "olora", "mica"] = "default"

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(r=self.r, lora_alpha=self.lora_alpha)


class Lora(Peft):
    """LoRA: W' = W + (lora_alpha / r) B A, with A (r, in) from Kaiming's uniform distribution and B (out, r) = 0.

    Granularity: layer. Tensors: A and B of the linear layers of the tuned blocks, and the whole projector; norms are
    frozen. Acts: never; the adapter takes the place of the weights. Extra memory: r (in + out) per layer, far below
    1 |M|, and the optimizer's moments of as many elements instead of |M|.
    Source: Hu et al., ICLR 2022, by the peft library. r 32 and lora_alpha 64 as in LoRASculpt (Liang et al., CVPR
    2025).
    Disagreements: LLaVA's script has r 128 and lora_alpha 256.
    Variants: rslora: the scale is lora_alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732). dora: W' = m (W + B A) / ||W
    + B A||, norms of rows of the weight as stored (the paper's columns), m trained (Liu et al., ICML 2024). pissa: A
    and B begin as W's r principal singular triples, and the base keeps the rest (Meng et al., NeurIPS 2024). olora: A
    and B begin as the first r rows and columns of W's QR decomposition (Buyukakyuz, arXiv 2406.01775). mica: B is
    frozen at W's r minor left singular vectors, A begins at 0 (arXiv 2604.01694). Where W is split, the delta is
    computed on the merged weight W* - B0 A0 + B A.
    """

    Params = LoraParams
    type = "LORA"

    def options(self, layers: Sequence[str]) -> dict[str, Any]:
        options = super().options(layers)
        return options | {"init_lora_weights": options["init_lora_weights"].replace("default", "") or True}

    def fault(self, shape: Sequence[int]) -> str | None:
        return rank_fault(self.params.r, shape)


@dataclass(frozen=True)
class CordaParams:
    """targets, r, lora_alpha: as LoRA's; samples: training samples of the source sets, for the covariances."""

    targets: str = ".*"
    r: int = 32
    lora_alpha: int = 32
    samples: int = 256

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(r=self.r, lora_alpha=self.lora_alpha, samples=self.samples)


class Corda(Peft):
    """CorDA, knowledge preserved: with C the covariance of a layer's inputs, U S V^T = svd(W C) and V^T <- V^T C^-1,
    the r smallest triples begin as B = U sqrt(S), A = sqrt(S) V^T; the base keeps W - B A.

    Granularity: layer. Tensors: as LoRA's. Acts: before training; a pass over `samples` training samples of the source
    sets gives C, so its rows see data of these sets. Extra memory: r (in + out) per layer; in^2 and (in + out) out per
    layer while it is prepared; afterwards far below 1 |M|.
    Source: Yang et al., NeurIPS 2024, by the peft library: each sample's inputs are divided by their largest value, and
    the damping of C doubles until its inverse is accurate.
    Disagreements: the paper's knowledge is text (NQ open); here it is images with questions and answers.
    Variants: none; corda is the class as it is.
    """

    Params = CordaParams
    type = "LORA"
    ours = ("targets", "samples")
    calibrates_on = "sources"

    def options(self, layers: Sequence[str]) -> dict[str, Any]:
        from peft.tuners.lora.config import CordaConfig

        return super().options(layers) | {
            "init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="kpm", verbose=False),
        }

    def prepare(self, model: nn.Module, config: Any, calibration: Samples | None) -> None:
        from peft.tuners.lora.corda import preprocess_corda

        assert calibration is not None
        preprocess_corda(model, config, run_model=calibration.run)

    def fault(self, shape: Sequence[int]) -> str | None:
        return rank_fault(self.params.r, shape)


# ---------------------------------------------------------------------------------------------------------------
# Other types of the library


@dataclass(frozen=True)
class VeraParams:
    """targets: as LoRA's; r: rank of the shared random matrices; d_initial: start of the vector d."""

    targets: str = ".*"
    r: int = 256
    d_initial: float = 0.1

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(r=self.r)


class Vera(Peft):
    """VeRA: W' = W + diag(b) B diag(d) A, with one pair of frozen random matrices A and B for all layers; b = 0.

    Granularity: layer. Tensors: b (out) and d (r) of every linear layer of the tuned blocks, and the whole projector.
    Acts: never. Extra memory: A and B once, r (in + out) of the largest sizes; b and d. Below 1 |M|.
    Source: Kopiczko et al., ICLR 2024, by the peft library. A and B follow from the seed.
    Disagreements: none. r may exceed a layer's rank: the paper uses 256 to 1024.
    Variants: none; vera is the class as it is.
    """

    Params = VeraParams
    type = "VERA"

    def options(self, layers: Sequence[str]) -> dict[str, Any]:
        return super().options(layers) | {"projection_prng_key": self.seed, "save_projection": True}


@dataclass(frozen=True)
class OftParams:
    """targets: as LoRA's; oft_block_size: side of a rotation; use_cayley_neumann: approximate it by five terms."""

    targets: str = ".*"
    oft_block_size: int = 32
    use_cayley_neumann: bool = False

    def __post_init__(self) -> None:
        check_targets(self.targets)
        if self.oft_block_size < 2:
            raise ValueError(f"oft_block_size={self.oft_block_size} must be at least 2.")


def block_fault(name: str, size: int, inputs: int) -> str | None:
    """Return why blocks of a size cannot divide a layer's inputs; None if they can."""
    if inputs % size == 0:
        return None
    divisors = [number for number in range(2, inputs + 1) if inputs % number == 0]
    return f"{name}={size} does not divide its {inputs} inputs. Choose {', '.join(map(str, divisors[:8]))}"


class Oft(Peft):
    """OFT: W' = W blockdiag(R_1, ..., R_k), R_i = (I + Q_i) (I - Q_i)^-1 with Q_i skew-symmetric and 0 at first.

    Granularity: layer. Tensors: the b (b - 1) / 2 elements of each Q_i of the linear layers of the tuned blocks, and
    the whole projector. Acts: never. Extra memory: in (b - 1) / 2 per layer, below 1 |M|.
    Source: Qiu et al., NeurIPS 2023, by the peft library; block size 32 as in PEFT-Arena (arXiv 2605.28819).
    Disagreements: the library's default replaces the inverse by five terms of its series, which is not quite
    orthogonal; here R is exact (use_cayley_neumann=true for the library's).
    Variants: none; oft is the class as it is.
    """

    Params = OftParams
    type = "OFT"

    def fault(self, shape: Sequence[int]) -> str | None:
        return block_fault("oft_block_size", self.params.oft_block_size, shape[1])


@dataclass(frozen=True)
class BoftParams:
    """targets: as LoRA's; boft_block_size: side of a rotation; boft_n_butterfly_factor: number of factors."""

    targets: str = ".*"
    boft_block_size: int = 8
    boft_n_butterfly_factor: int = 2

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(boft_n_butterfly_factor=self.boft_n_butterfly_factor)
        if self.boft_block_size < 2 or self.boft_block_size % 2:
            raise ValueError(f"boft_block_size={self.boft_block_size} must be even.")


class BlockDiagonal:
    """What the library's CUDA extension computes, on every device: without it, the library uses one factor only."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        """Return (n, d h, d h) block-diagonal matrices of (n, d, h, h) blocks."""
        return [torch.stack([torch.block_diag(*factor) for factor in blocks])]

    @staticmethod
    def backward(gradient: torch.Tensor, blocks: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradient of the blocks, which is that of the diagonal."""
        count, size = blocks.shape[1], blocks.shape[2]
        squares = gradient.view(len(blocks), count, size, count, size)
        return [torch.stack([squares[:, i, :, i] for i in range(count)], dim=1)]


class Boft(Peft):
    """BOFT: W' = diag(s) W (R_m ... R_1), R_i = P_i^T blockdiag(Cayley(Q)) P_i with butterfly permutations P_i; s = 1.

    Granularity: layer. Tensors: the Q's and s of the linear layers of the tuned blocks, and the whole projector. Acts:
    never. Extra memory: m in b + out per layer, and m in^2 for the permutations; of the order of 1 |M|.
    Source: Liu et al., ICLR 2024, by the peft library.
    Disagreements: the library uses a single factor (no butterfly) where its CUDA extension cannot be compiled. Here the
    extension's two functions are replaced by torch's, so that the method is the same on every machine.
    Variants: none; boft is the class as it is.
    """

    Params = BoftParams
    type = "BOFT"

    def prepare(self, model: nn.Module, config: Any, calibration: Samples | None) -> None:
        from peft.tuners.boft import layer

        layer._FBD_CUDA = BlockDiagonal  # type: ignore[assignment]  # the library has no type for its extension

    def fault(self, shape: Sequence[int]) -> str | None:
        size, factors = self.params.boft_block_size, self.params.boft_n_butterfly_factor
        whole = size * 2 ** (factors - 1)
        if shape[1] % whole == 0:
            return None
        return (
            f"boft_block_size={size} with boft_n_butterfly_factor={factors} needs a multiple of {whole} inputs, it has "
            f"{shape[1]}. Choose smaller numbers"
        )


@dataclass(frozen=True)
class OsfParams:
    """targets: as LoRA's; effective_rank: the top singular directions that are kept, a share of the rank if at most 1,
    otherwise their number."""

    targets: str = ".*"
    effective_rank: float = 0.5

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(effective_rank=self.effective_rank)


def kept_directions(effective_rank: float, shape: Sequence[int]) -> int:
    """Return the number of singular directions that OSF keeps in a layer."""
    return int(min(shape) * effective_rank) if effective_rank <= 1 else int(effective_rank)


class Osf(Peft):
    """OSF: W' = U_high S_high V_high^T + U_low S_low V_low^T; the high part is frozen, and the gradients of U_low and
    V_low are projected: dU <- (I - U_high U_high^T) dU, dV <- dV (I - V_high V_high^T).

    Granularity: layer. Tensors: U_low, S_low, V_low of the linear layers of the tuned blocks, and the whole projector.
    Acts: on the gradient of each backward pass, before clipping. Extra memory: U_low, S_low, V_low twice, and the high
    directions of the longer side; about 2 |M| at half the rank.
    Source: Nayak et al., arXiv 2504.07097, by the peft library; half of the directions are kept, its default.
    Disagreements: none.
    Variants: none; osf is the class as it is.
    """

    Params = OsfParams
    type = "OSF"

    def options(self, layers: Sequence[str]) -> dict[str, Any]:
        kept = self.params.effective_rank
        return {"effective_rank": kept if kept <= 1 else int(kept)}

    def fault(self, shape: Sequence[int]) -> str | None:
        if 0 < kept_directions(self.params.effective_rank, shape) < min(shape):
            return None
        kept = self.params.effective_rank
        return f"effective_rank={kept:g} keeps none or all of its {min(shape)} singular directions"


@dataclass(frozen=True)
class Ia3Params:
    """targets: as LoRA's; feedforward: those of them whose inputs are rescaled, not their outputs."""

    targets: str = r"self_attn\.(k|v)_proj|mlp\.down_proj"
    feedforward: str = r"mlp\.down_proj"

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_targets(self.feedforward)


class Ia3(Peft):
    """(IA)^3: W' = diag(l) W for keys and values, W' = W diag(l) for the feed-forward's last layer; l = 1.

    Granularity: layer. Tensors: a vector l per layer, and the whole projector. Acts: never. Extra memory: the vectors,
    about 0 |M|.
    Source: Liu et al., NeurIPS 2022, by the peft library.
    Disagreements: none.
    Variants: none; ia3 is the class as it is.
    """

    Params = Ia3Params
    type = "IA3"
    ours = ("targets", "feedforward")

    def options(self, layers: Sequence[str]) -> dict[str, Any]:
        return {"feedforward_modules": rf".*\.(?:{self.params.feedforward})"}


@dataclass(frozen=True)
class ShiraParams:
    """targets: as LoRA's; r: r (in + out) elements of each matrix train; mask: which; samples: of the target's training
    samples, for the gradients that mask=gradient compares."""

    targets: str = ".*"
    r: int = 32
    mask: Literal["random", "magnitude", "gradient"] = "random"
    samples: int = 0

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(r=self.r)
        if (self.mask == "gradient") != (self.samples > 0):
            raise ValueError(f"samples={self.samples}: mask=gradient needs at least 1, other masks need none.")


class Shira(Peft):
    """SHiRA: W' = W + S, with S zero outside r (in + out) chosen elements of each matrix.

    Granularity: element; chosen once, per matrix. Tensors: the chosen elements of the linear layers of the tuned
    blocks, and the whole projector. Acts: never. Extra memory: value and two indices per element; far below 1 |M|.
    Source: Bhardwaj et al., NeurIPS 2024, by the peft library.
    Disagreements: none. Of equal values the first are chosen; the library leaves its user to choose.
    Variants: shira: random elements. shira_magnitude: the largest |W| (the paper's WM). shira_gradient: the largest
    absolute gradients of the loss at W, on `samples` training samples of the target (the paper's Grad).
    """

    Params = ShiraParams
    type = "SHIRA"
    ours = ("targets", "mask", "samples")

    @property
    def calibrates_on(self) -> Literal["", "target"]:  # type: ignore[override]  # here it depends on the mask
        return "target" if self.params.samples else ""

    def options(self, layers: Sequence[str]) -> dict[str, Any]:
        return super().options(layers) | {"random_seed": self.seed}

    def prepare(self, model: nn.Module, config: Any, calibration: Samples | None) -> None:
        if self.params.mask == "random":
            # The library draws every layer with one seed, so that layers of one shape get one mask.
            generator = torch.Generator().manual_seed(self.seed)
            config.mask_fn = lambda layer, r, **_: chosen(torch.rand(layer.weight.shape, generator=generator), r)
        elif self.params.mask == "magnitude":
            config.mask_fn = lambda layer, r, **_: chosen(layer.weight.detach().abs(), r)
        else:
            assert calibration is not None
            weights = {id(module): f"{name}.weight" for name, module in model.named_modules()}
            base = {name: p for name, p in model.named_parameters() if re.fullmatch(config.target_modules, name[:-7])}
            gradients = calibration.gradient(base)
            config.mask_fn = lambda layer, r, **_: chosen(gradients[weights[id(layer)]].abs(), r)

    def fault(self, shape: Sequence[int]) -> str | None:
        out, inputs = shape
        if self.params.r * (out + inputs) <= out * inputs:
            return None
        most = out * inputs // (out + inputs)
        return f"r={self.params.r} would train more elements than it has. Choose r up to {most}"


def chosen(values: torch.Tensor, r: int) -> torch.Tensor:
    """Return a mask of the r (in + out) largest values of a matrix; of equal ones, the first."""
    order = torch.sort(values.flatten(), descending=True, stable=True).indices
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[order[: r * sum(values.shape)]] = True
    return mask.view_as(values)


@dataclass(frozen=True)
class SupertuningParams:
    """targets: as LoRA's; sparsity: share of each matrix that stays frozen; select_top: train the largest |W|, not the
    smallest."""

    targets: str = ".*"
    sparsity: float = 0.99
    select_top: bool = True

    def __post_init__(self) -> None:
        check_targets(self.targets)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity} must be at least 0 and below 1.")


class Supertuning(Peft):
    """Super-Tuning: W' = W + S, with S zero outside the int((1 - sparsity) n) largest |W| of each matrix of n elements.

    Granularity: element; chosen once, per matrix. Tensors: the chosen elements of the linear layers of the tuned
    blocks, and the whole projector. Acts: never. Extra memory: value and index per element; far below 1 |M|.
    Source: arXiv 2607.09287, by the peft library.
    Disagreements: the paper adapts queries and values; here, as for every method, all linear layers of the tuned
    blocks.
    Variants: supertuning: the largest |W|. supertuning_bottom: the smallest, which is SPIDER's prior as a static mask.
    """

    Params = SupertuningParams
    type = "SUPERTUNING"

    def fault(self, shape: Sequence[int]) -> str | None:
        if int(shape[0] * shape[1] * (1 - self.params.sparsity)) > 0:
            return None
        return f"sparsity={self.params.sparsity} trains none of its {shape[0] * shape[1]} elements"


@dataclass(frozen=True)
class LnTuningParams:
    """targets: regular expression for the names of norms below a decoder block."""

    targets: str = ".*"

    def __post_init__(self) -> None:
        check_targets(self.targets)


class LnTuning(Peft):
    """LN tuning: w <- AdamW(w, g) for the norms of the tuned blocks; everything else in them is frozen.

    Granularity: tensor. Tensors: the norms of the tuned blocks, and the whole projector. Acts: never. Extra memory: a
    copy of the norms, about 0 |M|.
    Source: Zhao et al., ICLR 2024, by the peft library.
    Disagreements: none.
    Variants: none; ln_tuning is the class as it is.
    """

    Params = LnTuningParams
    type = "LN_TUNING"
    layers = "norm"
