"""Whether graphs that have just been made compute what the backbone does in torch: before they are put in force."""

from __future__ import annotations

from edge_cl.backbone import Backbone
from edge_cl.export.bundle import Bundle, BundleError
from edge_cl.export.reference import TOLERANCE, Example, pictures
from edge_cl.features import Encoder
from edge_cl.model import Model
from edge_cl.runtime.onnx import OnnxBackend

PICTURES = 2  # a smooth one and a noisy one


def require_parity(bundle: Bundle, model: Model, backbone: Backbone) -> None:
    """Refuse graphs whose features of prefix and base branch are more than rounding off those of torch in fp32.

    An exporter may have been wrong, and half precision too small for what a backbone computes.

    Args:
        bundle: whose files are written.
        model: that they were made of.
        backbone: likewise, in single precision, anywhere.

    Raises:
        BundleError: they are, or are not finite.
    """
    images = pictures(PICTURES, model.spec.image_size)
    device = next(backbone.parameters()).device
    torch = Encoder(backbone, model.preprocess, model.shared, model.base, device)
    example = Example({}, {"features": torch.encode(images).features}, backbone.width)
    deviation = example.deviation({"features": OnnxBackend(bundle).encode(images).features})
    limit = TOLERANCE[bundle.manifest.precision]
    if deviation > limit:
        half = bundle.manifest.precision == "fp16"
        raise BundleError(
            f"The graphs of {bundle.path} are wrong: their features are {deviation:.1e} off those of torch, more than "
            f"{limit:.0e}. None were put in force.",
            mend="Export in single precision: --precision fp32" if half else "Try another version of torch or onnx.",
        )
