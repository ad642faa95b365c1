"""Networks that are trained from nothing: attention over patches (R9), and a small CNN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.finetune.backbones import RANDOM, known_card, load_backbone
from zoo.finetune.networks import NETWORKS, Network, assembled, seeded
from zoo.finetune.phases import HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AttentionNet",
    "PatchCnn",
    "SmallCnn",
    "amil_cnn",
    "amil_of",
    "small_cnn",
]

_GREY = (0.5, 0.5, 0.5)
"""Mean and deviation for networks without a past: pixels between −1 and 1."""


class PatchCnn(nn.Sequential):
    """The extractor of A-MIL: two convolutions, 500 features.

    **Shape**: ``(patch, 3, px, px)`` → ``(patch, 500)``; ``px`` is 28 in the paper, 16 at least.

    **Reference**: Patil et al. 2019, Breast Cancer Histopathology Image Classification and
    Localization using Multiple Instance Learning, table II; from Ilse et al. 2018, table 8.

    NOTE[DIFF] The second pooling brings any patch to 4 × 4, which at 28 px is the paper's
    halving, so that other patch sizes (the paper's 124 px for BACH) need no other layer.

    Examples
    --------
    >>> import torch
    >>> PatchCnn()(torch.zeros(2, 3, 28, 28)).shape
    torch.Size([2, 500])
    """

    n_features = 500

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 20, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(4),
            nn.Flatten(),
            nn.Linear(800, self.n_features),
            nn.ReLU(),
        )


class AttentionNet(nn.Module):
    """Attention pooling over the patches of one image, trained with what extracts their features.

    z = Σ_p a_p h_p with a_p = softmax_p(wᵀ tanh(V h_pᵀ)), then a linear classifier of z.

    **Shape**: ``(patch, 3, px, px)``, all of one image → ``(1, output)`` logits.

    **Reference**: Patil et al. 2019, equations 2 and 3; Ilse et al. 2018.

    NOTE[DIFF] The width of V is not printed in the paper; 128 is that of Ilse et al. The paper's
    single sigmoid with binary cross-entropy is here a softmax over the classes with
    cross-entropy: for two classes the same likelihood, and it knows more than two.

    Parameters
    ----------
    extractor
        ``(patch, 3, px, px)`` → ``(patch, feature)``.
    n_features
        Features of the extractor.
    outputs
        Numbers to put out.
    hidden
        Width of V.

    Examples
    --------
    >>> import torch
    >>> net = AttentionNet(PatchCnn(), 500, 2).eval()
    >>> net(torch.zeros(3, 3, 28, 28)).shape, net.attention(torch.zeros(3, 3, 28, 28)).shape
    (torch.Size([1, 2]), torch.Size([3]))
    """

    def __init__(
        self, extractor: nn.Module, n_features: int, outputs: int, hidden: int = 128
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.scores = nn.Sequential(
            nn.Linear(n_features, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False)
        )
        self.head = nn.Linear(n_features, outputs)

    def forward(self, patches: Tensor) -> Tensor:
        """Map the patches of one image to its logits."""
        features = self.features(patches)
        pooled = self._weights(features) @ features
        logits: Tensor = self.head(pooled.unsqueeze(0))
        return logits

    def features(self, patches: Tensor) -> Tensor:
        """Give one vector per patch, ``(patch, feature)``."""
        vectors: Tensor = self.extractor(patches)
        return vectors

    def attention(self, patches: Tensor) -> Tensor:
        """Weigh the patches of one image, ``(patch,)``; they sum to 1."""
        return self._weights(self.features(patches))

    def _weights(self, features: Tensor) -> Tensor:
        weights: Tensor = self.scores(features).squeeze(1).softmax(dim=0)
        return weights


class SmallCnn(nn.Module):
    """The small network that A-MIL is compared with: five convolutions, two linear layers.

    **Shape**: ``(image, 3, px, px)`` → ``(image, output)`` logits; ``px`` is 128 in the paper,
    32 at least.

    **Reference**: Patil et al. 2019, table III (``customNet``).

    NOTE[DIFF] The paper prints neither kernel sizes nor activations: 3 × 3 and ReLU here. The last
    pooling brings any image to 4 × 4, which at 128 px is the halving of the table.

    Examples
    --------
    >>> import torch
    >>> SmallCnn(3)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 3])
    """

    widths = (64, 64, 128, 128, 128)

    def __init__(self, outputs: int) -> None:
        super().__init__()
        stages, before = [], 3
        for number, width in enumerate(self.widths, start=1):
            last = number == len(self.widths)
            pool = nn.AdaptiveMaxPool2d(4) if last else nn.MaxPool2d(2)
            stages.append(nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), pool))
            before = width
        self.stages = nn.Sequential(*stages)
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(16 * before, 1024), nn.ReLU())
        _draw(self)
        self.head = nn.Linear(1024, outputs)

    def features(self, images: Tensor) -> Tensor:
        """Give one vector per image, ``(image, 1024)``."""
        vectors: Tensor = self.dense(self.stages(images))
        return vectors

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _draw(module: nn.Module) -> None:
    """Draw weights so that layers with rectifiers keep the size of what they pass (He 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def small_cnn(
    outputs: int, *, name: str, seed: int, weights: str | None, px: int | None = None
) -> Network:
    """Make :class:`SmallCnn`; arguments as of :func:`zoo.finetune.networks.network`."""
    _check_no_weights(name, weights)
    with seeded(seed):
        module = SmallCnn(outputs)
    prefixes = [f"stages.{k}." for k in range(len(module.stages))]
    groups = _grouped(module, [*prefixes, "dense."])
    return Network(name=name, module=module, groups=groups, px=px or 128, mean=_GREY, std=_GREY)


def amil_cnn(
    outputs: int, *, name: str, seed: int, weights: str | None, px: int | None = None
) -> Network:
    """Make the network of A-MIL; arguments as of :func:`zoo.finetune.networks.network`."""
    _check_no_weights(name, weights)
    with seeded(seed):
        module = AttentionNet(PatchCnn(), PatchCnn.n_features, outputs)
    groups = _grouped(module, [f"extractor.{k}." for k in (0, 3, 7)])
    return Network(
        name=name, module=module, groups=groups, px=px or 28, mean=_GREY, std=_GREY, bag=True
    )


def amil_of(
    outputs: int, *, name: str, seed: int, weights: str | None, px: int | None = None
) -> Network:
    """Make attention pooling over the vectors of any backbone: ``amil:resnet18``.

    Arguments are those of :func:`zoo.finetune.networks.network`; ``name`` is the whole of it.
    """
    inner = name.partition(":")[2]
    encoder = f"torchvision:{inner}" if inner in NETWORKS else inner
    with seeded(seed):
        body, part = load_backbone(known_card(encoder), path="extractor", weights=weights, px=px)
    with seeded(seed):
        module = AttentionNet(body, part.width, outputs)
    return assembled(name, module, {"": part}, bag=True)


def _check_no_weights(name: str, weights: str | None) -> None:
    if weights not in {None, RANDOM}:
        raise RecipeError(f"nobody has published weights of {name}: leave --weights out")


def _grouped(module: nn.Module, prefixes: list[str]) -> Mapping[str, tuple[str, ...]]:
    """Name the parameters of each stage, by what their names begin with; the rest is the head."""
    names = [name for name, _ in module.named_parameters()]
    groups = {
        f"stage-{number}": tuple(name for name in names if name.startswith(prefix))
        for number, prefix in enumerate(prefixes, start=1)
    }
    inside = {name for members in groups.values() for name in members}
    return {**groups, HEAD: tuple(name for name in names if name not in inside)}
