"""Which image regions activate a unit (DiG-IN, App. F.3): HiResCAM (Draelos & Carin, 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.result_schema import ORIGINAL, RESULT, START, ImageField, Label, ResultImages
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.cam_share import PRESERVE_WITH_OBJECT_MASK, object_region, share_inside
from classifier_lens.tasks.units.addressing import FEATURES, Unit

CAM_BEFORE = ImageField("hirescam_before", "HiResCAM before", overlaid_on=(ORIGINAL.key, START.key))
CAM_AFTER = ImageField("hirescam_after", "HiResCAM after", overlaid_on=(RESULT.key,))


class CamShares(TypedDict, total=False):
    """Shares of the map outside the object; without a map or a mask of the object there are none."""

    cam_share_outside_before: Annotated[float, Label("CAM outside the object before")]
    cam_share_outside_after: Annotated[float, Label("CAM outside the object after")]


def hirescam(
    classifier: Classifier, image: Float[Tensor, "3 h w"], unit: Unit, layer: str | None = None
) -> Float[Tensor, "h w"] | None:
    """Gradient of the unit times the feature map of `layer` (None for the last one), summed over channels, with
    negative values set to 0, at the image's size and with sum 1; all 0 if nothing activates the unit. None if the
    network has no such map.

    Tokens count as a square map; surplus ones, such as a class token, come first and are dropped. For a unit before
    that map, the output of the unit's own module takes the map's place.
    """
    layer = layer or classifier.cam_module
    if layer is None:
        return None
    with torch.enable_grad():
        modules = [layer] if unit.module == FEATURES else [layer, unit.module]
        response, traced = classifier.forward_with_activations(image[None].detach().clone().requires_grad_(), modules)
        source = response.features if unit.module == FEATURES else traced[unit.module]
        assert source is not None
        value = source.flatten(2).mean(dim=2)[0, unit.index] if source.ndim == 4 else source[0, ..., unit.index].mean()
        maps = traced[layer]
        gradient: Tensor | None = torch.autograd.grad(value, maps, allow_unused=True, retain_graph=True)[0]
        if gradient is None:  # the unit comes before the map
            maps, gradient = source, torch.autograd.grad(value, source)[0]
    if maps.ndim < 3:
        return None
    product = (gradient * maps).detach()
    product = product.sum(dim=1)[0] if product.ndim == 4 else _square(product.sum(dim=2)[0])
    large = F.interpolate(product[None, None], size=image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    positive = large.clamp(min=0)
    return positive / positive.sum().clamp(min=1e-12)


def heatmap(cam: Float[Tensor, "h w"]) -> Float[Tensor, "1 h w"]:
    """A map as an image in [0, 1], divided by its maximum."""
    return (cam / cam.max().clamp(min=1e-12))[None]


def _square(tokens: Float[Tensor, " l"]) -> Float[Tensor, "s s"]:
    side = int(len(tokens) ** 0.5)
    return tokens[len(tokens) - side * side :].view(side, side)


@dataclass(frozen=True)
class HiResCam:
    """HiResCAM of the images of a result. layer: the module whose map is read, None for the network's last one. Layers
    after a map may mix its places or weight channels by the whole image; an earlier map then locates better."""

    layer: str | None

    def check(self, classifier: Classifier) -> None:
        """Raises UserError if the classifier has no such module, or one without a map."""
        if self.layer is None:
            return
        with torch.no_grad():
            _, traced = classifier.forward_with_activations(
                torch.zeros(1, 3, classifier.size, classifier.size), [self.layer]
            )
        if traced[self.layer].ndim < 3:
            raise UserError(
                f"task.cam.layer={self.layer}: its output is no map; choose a module with a feature map or tokens"
            )

    def heatmaps(
        self, classifier: Classifier, images: ResultImages, unit: Unit
    ) -> dict[ImageField, Float[Tensor, "1 h w"]]:
        """Maps before and after optimization, for display; empty if the network has no map."""
        cams = self._cams(classifier, images, unit)
        return {} if cams is None else {CAM_BEFORE: heatmap(cams[0]), CAM_AFTER: heatmap(cams[1])}

    def shares_outside_object(
        self, classifier: Classifier, images: ResultImages, unit: Unit, preserve: str
    ) -> CamShares:
        """The share of the unit's map outside the object, before and after optimization."""
        if preserve not in PRESERVE_WITH_OBJECT_MASK or (cams := self._cams(classifier, images, unit)) is None:
            return {}
        outside = 1 - object_region(images, preserve)
        before, after = (share_inside(cam, outside) for cam in cams)
        return {"cam_share_outside_before": before, "cam_share_outside_after": after}

    def _cams(self, classifier: Classifier, images: ResultImages, unit: Unit) -> tuple[Tensor, Tensor] | None:
        before, after = (hirescam(classifier, image, unit, self.layer) for image in (images.before, images.result))
        return None if before is None or after is None else (before, after)
